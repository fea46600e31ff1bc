"""`params.yaml`, read into frozen models: one class per section, no defaults, nothing unknown.

A default kept in code would be a number that DVC cannot see, so every parameter stands in the file.
"""

import ast
import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from reparam.errors import ParamsError
from reparam.redact import parameter_without_secrets


def _key_of(table: str, module: str) -> AfterValidator:
    """Accept the keys of a dict in another module, which is read as text: to import it would import torch.

    So the names stand in that dict alone, and a wrong one is still listed with all other mistakes.
    """

    def check(name: str) -> str:
        tree = ast.parse((Path(__file__).parent / module).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and target.id == table:
                names = [ast.literal_eval(key) for key in node.value.keys]  # type: ignore[attr-defined]
                if name not in names:
                    raise ValueError("one of " + ", ".join(map(repr, names)))
                return name
        raise AssertionError(f"{module}: no dict {table}")

    return AfterValidator(check)


SHARE = "a fraction below 1, or a whole number of images"
MAYBE_SHARE = f"0, {SHARE}"


def _check_share(value: Any) -> float | int:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    is_fraction = isinstance(value, float) and 0 < value < 1
    if not is_count and not is_fraction:
        raise ValueError(SHARE)
    return value  # type: ignore[no-any-return]


def _check_maybe_share(value: Any) -> float | int:
    if value == 0 and not isinstance(value, bool):
        return value  # type: ignore[no-any-return]
    try:
        return _check_share(value)
    except ValueError:
        raise ValueError(MAYBE_SHARE) from None


Share = Annotated[float | int, PlainValidator(_check_share), Field(description=SHARE)]
MaybeShare = Annotated[float | int, PlainValidator(_check_maybe_share), Field(description=MAYBE_SHARE)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and numpy both take
# A YAML list arrives as a Python list; the tuples keep the model frozen, and their items stay strict.
Widths = Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
MaybeWidths = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
Epochs = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Decay, ...], Field(strict=False, min_length=2, max_length=2)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]


class Section(BaseModel):
    """A strict, frozen, fully spelled-out group of parameters."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class DownloadConfig(Section):
    """Section `download`."""

    source: Annotated[str, _key_of("SOURCES", "data/sources/registry.py")]
    variant: str | None  # which part of a source that has several: EMNIST
    path: str | None  # of source `folder`: a directory tree of images, or a .zip or .tar of one
    mirrors: Strings  # tried before the published addresses: directories, file://, http:// or https:// bases


class PreprocessConfig(Section):
    """Section `preprocess`."""

    seed: Seed  # of the split, and of the pixels under `static`
    image_size: PositiveInt | None  # pixels: resize the shorter side and crop the centre; null: as they are
    channels: Literal[1, 3]
    classes: Annotated[Strings, Field(min_length=1)] | None  # names of the classes to keep; null: all
    validation: MaybeShare  # of the training images; chooses when training stops; 0: trains on all, to the last epoch
    test: Share  # of all images, where the source publishes no test split; scored once, by `evaluate`
    limit: PositiveInt | None  # images per split at most, for smoke runs; null: all
    binarization: Literal["none", "threshold", "static", "dynamic"]
    scaling: Literal["unit", "symmetric", "standard"]  # pixels in [0, 1], in [-1, 1], or of mean 0 and variance 1
    on_error: Literal["fail", "skip"]  # what an unreadable image does


class ModelConfig(Section):
    """Section `model`. A parameter `of` some choice is ignored under the others: one `-S` can change the choice."""

    kind: Literal["autoencoder", "vae", "hierarchical"]
    network: Literal["mlp", "conv"]
    channels: Widths  # of conv: channels of each strided convolution; the decoder mirrors them
    kernel: PositiveInt  # of conv: pixels
    stride: PositiveInt  # of conv: pixels
    hidden: MaybeWidths  # units of each fully connected layer of the encoder
    decoder_hidden: MaybeWidths | None  # null: those of the encoder, in reverse
    activation: Annotated[str, _key_of("ACTIVATIONS", "models/networks.py")]
    norm: Literal["none", "batch", "layer"]
    init: Literal["torch", "glorot"]  # torch's own, or uniform weights and zero biases (Glorot & Bengio 2010)
    start_at_mean: bool  # whether the untrained decoder's bias is the mean training image; of conv: per channel
    code: Literal["linear", "sigmoid"]  # of autoencoder: what the decoder is given
    latent: PositiveInt  # D; of hierarchical: of the layer next to the image
    upper: Widths  # of hierarchical: D of each layer of latents above it
    upper_hidden: MaybeWidths  # of hierarchical: units of each network between two layers of latents
    inference: Literal["bottom_up", "top_down"]  # of hierarchical
    likelihood: Annotated[str, _key_of("LIKELIHOODS", "models/likelihoods.py")]
    output: Literal["linear", "sigmoid"]  # of gaussian* and laplace: how the decoder's output becomes the mean
    sigma: Annotated[
        float, Field(ge=1e-3, le=1e3)
    ]  # standard deviation of gaussian and laplace; gaussian_learned starts from it
    components: PositiveInt  # of logistic_mixture


class ObjectiveConfig(Section):
    """Section `objective`. A parameter `of` some objectives is ignored by the others."""

    name: Annotated[str, _key_of("OBJECTIVES", "objectives.py")]
    samples: PositiveInt  # posterior samples per image and step; of iwae and dreg: K of the bound
    beta: NonNegativeFloat  # weight of the KL, of beta_tc: of the total correlation; 1 is the ELBO
    kl: Literal["analytic", "monte_carlo"]
    free_bits: NonNegativeFloat  # nats of KL that are free in each latent dimension, as a mean over the batch
    warmup: Literal["none", "linear", "cyclic"]  # how beta rises from 0
    warmup_epochs: PositiveInt  # until beta is reached; of cyclic: length of a cycle, beta is reached in its middle
    weight: NonNegativeFloat  # of sparse, contractive and mmd: of the penalty; of capacity: of the distance to it
    capacity: NonNegativeFloat  # of capacity: nats of KL wanted in the end
    capacity_epochs: PositiveInt  # of capacity: how long the wanted KL rises from 0
    noise: Literal["gaussian", "salt_and_pepper", "masking"]  # of denoising: what is done to the input
    noise_level: NonNegativeFloat  # of denoising: standard deviation, or share of the pixels
    sparsity: Literal["l1", "kl"]  # of sparse
    rho: Annotated[float, Field(gt=0, lt=1)]  # of sparsity kl: wanted mean activation


class TrainConfig(Section):
    """Section `train`."""

    seed: Seed
    batch_size: PositiveInt  # images per optimizer step
    epochs: PositiveInt  # at most
    patience: PositiveInt  # epochs without a better validation score before stopping
    min_delta: NonNegativeFloat  # nats by which a score must be better to count as better
    monitor: Literal["loss", "elbo"]  # what a better score is: the objective at the end of its schedules, or the ELBO
    optimizer: Annotated[str, _key_of("OPTIMIZERS", "train/optimizers.py")]
    learning_rate: PositiveFloat
    betas: Betas  # of adam, adamw, adamax: decay of the two moments
    epsilon: Annotated[float, Field(ge=1e-30)]  # of adam, adamw, adamax, rmsprop
    momentum: Annotated[float, Field(ge=0, lt=1)]  # of sgd, rmsprop
    weight_decay: NonNegativeFloat
    schedule: Literal["constant", "cosine", "step", "milestones"]  # of the learning rate
    milestones: Epochs  # of milestones: epochs after which it is multiplied; of step: the one period
    factor: Annotated[float, Field(gt=0, lt=1)]  # of step, milestones
    warmup_epochs: NonNegativeFloat  # the learning rate rises from 0 for so long
    clip_norm: PositiveFloat | None  # longest gradient; null: as they come
    average: Decay  # of a moving average of the weights, which is scored and kept; 0: none
    on_nonfinite: Literal["stop", "rollback"]  # rollback: to the last good epoch, with half the learning rate
    precision: Literal["fp32", "tf32", "bf16_matmul", "bf16"]  # of training; evaluation is always in fp32
    channels_last: bool  # of conv: memory format
    compile: bool  # through torch.compile
    cuda_graph: bool  # on a GPU: steps are replayed from a CUDA graph
    deterministic: bool  # on a GPU: only kernels whose result is the same each time
    pictures_every: NonNegativeInt  # epochs between pictures of training, in MLflow; 0: none


class EvaluateConfig(Section):
    """Section `evaluate`."""

    seed: Seed
    batch_size: PositiveInt
    elbo_samples: PositiveInt  # posterior samples per image
    nll_samples: PositiveInt  # importance samples per image, K
    split: Literal["train", "validation", "test"]  # what is scored
    precision: Literal["fp32", "tf32", "bf16_matmul", "bf16"]
    memory_mb: PositiveInt  # about what scoring takes, whatever the number of samples
    active_variance: PositiveFloat  # a latent dimension is active when Var_x(E[z|x]) exceeds this
    neighbours: PositiveInt  # of accuracies and of sample quality
    generated: NonNegativeInt  # images that are generated and compared with real ones; 0: none
    components: PositiveInt  # principal components of pixels, where generated and real images are compared
    inception_weights: str | None  # file of torchvision's inception_v3, for a FID; null: none
    outliers: str | None  # a data/processed of other images, that the NLL should tell from the test images; null: none
    annealed_images: NonNegativeInt  # images whose likelihood annealed importance sampling checks; 0: none
    annealed_chains: PositiveInt  # per image
    annealed_steps: PositiveInt  # temperatures between prior and posterior
    grid_steps: Annotated[int, Field(ge=2, le=40)]  # images per side of the latent grid
    grid_range: PositiveFloat  # the grid spans +- this many standard deviations of the prior
    grid_plane: Literal["dimensions", "principal"]  # the two dimensions in most use, or principal components
    sampler: Annotated[str, _key_of("SAMPLERS", "evaluate/samplers.py")]  # where generated images start from
    mixture_components: PositiveInt  # of sampler mixture


class ExportConfig(Section):
    """Section `export`."""

    opset: Annotated[int, Field(ge=18, le=23)]  # what torch's exporter writes and onnxruntime runs
    grey_pixels: Literal["keep", "threshold"]  # what the exported encoder does with values between black and white


class ReportConfig(Section):
    """Section `report`."""

    title: Annotated[str, Field(min_length=1)]


class Config(Section):
    """The whole of `params.yaml`."""

    download: DownloadConfig
    preprocess: PreprocessConfig
    model: ModelConfig
    objective: ObjectiveConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    report: ReportConfig


def load_config(path: Path) -> Config:
    """Read and check `params.yaml`.

    Raises: ParamsError that lists every wrong parameter with its path, what was wanted and what was found.
    """
    try:
        # ruamel reads YAML 1.2, where 1e-05 (as `dvc exp run -S` writes it) is a number; PyYAML reads a string.
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run from the root of the project, where params.yaml stands") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: wanted sections of parameters, found {values!r}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        parents = {item["loc"][:-1] for item in found}
        # pydantic does not count a wrong item, so a list that holds one may pass for too short.
        problems = [_describe(item) for item in found if item["type"] != "too_short" or item["loc"] not in parents]
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ParamsError(f"{path}: {count}\n" + "\n".join(f"  {p}" for p in problems)) from None


def flatten(section: Section, prefix: str = "") -> dict[str, Any]:
    """Name every parameter by its dotted path and spell it as params.yaml does, to be shown: without credentials."""
    flat: dict[str, Any] = {}
    for name, value in section:
        path = f"{prefix}{name}"
        if isinstance(value, Section):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = parameter_without_secrets(list(value) if isinstance(value, tuple) else value)
    return flat


def params_hash(values: dict[str, Any]) -> str:
    """Hash parameters by value: neither the order nor the layout of the file changes it."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _describe(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{path}: missing; wanted {_wanted(problem['loc'])}"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(problem["loc"][-1]), _known(problem["loc"][:-1]), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; remove it"
        return f"{path}: unknown parameter, found {problem['input']!r}{hint}"
    if problem["type"] == "model_type":
        return f"{path}: wanted a section of parameters, found {problem['input']!r}"
    if problem["type"] == "tuple_type":
        return f"{path}: wanted a list, found {problem['input']!r}"
    if problem["type"] == "too_short":
        return f"{path}: wanted at least {problem['ctx']['min_length']} items, found {problem['input']!r}"
    if problem["type"] == "too_long":
        return f"{path}: wanted at most {problem['ctx']['max_length']} items, found {problem['input']!r}"
    message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{path}: wanted {message}, found {problem['input']!r}"


def _known(parents: tuple[int | str, ...]) -> list[str]:
    fields = Config.model_fields
    if parents:
        section = fields[str(parents[0])].annotation
        assert isinstance(section, type)
        assert issubclass(section, Section)
        fields = section.model_fields
    return list(fields)


def _wanted(location: tuple[int | str, ...]) -> str:
    schema = Config.model_json_schema()
    definition = schema
    for part in location:
        definition = definition["properties"][str(part)]
        if "$ref" in definition:
            definition = schema["$defs"][definition["$ref"].rsplit("/", 1)[-1]]
    return _describe_type(definition)


def _describe_type(definition: Mapping[str, Any]) -> str:
    if "anyOf" in definition:
        return " or ".join(_describe_type(option) for option in definition["anyOf"])
    if "enum" in definition:
        return "one of " + ", ".join(map(repr, definition["enum"]))
    if "type" not in definition:
        return str(definition["description"])
    names = {"object": "a section", "array": "a list", "null": "null"}
    return names.get(definition["type"], f"a value of type {definition['type']}")
