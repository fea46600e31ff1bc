import math

import pytest
import torch
from training import equal, train_config

from reparam.train.record import Record


def record_of(*losses: float, best_epoch: int = 0) -> Record:
    """A record of epochs with these validation losses."""
    record = Record()
    for epoch, loss in enumerate(losses, 1):
        record.add({"epoch": float(epoch), "validation_loss": loss})
    record.best_epoch = best_epoch
    return record


@pytest.mark.parametrize(
    ("rows", "best_epoch", "is_over"),
    [
        (0, 0, False),
        (2, 2, False),
        (4, 3, False),  # one epoch without a better one, of two
        (4, 2, True),
        (5, 5, True),  # as many epochs as wanted
        (6, 6, True),  # more than wanted, which a changed params.yaml might bring
    ],
)
def test_training_is_over_after_all_epochs_or_where_patience_ends(rows: int, best_epoch: int, is_over: bool) -> None:
    record = record_of(*[1.0] * rows, best_epoch=best_epoch)
    assert record.is_over(train_config(epochs=5, patience=2)) == is_over


def test_without_validation_patience_never_ends_training() -> None:
    record = record_of(best_epoch=1)
    for _ in range(4):
        record.add({"epoch": 1.0, "train_loss": 1.0})
    assert not record.is_over(train_config(epochs=5, patience=1))


def test_what_is_kept_is_a_copy_of_the_last_epochs_weights() -> None:
    record, weight = record_of(3.0, 2.0), torch.tensor([1.0, 2.0])
    assert (record.best_score, record.best_epoch, record.best_weights) == (math.inf, 0, {})
    record.keep(2.0, {"w": weight})
    weight += 1  # in place, as an optimizer does
    record.add({"epoch": 3.0, "validation_loss": 4.0})
    assert (record.best_score, record.best_epoch) == (2.0, 2)
    assert record.best_weights["w"].tolist() == [1.0, 2.0]


def test_a_record_goes_on_from_a_state_that_it_leaves_as_it_was() -> None:
    record = record_of(3.0, 2.0)
    record.keep(2.0, {"w": torch.ones(2)})
    state, other = record.state_dict(), record_of(9.0)
    other.load_state_dict(state)
    assert equal(other.state_dict(), state)
    other.add({"epoch": 3.0, "validation_loss": 1.0})
    other.keep(1.0, {"w": torch.zeros(2)})
    assert (len(record.history), record.best_score, record.best_epoch) == (2, 2.0, 2)
    assert record.best_weights["w"].tolist() == [1.0, 1.0]
