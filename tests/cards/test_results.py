"""What `read_training` makes of a table of epochs."""

import hashlib
from pathlib import Path

import pytest
from some_cards import model_card

from reparam.cards.model import TrainingMetrics
from reparam.cards.results import read_training
from reparam.errors import DamagedInputError, MissingInputError
from reparam.paths import Paths

TABLE = b"epoch,train_loss\n1,9.5\n2,8.25\n"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """A model that was trained for two epochs."""
    found = Paths(tmp_path, tmp_path)
    found.history.parent.mkdir(parents=True)
    found.history.write_bytes(TABLE)
    digest = hashlib.sha256(TABLE).hexdigest()
    metrics = TrainingMetrics.of(model_card().lineage, {"best_epoch": 2, "epochs": 2}, history_sha256=digest)
    metrics.write(found.training_metrics)
    return found


def test_the_metrics_of_a_training_are_numbers_alone(paths: Paths) -> None:
    found = read_training(model_card(), paths)
    assert found.values == {"best_epoch": 2, "epochs": 2}
    assert found.history_sha256 == hashlib.sha256(TABLE).hexdigest()


def test_the_epochs_of_another_training_are_refused(paths: Paths) -> None:
    paths.history.write_bytes(TABLE.replace(b"8.25", b"8.26"))
    with pytest.raises(DamagedInputError, match=r"history.csv: wanted the epochs of this training, SHA-256 .*, found "):
        read_training(model_card(), paths)


def test_a_table_that_is_not_there_names_the_stage_that_writes_it(paths: Paths) -> None:
    paths.history.unlink()
    with pytest.raises(MissingInputError, match=r"history.csv: not found; run `dvc repro train` first"):
        read_training(model_card(), paths)
