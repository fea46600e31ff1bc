"""What a GPU would refuse or wait for, found without one."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from fake_gpu import GPU, META, Watch, fake_gpu, needs_cuda_build
from torch import Tensor
from training import KINDS, NEEDS_INDEPENDENT_LATENTS, REFUSED, SIZES, black_and_white, small_loss

from reparam.models.likelihoods import LIKELIHOODS
from reparam.models.networks import NETWORKS
from reparam.models.priors import PRIORS
from reparam.objectives import OBJECTIVES, Terms
from reparam.train.loss import Loss

IMAGES = black_and_white(4, 1, 8, 8)
FEW = SIZES | {"channels": (4,), "upper": (2,)}  # layers of each kind: a third has no code of its own


def combinations(network_of_first: str) -> list[tuple[str, str, str, str]]:
    """Every kind of model, likelihood and objective that go together; the networks take turns."""
    networks = sorted(NETWORKS, key=lambda name: name != network_of_first)
    found = []
    for kind, (i, likelihood), (j, objective) in product(KINDS, enumerate(LIKELIHOODS), enumerate(OBJECTIVES)):
        if (kind, objective) not in REFUSED:
            found.append((kind, networks[(i + j) % len(networks)], likelihood, objective))
    return found


pytestmark = pytest.mark.usefixtures("one_thread")


def loss_of(kind: str, network: str, likelihood: str, objective: str) -> Loss:
    """Black and white is drawn where the likelihood is of such pixels."""
    model = KINDS[kind] | FEW | {"network": network, "likelihood": likelihood}
    binarization = "dynamic" if likelihood == "bernoulli" else "none"
    return small_loss(model, {"name": objective, "samples": 2}, IMAGES.shape[1:], binarization)


# Losses and gradients


@needs_cuda_build
@pytest.mark.parametrize(("kind", "network", "likelihood", "objective"), combinations("mlp"))
def test_a_loss_keeps_to_its_gpu_and_waits_for_nothing(
    kind: str, network: str, likelihood: str, objective: str
) -> None:
    loss = loss_of(kind, network, likelihood, objective)
    with fake_gpu() as gpu:
        loss, images = loss.to(GPU), IMAGES.to(GPU)
        with gpu.never_waits():
            terms = loss(images)
    assert {(values.device.type, tuple(values.shape)) for values in terms.values()} == {("cuda", (4,))}


@pytest.mark.parametrize(("kind", "network", "likelihood", "objective"), combinations("conv"))
def test_gradients_keep_to_their_device_and_wait_for_nothing(
    kind: str, network: str, likelihood: str, objective: str
) -> None:
    loss, images = loss_of(kind, network, likelihood, objective).to(META), IMAGES.to(META)
    with Watch() as watch, watch.never_waits():
        torch.autograd.backward(loss(images)["loss"].mean())
    weights = list(loss.parameters())
    assert [weight.grad.shape for weight in weights if weight.grad is not None] == [weight.shape for weight in weights]


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name not in NEEDS_INDEPENDENT_LATENTS])
@pytest.mark.parametrize("prior", [name for name in PRIORS if name != "standard"])
@pytest.mark.parametrize("device", [META, pytest.param(GPU, marks=needs_cuda_build)], ids=str)
def test_other_priors_keep_to_their_device_and_wait_for_nothing(
    device: torch.device, prior: str, objective: str
) -> None:
    loss = small_loss(KINDS["vae"] | FEW | {"prior": prior}, {"name": objective, "samples": 2}, IMAGES.shape[1:])
    with fake_gpu() if device is GPU else Watch() as watch:
        loss, images = loss.to(device), IMAGES.to(device)
        with watch.never_waits():
            torch.autograd.backward(loss(images)["loss"].mean())
    weights = list(loss.parameters())
    assert [weight.grad.shape for weight in weights if weight.grad is not None] == [weight.shape for weight in weights]


@needs_cuda_build
@pytest.mark.parametrize("binarization", ["dynamic", "none"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_held_out_batch_waits_for_nothing(objective: str, binarization: str) -> None:
    kind = "autoencoder" if ("vae", objective) in REFUSED else "vae"
    loss = small_loss(KINDS[kind] | FEW, {"name": objective}, IMAGES.shape[1:], binarization)
    with fake_gpu() as gpu:
        loss, images = loss.to(GPU), IMAGES.to(GPU)
        gpu.waits.clear()
        terms = loss.validate(images)
    assert {values.device.type for values in terms.values()} == {"cuda"}
    assert gpu.waits == []


# The watch itself


def wait_for_a_number(terms: Terms) -> None:
    terms["loss"].sum().item()


def wait_for_a_condition(terms: Terms) -> None:
    assert terms["loss"].isfinite().all()


def wait_for_numbers(terms: Terms) -> None:
    terms["loss"].tolist()


def copy_to_the_cpu(terms: Terms) -> None:
    terms["loss"].cpu()


def copy_a_constant(terms: Terms) -> None:
    torch.tensor([0.5], device=terms["loss"].device)


def copy_in_place(terms: Terms) -> None:
    terms["loss"].detach().copy_(torch.zeros(4))


def add_a_tensor_of_the_cpu(terms: Terms) -> None:
    terms["loss"] + torch.zeros(4)


def choose_by_rows_of_the_cpu(terms: Terms) -> None:
    terms["loss"][torch.tensor([0, 1])]


def multiply_by_weights_of_the_cpu(terms: Terms) -> None:
    torch.nn.functional.linear(terms["loss"], torch.zeros(1, 4))


def draw_from_a_generator_of_the_cpu(terms: Terms) -> None:
    torch.rand(4, device=terms["loss"].device, generator=torch.Generator())


def find_rows(terms: Terms) -> None:
    terms["loss"].nonzero()


WAITS = {
    wait_for_a_number: "number",
    wait_for_a_condition: "number",
    wait_for_numbers: "numbers",
    copy_to_the_cpu: "cuda to cpu",
    copy_a_constant: "cpu to cuda",
    copy_in_place: "cpu to cuda",
}
REFUSALS = {
    add_a_tensor_of_the_cpu: "tensors on cpu and {device}|two different devices|at least two devices",
    choose_by_rows_of_the_cpu: "tensors on cpu and {device}",
    multiply_by_weights_of_the_cpu: "tensors on cpu and {device}",
    draw_from_a_generator_of_the_cpu: "a generator on cpu, a tensor on {device}",
}


class Careless(torch.nn.Module):
    """A loss that does something else, too."""

    def __init__(self, more: Callable[[Terms], Any]) -> None:
        super().__init__()
        self.loss, self.more = loss_of("vae", "mlp", "bernoulli", "elbo"), more

    def forward(self, images: Tensor) -> Terms:
        terms: Terms = self.loss(images)
        self.more(terms)
        return terms


@needs_cuda_build
@pytest.mark.parametrize("more", WAITS)
def test_a_loss_that_waits_is_caught(more: Callable[[Terms], None]) -> None:
    loss = Careless(more)
    with fake_gpu() as gpu:
        loss, images = loss.to(GPU), IMAGES.to(GPU)
        with pytest.raises(AssertionError), gpu.never_waits():
            loss(images)
        assert gpu.waits[-1] == f"{more.__name__}: {WAITS[more]}"


@needs_cuda_build
@pytest.mark.parametrize("more", REFUSALS)
def test_a_loss_that_mixes_devices_is_caught(more: Callable[[Terms], None]) -> None:
    loss = Careless(more)
    with fake_gpu():
        loss, images = loss.to(GPU), IMAGES.to(GPU)
        with pytest.raises(RuntimeError, match=REFUSALS[more].format(device="cuda")):
            loss(images)


@pytest.mark.parametrize("more", REFUSALS)
def test_a_loss_on_meta_that_mixes_devices_is_caught(more: Callable[[Terms], None]) -> None:
    loss = Careless(more).to(META)
    with Watch(), pytest.raises(RuntimeError, match=REFUSALS[more].format(device="meta")):
        loss(IMAGES.to(META))


class _Sloppy(torch.autograd.Function):
    """The identity, whose gradient waits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * gradient.sum().item()


def test_a_gradient_that_waits_is_caught() -> None:
    x = torch.zeros(3, device=META, requires_grad=True)
    with Watch() as watch:
        torch.autograd.backward(_Sloppy.apply(x).sum())
    assert watch.waits == ["_Sloppy.backward: number"]


@needs_cuda_build
def test_a_loss_whose_shape_depends_on_numbers_is_caught() -> None:
    from torch._subclasses.fake_tensor import DynamicOutputShapeException

    loss = Careless(find_rows)
    with fake_gpu():
        loss, images = loss.to(GPU), IMAGES.to(GPU)
        with pytest.raises(DynamicOutputShapeException):
            loss(images)


@needs_cuda_build
def test_only_a_copy_from_pinned_memory_that_is_not_waited_for_is_free() -> None:
    x = torch.zeros(3)
    with fake_gpu() as gpu:
        x = x.clone()
        x.pin_memory().to(GPU, non_blocking=True)
        assert gpu.waits == []
        x.clone().to(GPU, non_blocking=True)
        x.pin_memory().to(GPU)
        torch.zeros(3, device=GPU).copy_(x.pin_memory(), non_blocking=True)
        place = "test_only_a_copy_from_pinned_memory_that_is_not_waited_for_is_free"
        assert gpu.waits == [f"{place}: cpu to cuda"] * 2
