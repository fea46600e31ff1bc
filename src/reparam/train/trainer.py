"""A model in training: one optimizer step at a time."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reparam.config import TrainConfig
from reparam.distributed import ALONE, SharedBatch, World
from reparam.errors import NonFiniteError
from reparam.models.latent import LatentModel
from reparam.objectives import Terms, alone, beta_at
from reparam.train.graph import Replayed
from reparam.train.loss import Loss
from reparam.train.optimizers import build_optimizer, let_capture, rate_at
from reparam.train.sums import EpochMetrics, Totals, summed

Step = Callable[[Tensor, Tensor | None], Terms]  # of images, and of their labels if the model is conditional


class Trainer:
    """A loss, the optimizer that lowers it, its learning rate, and the weights that are scored and kept."""

    def __init__(self, loss: Loss, config: TrainConfig, epoch_images: int, world: World = ALONE) -> None:
        """`epoch_images` are the images of one epoch, of all processes together."""
        self.loss = loss
        self.config = config
        self.epoch_images = epoch_images
        self.world = world
        self.images = 0  # trained so far, in all epochs and by all processes: how far training is
        self.rate_factor = 1.0  # halved at each roll-back
        self.optimizer = build_optimizer(loss.parameters(), config)
        self._averaged = copy.deepcopy(loss).requires_grad_(False) if config.average else None
        self._wrapped: Callable[..., Terms] = world.wrap(loss)
        if config.compile and world.size > 1:
            self._wrapped = torch.compile(self._wrapped, dynamic=False)
        self._fill_gradients = self._traced_backward() if config.compile and world.size == 1 else self._backward
        self._is_replayed = config.cuda_graph and self.device.type == "cuda" and world.size == 1
        if self._is_replayed:
            let_capture(self.optimizer, self.device)
        self._update = self._fresh_update()

    @property
    def device(self) -> torch.device:
        return self.loss.epoch.device

    @property
    def model(self) -> LatentModel:
        """The model that is scored and kept."""
        return self._kept().model

    def step(self, images: Tensor, labels: Tensor | None = None) -> Totals:
        """Lower the loss on a batch; the terms that are returned are valid until the next step.

        Shapes: (B, C, H, W) uint8, (B,) int64, the part of the batch that this process has.
        """
        of_all = self._of_all(images)
        epoch, after = self.images / self.epoch_images, (self.images + of_all) / self.epoch_images
        self._set_rate(self.rate_factor * rate_at(self.config, epoch, after))
        self.loss.begin(epoch)
        terms = self._update(images, labels)
        self.images += of_all
        found = Totals(terms, len(images))
        # If a batch has fewer images than processes, each process had the whole batch, so only the first one counts it.
        return found if of_all >= self.world.size or self.world.is_first else found.of_nothing()

    def slow_down(self, factor: float) -> None:
        """Multiply the learning rates of the schedule by a factor from now on."""
        self.rate_factor = factor

    def validate(self, images: Tensor, labels: Tensor | None = None) -> Totals:
        """Return the loss terms of a held-out batch. Shapes: (B, C, H, W) uint8, (B,) int64."""
        return Totals.of(self._kept().validate(images, labels))

    def schedules(self) -> EpochMetrics:
        """Return the learning rate and the weight of the KL at an epoch's last step."""
        last_batch = (self.epoch_images - 1) % self.config.batch_size + 1
        epoch = (self.images - last_batch) / self.epoch_images
        beta = beta_at(self.loss.config, torch.tensor(epoch)).item()
        rate = rate_at(self.config, epoch, self.images / self.epoch_images)
        return {"learning_rate": self.rate_factor * rate, "beta": beta}

    def check(self, epoch: int) -> None:
        """Wait for the device and see that the weights are finite: the last step's may not be, though its loss was.

        Raises: NonFiniteError.
        """
        kept = [*self.loss.state_dict().values(), *self.model.state_dict().values()]
        if not torch.stack([weight.isfinite().all() for weight in kept]).all():
            raise NonFiniteError(
                f"train: the weights are no longer finite at the end of epoch {epoch}; lower train.learning_rate in "
                "params.yaml, set train.clip_norm, or train.on_nonfinite to rollback"
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "loss": self.loss.state_dict(),
            "averaged": self._averaged.state_dict() if self._averaged else {},
            "optimizer": self.optimizer.state_dict()["state"],
            "images": self.images,
            "rate_factor": self.rate_factor,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loss.load_state_dict(state["loss"])
        if self._averaged:
            self._averaged.load_state_dict(state["averaged"])
        groups = self.optimizer.state_dict()["param_groups"]
        weights = list(self.loss.parameters())
        of_weights = {
            int(number): {name: _laid_out_as(weights[int(number)], value) for name, value in values.items()}
            for number, values in state["optimizer"].items()
        }
        self.optimizer.load_state_dict({"state": of_weights, "param_groups": groups})
        self._update = self._fresh_update()  # the optimizer's state is elsewhere in memory now
        self.images, self.rate_factor = state["images"], state["rate_factor"]

    def _kept(self) -> Loss:
        return self.loss if self._averaged is None else self._averaged

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _of_all(self, images: Tensor) -> int:
        """Count the images that all processes see in this step, without asking them."""
        if self.world.size == 1:
            return len(images)
        return min(self.config.batch_size, self.epoch_images - self.images % self.epoch_images)

    def _traced_backward(self) -> Step:
        """Compile forward and backward pass as one graph."""
        _trace_gradients()
        for weight in self.loss.parameters():
            weight.grad = torch.zeros_like(weight)
        # For each batch size, of which there are two: a graph for any size is slower.
        return torch.compile(self._traceable_backward, dynamic=False)

    def _fresh_update(self) -> Step:
        return Replayed(self._update_now, self.config.batch_size) if self._is_replayed else self._update_now

    def _update_now(self, images: Tensor, labels: Tensor | None = None) -> Terms:
        """Change the weights by one step. All that a CUDA graph replays is in here."""
        terms = self._fill_gradients(images, labels)
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.loss.parameters(), self.config.clip_norm)
        self.optimizer.step()
        if self._averaged is not None:
            self._average(self._averaged)
        return terms

    @torch.no_grad()
    def _average(self, averaged: Loss) -> None:
        """Move the averaged weights towards those in training; the first step's are the first average.

        (torch's AveragedModel copies a number to the device at every step, and a CUDA graph cannot wait for that.)
        """
        nearer = 1 - self.config.average if self.images else 1.0
        for average, weight in zip(averaged.parameters(), self.loss.parameters(), strict=True):
            average.lerp_(weight, nearer)
        for kept, value in zip(averaged.buffers(), self.loss.buffers(), strict=True):
            kept.copy_(value)

    def _backward(self, images: Tensor, labels: Tensor | None) -> Terms:
        """Fill the weights' gradients."""
        self.optimizer.zero_grad()
        of_all = self._of_all(images)
        gather = SharedBatch(self.world, of_all).gather if self.world.size > 1 else alone
        with self._precision(images):
            terms = self._wrapped(images, labels, gather=gather)
        torch.autograd.backward(terms["loss"].mean() * self.world.weight(len(images), of_all))
        return summed({name: values.detach() for name, values in terms.items()})

    def _traceable_backward(self, images: Tensor, labels: Tensor | None) -> Terms:
        """Fill the weights' gradients by operations that torch.compile captures as one graph."""
        with self._precision(images):
            terms = self.loss(images, labels)
        weights = list(self.loss.parameters())
        gradients = torch.autograd.grad(terms["loss"].mean(), weights, materialize_grads=True)
        with torch.no_grad():
            # Copied, because fused optimizers want the order in memory that the weights have.
            for weight, gradient in zip(weights, gradients, strict=True):
                assert weight.grad is not None
                weight.grad.copy_(gradient)
        return summed({name: values.detach() for name, values in terms.items()})

    def _precision(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


def _laid_out_as(weight: Tensor, value: Any) -> Any:
    """Copy the state of an optimizer for a weight into the weight's order in memory.

    Fused optimizers walk through memory and not through indices, and a tensor from a file is always contiguous.
    """
    if isinstance(value, Tensor) and value.dim():
        return torch.empty_like(weight, dtype=value.dtype).copy_(value)
    return value.clone() if isinstance(value, Tensor) else value  # the number of steps


def _trace_gradients() -> None:
    """Let torch.compile see through `torch.autograd.grad`: one graph instead of two, where this torch knows how."""
    if hasattr(torch._dynamo.config, "trace_autograd_ops"):
        torch._dynamo.config.trace_autograd_ops = True
