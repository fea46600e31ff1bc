"""Run by tests: in N processes, score images with every kind of model, and compare with what one process scores.

python shared_scores.py N
"""

import os
import socket
import sys
from dataclasses import replace

import torch
from conftest import small_section
from some_cards import image_facts
from subjects import SHAPE, settings, some_data, some_split
from torch.testing import assert_close
from training import CPU, KINDS

from reparam.distributed import joined
from reparam.evaluate.subject import Subject
from reparam.models.build import build_model

IMAGES = (9, 8, 5, 1)  # in batches of 4: ragged, equal, and fewer batches than processes


def compare(rank: int, size: int, port: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    torch.set_num_threads(1)
    compared = 0
    with joined(CPU) as world:
        for kind in [*KINDS.values(), {"condition": "label"}]:
            small = {"hidden": [5], "latent": 3, "upper": [2], "upper_hidden": [4], "likelihood": "gaussian"}
            torch.manual_seed(0)
            model = build_model(small_section("model", **small | kind), SHAPE, 2 * ("condition" in kind)).eval()
            for count in IMAGES:
                data = some_data(some_split([0, 1] * (count // 2) + [0] * (count % 2)), image_facts("dynamic"))
                data = replace(data, is_conditional="condition" in kind)
                torch.manual_seed(rank)  # scores must not depend on it
                shared = Subject.scored(model, data, settings(nll_samples=7), world).scores
                if world.is_first:
                    alone = Subject.scored(model, data, settings(nll_samples=7)).scores
                    for name, wanted in vars(alone).items():
                        assert_close(getattr(shared, name), wanted, rtol=0, atol=0, equal_nan=True)
                    compared += 1
    if rank == 0:
        sys.stdout.write(f"equal {compared}\n")


if __name__ == "__main__":
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    size = int(sys.argv[1])
    torch.multiprocessing.start_processes(lambda rank: compare(rank, size, port), nprocs=size, start_method="fork")
