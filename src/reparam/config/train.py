"""Section `train`."""

from typing import Annotated, Literal

from pydantic import Field

from reparam.config.section import Count, Counts, Decay, KeyOf, NotNegative, Positive, Section, Seed


class AdamConfig(Section):
    """Blocks `adam`, `adamw` and `adamax`."""

    betas: Annotated[tuple[Decay, ...], Field(strict=False, min_length=2, max_length=2)]
    """Decay of the averages of the gradient and of its square."""

    epsilon: Annotated[float, Field(ge=1e-30, le=1)]
    """Added to the root of the average square, by which is divided, so that it is never 0."""


class SgdConfig(Section):
    """Block `sgd`."""

    momentum: Decay
    """Share of the previous step that is added to the next one."""


class RmspropConfig(SgdConfig):
    """Block `rmsprop`."""

    epsilon: Annotated[float, Field(ge=1e-30, le=1)]
    """Added to the root of the average square, by which is divided, so that it is never 0."""


class Decayed(Section):
    """The common part of blocks `step` and `milestones`."""

    factor: Annotated[float, Field(gt=0, lt=1)]
    """Factor of the learning rate, each time."""


class StepConfig(Decayed):
    """Block `step`."""

    epochs: Count
    """Epochs from one multiplication to the next."""


class MilestonesConfig(Decayed):
    """Block `milestones`."""

    epochs: Counts
    """Epochs after which the learning rate is multiplied."""


class TrainConfig(Section):
    """The training of the model: steps, stopping, optimizer, learning rate, arithmetic."""

    seed: Seed
    """Seed of weights, order of images, and all random numbers of training."""

    batch_size: Count
    """Images per optimizer step."""

    epochs: Count
    """Epochs, at most."""

    patience: Count
    """Training stops after this many epochs without a better validation score."""

    min_delta: NotNegative
    """Smallest improvement of the score that counts, in nats."""

    monitor: Literal["loss", "elbo"]
    """Validation score that chooses the kept epoch: the objective with all schedules at their end, or the ELBO."""

    optimizer: Annotated[str, KeyOf("OPTIMIZERS", "train/optimizers.py")]
    """Rule that turns gradients into steps."""

    learning_rate: Positive
    """Learning rate before its schedule."""

    weight_decay: NotNegative
    """Weight of the penalty on squared weights; adamw decays the weights themselves."""

    schedule: Annotated[str, KeyOf("SCHEDULES", "train/optimizers.py")]
    """How the learning rate changes with the epochs. Source: Loshchilov & Hutter 2017, eq. 5 (cosine)."""

    warmup_epochs: NotNegative
    """Epochs over which the learning rate rises, from nearly 0."""

    clip_norm: Positive | None
    """Largest norm of the gradient: a longer one is shortened to it; null sets no limit."""

    average: Decay
    """Decay of a moving average of the weights: this average is scored and kept; 0 keeps the weights themselves."""

    on_nonfinite: Literal["stop", "rollback"]
    """After a loss that is not finite: stop, or return to the last good epoch with half the learning rate."""

    precision: Literal["fp32", "tf32", "bf16_matmul", "bf16"]
    """Arithmetic: full float32; rounded factors in matrix products (tf32: on a GPU); or bf16 by autocast."""

    channels_last: bool
    """Whether the channels of a pixel lie side by side in memory, which can make network conv faster."""

    compile: bool
    """Whether torch.compile compiles the step: faster epochs, after a minute of compiling."""

    cuda_graph: bool
    """On a GPU, whether steps are replayed from a CUDA graph."""

    deterministic: bool
    """On a GPU, whether to run only kernels that give the same result each time."""

    adam: AdamConfig
    """For optimizer adam."""

    adamw: AdamConfig
    """For optimizer adamw."""

    adamax: AdamConfig
    """For optimizer adamax."""

    sgd: SgdConfig
    """For optimizer sgd."""

    rmsprop: RmspropConfig
    """For optimizer rmsprop."""

    step: StepConfig
    """For schedule step."""

    milestones: MilestonesConfig
    """For schedule milestones."""
