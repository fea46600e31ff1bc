"""Run a model on a collection of images, here or in the processes of a Ray cluster."""

import logging
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.client import Client
from reparam.errors import UserError
from reparam.shell.inputs import Batch, Collection

Array = npt.NDArray[Any]
Compute = Callable[[Client, Batch], Array]
Results = Iterator[tuple[list[str], Array]]  # names and values of the images of a batch, in order


def computed(client: Client, images: Collection, span: range, compute: Compute) -> Results:
    """Compute one batch after the other."""
    for batch in images.batches(span, client.batch):
        yield batch.names, compute(client, batch)


class Cluster:
    """Processes of Ray, each with a model of its own; every machine must see the same files under the same names."""

    def __init__(self, address: str) -> None:
        """Raises: UserError if there is no Ray, or no cluster."""
        try:
            import ray
        except ImportError:
            raise UserError("--ray: needs ray; run `pip install 'reparam[ray]'`") from None
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray prints remarks about itself
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"--ray: wanted local, auto (the cluster that runs here) or the address of one, found {address!r}: "
                f"{str(error).splitlines()[0]}"
            ) from None

    def computed(self, client: Client, images: Collection, span: range, compute: Compute) -> Results:
        """Compute batches as `computed` does, several at once. Raises: UserError if a worker raised one."""
        from ray import data

        if not span:
            return
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = data.DataContext.get_current()
        context.enable_progress_bars, context.execution_options.preserve_order = False, True
        parts = [{"start": start, "stop": min(start + client.batch, span.stop)} for start in span[:: client.batch]]
        found = data.from_items(parts).map(
            _Worker,  # type: ignore[arg-type]  # a class, which is called once it is made
            fn_constructor_args=(Path.cwd(), pickle.dumps((client, images, compute))),
            compute=data.ActorPoolStrategy(min_size=1, max_size=len(parts)),
            num_cpus=1,
            num_gpus=0 if client.provider.startswith("CPU") else 1,
        )
        for row in found.iter_rows():
            if row["refusal"]:
                raise UserError(row["refusal"])
            yield row["names"].tolist(), row["values"]


class _Worker:
    def __init__(self, directory: Path, parts: bytes) -> None:
        os.chdir(directory)  # first, because the parts open files by the names that the user typed
        self._client, self._images, self._compute = pickle.loads(parts)  # noqa: S301  # of the process that started us

    def __call__(self, part: dict[str, int]) -> dict[str, Any]:
        try:
            (batch,) = self._images.batches(range(part["start"], part["stop"]), part["stop"] - part["start"])
            return {"names": np.array(batch.names), "values": self._compute(self._client, batch), "refusal": ""}
        except UserError as error:
            return {"names": np.array([]), "values": np.array([]), "refusal": str(error)}
