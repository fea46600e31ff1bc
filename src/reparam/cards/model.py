"""The card of a trained model, and the base of cards that refer to it."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import ConfigDict, Field

from reparam.cards.card import SHORT, Card, DirectoryHash, Hash, Number, SealedCard, facts_of
from reparam.cards.data import ImageFacts
from reparam.config import Config, ModelConfig, ObjectiveConfig, TrainConfig, params_hash
from reparam.config.section import Count
from reparam.errors import NonFiniteError, StaleInputError


class TrainedParams(Card):
    """The parameters that determine the weights of a model."""

    model: ModelConfig
    objective: ObjectiveConfig
    train: TrainConfig

    @classmethod
    def of(cls, owner: "Config | TrainedParams") -> "TrainedParams":
        return TrainedParams(model=owner.model, objective=owner.objective, train=owner.train)

    @property
    def hash(self) -> str:
        """Return the SHA-256 of the values, which identifies these parameters."""
        return params_hash(TrainedParams.of(self).model_dump(mode="json"))


class TrainingLineage(Card):
    """The origin of weights."""

    data: DirectoryHash
    data_card_sha256: Hash  # its checksum
    code_sha256: Hash
    params_sha256: Hash
    weights_sha256: Hash

    @property
    def weights(self) -> str:
        """Return the first digits of the hash of the weights, which name the model in messages and tables."""
        return self.weights_sha256[:SHORT]


class ModelCard(TrainedParams, SealedCard):
    """A trained model: its parameters, what it was trained on, and what can be done with it."""

    data: ImageFacts
    kind_title: str  # what pages call `model.kind`
    classes: tuple[str, ...]  # names of the labels of a conditional model, by their numbers; of other models: none
    latent_size: Count  # numbers that describe an image, all layers together
    latent_shape: tuple[Count, ...]  # (latent_size,), or (C, H, W) of latents that are an image
    has_prior: bool  # whether decoded draws from the model's prior are samples of it
    is_density: bool  # whether the likelihood is a probability density of these pixels
    has_elbo: bool  # whether it has a bound on log p(x): a density, and codes with a distribution
    is_discrete: bool  # whether it is a probability of the 256 grey values
    best_epoch: Count
    epochs: Count
    lineage: TrainingLineage

    @property
    def weights(self) -> str:
        return self.lineage.weights


class Result(Card):
    """A result that a stage computed from a model."""

    @property
    @abstractmethod
    def made_of(self) -> str:
        """The short hash of the model's weights."""

    def is_of(self, model: ModelCard) -> bool:
        """Return whether it was made of this model."""
        return self.made_of == model.weights

    @classmethod
    def read_of(cls, model: ModelCard, path: Path, made_by: str) -> Self:
        """Read the result of the stage `made_by`, and check that it is of this model.

        Raises: MissingInputError, DamagedInputError, StaleInputError.
        """
        result = cls.read(path, made_by)
        if result.is_of(model):
            return result
        found = "the same weights under another card" if result.made_of == model.weights else result.made_of
        raise StaleInputError(
            f"{path}: wanted results of the model in models/vae, weights {model.weights}, found those of {found}; run "
            f"`dvc repro {made_by}`"
        )


class ModelLineage(TrainingLineage):
    """The model that a result was made from; the hash of its card shows whether the card was edited."""

    model_card_sha256: Hash

    @classmethod
    def of(cls, model: ModelCard, **own: str) -> Self:
        """Trace a result to a model and, by `own`, to what made it."""
        return cls(**dict(model.lineage), model_card_sha256=model.digest, **own)


class CardOfResult(Result):
    """A card, which names its model in full."""

    lineage: ModelLineage

    @property
    def made_of(self) -> str:
        return self.lineage.weights

    def is_of(self, model: ModelCard) -> bool:
        lineage = dict(model.lineage, model_card_sha256=model.digest)
        return lineage.items() <= dict(self.lineage).items()


def require_finite(values: Mapping[str, float]) -> None:
    """See that metrics, by name, are numbers that can be reported.

    Raises: NonFiniteError.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{name}: wanted a finite number, found {value}: the model puts out numbers that are too large, or "
                "gives an image no likelihood at all; train it with a lower train.learning_rate, or set train.clip_norm"
            )


class Metrics(Result):
    """Numbers of the model with these weights, by name: some that are always there, and others."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number] = Field(init=False)

    weights: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{SHORT}}}$")]  # short, because `dvc exp show` gives it a column

    @classmethod
    def of(cls, lineage: TrainingLineage, values: Mapping[str, float], **facts: str) -> Self:
        """Name the model that numbers are of; `facts` are other fields.

        Raises: NonFiniteError.
        """
        require_finite(values)
        return cls.model_validate({"weights": lineage.weights, **facts, **values})

    @property
    def values(self) -> dict[str, float]:
        return {name: value for name, value in self if isinstance(value, int | float)}

    @property
    def made_of(self) -> str:
        return self.weights


class TrainingMetrics(Metrics):
    best_epoch: Number
    epochs: Number
    history_sha256: Hash  # of the table of epochs

    def check_history(self, content: bytes) -> bytes:
        """Return the table of epochs.

        Raises: ValueError if it is that of another training.
        """
        found = facts_of(content).sha256
        if found != self.history_sha256:
            raise ValueError(f"wanted the epochs of this training, SHA-256 {self.history_sha256}, found {found}")
        return content
