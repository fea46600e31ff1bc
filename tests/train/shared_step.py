"""Run by tests: in N processes, one step with each objective, compared with the step of a process that has all images.

python shared_step.py N [compile]
"""

import copy
import os
import socket
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from training import CPU, small_loss, train_config

from reparam.distributed import joined
from reparam.train.trainer import Trainer

VAE = {"kind": "vae", "likelihood": "gaussian", "hidden": (8,), "latent": 3}
CODE = {"kind": "autoencoder", "likelihood": "gaussian", "hidden": (8,), "latent": 3, "code": "sigmoid"}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (VAE, {"name": "elbo"}),
    (VAE, {"name": "elbo", "free_bits": 0.1}),
    (VAE, {"name": "elbo", "free_bits": 0.1, "kl": "monte_carlo"}),
    (VAE, {"name": "capacity", "capacity": {"nats": 5.0, "weight": 3.0, "epochs": 1}}),
    (VAE, {"name": "beta_tc", "beta": 4.0}),
    (VAE, {"name": "mmd", "beta": 0.5, "mmd": {"weight": 10.0}}),
    (VAE, {"name": "iwae", "samples": 3}),
    (CODE, {"name": "reconstruction"}),
    (CODE, {"name": "sparse", "sparse": {"penalty": "kl", "weight": 5.0}}),
]
BATCHES = (12, 7, 3, 2, 1)  # images: shared equally, raggedly, and fewer than processes


def no_noise(*shape: Any, **options: Any) -> Tensor:
    """Take the place of torch.randn: the noise of an image must not depend on who has it."""
    options.pop("generator", None)
    return torch.zeros(*shape, **options)


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in trainer.loss.parameters()])


def compare(rank: int, size: int, port: str, *, is_compiled: bool) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    torch.set_num_threads(1)
    with joined(CPU) as world:
        for model, objective in CASES:
            config = train_config(optimizer="sgd", momentum=0.0, learning_rate=1.0, batch_size=12, compile=is_compiled)
            loss = small_loss(model, objective)
            for count in BATCHES[: 2 if is_compiled else None]:
                images = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(count))
                alone, shared = (
                    Trainer(copy.deepcopy(loss), config, count),
                    Trainer(copy.deepcopy(loss), config, count, world),
                )
                before = weights(alone)
                alone.step(images.to(torch.uint8))
                totals = shared.step(images.to(torch.uint8)[world.share(torch.arange(count))])
                wanted, found = before - weights(alone), before - weights(shared)
                error = ((found - wanted).norm() / wanted.norm()).item()
                assert error < 1e-5, f"{objective}, {count} images: {error:.1e}"
                counted = torch.tensor(totals.images)
                dist.all_reduce(counted)
                assert counted == count
        if rank == 0:
            sys.stdout.write(f"equal {len(CASES)}\n")


if __name__ == "__main__":
    torch.randn = no_noise
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    size = int(sys.argv[1])
    torch.multiprocessing.start_processes(
        lambda rank: compare(rank, size, port, is_compiled="compile" in sys.argv), nprocs=size, start_method="fork"
    )
