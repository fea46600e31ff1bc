"""One optimizer step."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reparam.config import ObjectiveConfig, TrainConfig
from reparam.data.scaling import Scaling
from reparam.errors import NonFiniteError
from reparam.models.build import AnyModel
from reparam.objectives import OBJECTIVES, Setting, Terms, beta_at
from reparam.train.distributed import ALONE, World
from reparam.train.graph import Replayed
from reparam.train.loop import Metrics, Sums, Totals, summed
from reparam.train.optimizers import build_optimizer, let_capture, rate_at


class LossModule(nn.Module):
    """Model and objective as one module, so that whatever wraps modules wraps both."""

    seen: Tensor  # images, in all epochs so far
    black: Tensor
    white: Tensor

    def __init__(
        self, model: AnyModel, config: ObjectiveConfig, scaling: Scaling, images: int, *, is_density: bool = True
    ) -> None:
        """Without `is_density`, the likelihood is none of these pixels, and there is no ELBO to speak of."""
        super().__init__()
        self.is_density = is_density
        self.model = model
        self.config = config
        self.objective = OBJECTIVES[config.name].terms
        self.images = images
        # On the device, because reading it from the host would be one more wait per step.
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)
        for name, value in (("black", 0.0), ("white", 1.0)):
            pixel = torch.full((1, 1), value, device=scaling.shift.device)
            self.register_buffer(name, scaling(pixel), persistent=False)

    def forward(self, x: Tensor) -> Terms:
        """Return the loss terms of a training batch, each (B,)."""
        return self._terms(x, self.seen / self.images)

    def score(self, x: Tensor) -> Terms:
        """Return the loss terms of a held-out batch, with every schedule at its end, so that epochs can be compared."""
        self.eval()
        try:
            return self._terms(x, torch.full((), torch.inf, device=self.seen.device))
        finally:
            self.train()

    def _terms(self, x: Tensor, epoch: Tensor) -> Terms:
        terms = self.objective(self.model, x, self.config, Setting(epoch, self.black, self.white))
        return {name: values for name, values in terms.items() if name != "elbo" or self.is_density}


class Step:
    """A model in training: the optimizer, its learning rate, and the weights that are scored and kept.

    Everything that decides how training goes on is in `state`.
    """

    def __init__(self, module: LossModule, config: TrainConfig, world: World = ALONE) -> None:
        self.module = module
        self.config = config
        self.world = world
        self.is_replayed = config.cuda_graph and module.seen.is_cuda and world.size == 1
        self.optimizer = build_optimizer(module.parameters(), config)
        if self.is_replayed:
            let_capture(self.optimizer, module.seen.device)
        self.prepare: Callable[[Tensor], Tensor] = lambda batch: batch  # makes pixels of what `step` is given
        self.images = 0  # seen so far, known without waiting for the device
        self.rate_factor = 1.0  # halved at each roll-back
        self._wrapped: Callable[[Tensor], Terms] = world.wrap(module)
        self._gradients = self._backward
        self.is_traced = config.compile and world.size == 1
        if self.is_traced:
            trace_gradients()
            for weight in module.parameters():
                weight.grad = torch.zeros_like(weight)
            # For each batch size, of which there are two: a graph for any size is slower.
            self._gradients = torch.compile(self._traceable_backward, dynamic=False)
        elif config.compile:
            self._wrapped = torch.compile(self._wrapped, dynamic=False)
        self._update = self._fresh_update()
        self._averaged = copy.deepcopy(module).requires_grad_(False) if config.average else None

    def step(self, x: Tensor) -> Totals:
        """Lower the loss on a batch; the terms that are returned stand on the device until the next step."""
        rate = self.rate_factor * rate_at(self.config, self.images / self.module.images)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        terms, of_all = self._update(x), self._of_all(x)
        self.images += of_all
        if of_all >= self.world.size or self.world.is_first:
            return Totals(terms, len(x))
        # All processes had the whole batch, and one counts it.
        return Totals({name: torch.zeros_like(total) for name, total in terms.items()}, 0)

    def _of_all(self, x: Tensor) -> int:
        """Count the images that all processes see in this step, without asking them."""
        if self.world.size == 1:
            return len(x)
        return min(self.config.batch_size, self.module.images - self.images % self.module.images)

    def _fresh_update(self) -> Callable[[Tensor], Terms]:
        return Replayed(self._update_now, self.config.batch_size) if self.is_replayed else self._update_now

    def _update_now(self, batch: Tensor) -> Terms:
        """Change the weights by one step. All that a CUDA graph replays is in here."""
        terms = self._gradients(batch)
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.module.seen += self._of_all(batch)
        if self._averaged is not None:
            self._average(self._averaged)
        return terms

    @torch.no_grad()
    def _average(self, averaged: LossModule) -> None:
        """Move the averaged weights towards those in training; the first step's are the first average.

        (torch's AveragedModel copies a number to the device at every step, for which a CUDA graph cannot wait.)
        """
        nearer = 1 - self.config.average if self.images else 1.0
        for average, weight in zip(averaged.parameters(), self.module.parameters(), strict=True):
            average.lerp_(weight, nearer)
        for kept, value in zip(averaged.buffers(), self.module.buffers(), strict=True):
            kept.copy_(value)

    def _backward(self, batch: Tensor) -> Terms:
        """Fill the weights' gradients."""
        self.optimizer.zero_grad()
        terms = self._forward(self._wrapped, self.prepare(batch))
        torch.autograd.backward(terms["loss"].mean() * self.world.weight(len(batch), self._of_all(batch)))
        return summed({name: values.detach() for name, values in terms.items()})

    def _traceable_backward(self, batch: Tensor) -> Terms:
        """Fill the weights' gradients, in words of which torch.compile makes one graph."""
        terms = self._forward(self.module, self.prepare(batch))
        weights = list(self.module.parameters())
        gradients = torch.autograd.grad(terms["loss"].mean(), weights, materialize_grads=True)
        with torch.no_grad():
            # Copied, because fused optimizers want the order in memory that the weights have.
            for weight, gradient in zip(weights, gradients, strict=True):
                assert weight.grad is not None
                weight.grad.copy_(gradient)
        return summed({name: values.detach() for name, values in terms.items()})

    def _forward(self, module: Callable[[Tensor], Terms], x: Tensor) -> Terms:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return module(x)

    def score(self, x: Tensor) -> Totals:
        """Look at a held-out batch."""
        return Totals.of(self._kept().score(x))

    @property
    def model(self) -> AnyModel:
        """The model that is scored and kept."""
        return self._kept().model

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that are to be kept."""
        return self.model.state_dict()

    def schedules(self) -> Metrics:
        """Return the learning rate and the weight of the KL at an epoch's last step."""
        last_batch = (self.module.images - 1) % self.config.batch_size + 1
        epoch = (self.images - last_batch) / self.module.images
        beta = beta_at(self.module.config, torch.tensor(epoch)).item()
        return {"learning_rate": self.rate_factor * rate_at(self.config, epoch), "beta": beta}

    def check(self, epoch: int) -> None:
        """Wait for the device and see that the weights are finite: the last step's may not be, though its loss was.

        Raises: NonFiniteError.
        """
        kept = [*self.module.state_dict().values(), *self.weights().values()]
        if not torch.stack([weight.isfinite().all() for weight in kept]).all():
            raise NonFiniteError(
                f"train: the weights are no longer finite at the end of epoch {epoch}; lower train.learning_rate in "
                "params.yaml, set train.clip_norm, or train.on_nonfinite to rollback"
            )

    def agree(self, order: Tensor) -> Tensor:
        """Return the order of the first process, where several train together."""
        return self.world.agree(order.to(self.module.seen.device)).to(order.device)

    def gather(self, sums: Sums) -> Sums:
        """Add up what all processes saw."""
        if self.world.size == 1:
            return sums
        numbers = torch.cat([sums.totals, sums.totals.new_tensor([sums.images])])
        gathered = Sums()
        gathered.names, gathered.steps = sums.names, sums.steps
        *totals, images = self.world.total(numbers).unbind()
        # Every process counts the steps since the loss ceased to be finite: their mean says about when.
        gathered.totals = torch.stack([*totals[:-1], (totals[-1] / self.world.size).ceil()])
        gathered.images = round(images.item())
        return gathered

    def state(self) -> dict[str, Any]:
        """Return all that decides how training goes on, as nested dicts of tensors, numbers and lists."""
        return {
            "module": self.module.state_dict(),
            "averaged": self._averaged.state_dict() if self._averaged else {},
            "optimizer": self.optimizer.state_dict()["state"],
            "images": self.images,
            "rate_factor": self.rate_factor,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.module.load_state_dict(state["module"])
        if self._averaged:
            self._averaged.load_state_dict(state["averaged"])
        groups = self.optimizer.state_dict()["param_groups"]
        weights = list(self.module.parameters())
        of_weights = {
            int(number): {name: _laid_out_as(weights[int(number)], value) for name, value in values.items()}
            for number, values in state["optimizer"].items()
        }
        self.optimizer.load_state_dict({"state": of_weights, "param_groups": groups})
        self._update = self._fresh_update()  # the optimizer's state stands elsewhere now
        self.images, self.rate_factor = state["images"], state["rate_factor"]
        self.module.seen.fill_(self.images)

    def _kept(self) -> LossModule:
        return self.module if self._averaged is None else self._averaged


def _laid_out_as(weight: Tensor, value: Any) -> Any:
    """Copy what an optimizer holds of a weight into the same order in memory.

    Fused optimizers walk through memory and not through indices, and a tensor from a file is always contiguous.
    """
    if isinstance(value, Tensor) and value.dim():
        return torch.empty_like(weight, dtype=value.dtype).copy_(value)
    return value.clone() if isinstance(value, Tensor) else value  # the number of steps


def trace_gradients() -> None:
    """Let torch.compile see through `torch.autograd.grad`: one graph instead of two, where this torch knows how."""
    if hasattr(torch._dynamo.config, "trace_autograd_ops"):
        torch._dynamo.config.trace_autograd_ops = True
