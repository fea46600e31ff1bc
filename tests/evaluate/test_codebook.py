import math

import pytest
import torch
from subjects import scored, some_data, some_model, some_split

from reparam.evaluate.codebook import codebook_collapse, codebook_use
from reparam.evaluate.measures import measure
from reparam.evaluate.samplers import frequencies
from reparam.evaluate.subject import Subject
from reparam.models.priors import StandardNormal
from reparam.models.quantized import Quantized

LABELS = [0, 1, 2, 0, 1, 2, 0, 1]


def subject_of(kind: str, **changes: object) -> Subject:
    model = some_model(kind=kind, latent=8, likelihood="gaussian", codes=16, levels=[4, 4, 4, 4]).requires_grad_(False)
    return scored(model, some_data(some_split(LABELS)), **changes)


def test_codes_that_are_all_as_frequent_have_a_perplexity_of_their_number() -> None:
    found = codebook_use(torch.arange(16).view(8, 2), 16)
    assert found == pytest.approx(
        {"codebook_usage": 1.0, "codebook_perplexity": 16.0, "code_bits": 8.0, "code_entropy_bits": 8.0}
    )


def test_one_code_for_all_has_a_perplexity_of_one() -> None:
    found = codebook_use(torch.full((5, 3), 7), 16)
    assert found == {"codebook_usage": 1 / 16, "codebook_perplexity": 1.0, "code_bits": 12.0, "code_entropy_bits": 0.0}


def test_an_entropy_is_that_of_the_shares_of_codes() -> None:
    found = codebook_use(torch.tensor([[0, 0], [0, 0], [1, 1], [2, 0]]), 4)  # 5, 2 and 1 of 8
    entropy = -sum(share * math.log2(share) for share in (5 / 8, 2 / 8, 1 / 8))
    assert found["code_entropy_bits"] == pytest.approx(2 * entropy)
    assert found["codebook_perplexity"] == pytest.approx(2**entropy)


def test_a_codebook_of_which_images_have_few_codes_is_reported_where_they_could_have_all() -> None:
    [message] = codebook_collapse(torch.zeros(20, 1, dtype=torch.int64), 20)
    assert message.startswith("codebook collapse: the images have 1 of 20 codes; try ")
    assert codebook_collapse(torch.zeros(19, 1, dtype=torch.int64), 20) == []
    assert codebook_collapse(torch.tensor([[0], [1]]).expand(2, 10), 20) == []


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_what_needs_a_distribution_of_codes_is_left_out(kind: str) -> None:
    subject = subject_of(kind)
    found = measure(subject, None).metrics
    model = subject.model
    assert isinstance(model, Quantized)
    wanted = codebook_use(model.codebook.codes(subject.scores.means.float()), model.quantizer.size)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=5e-5)
    assert not {"elbo", "nll", "kl", "mutual_information", "bits_per_dim"} & found.keys()
    assert {"reconstruction", "active_units"} <= found.keys()


def test_frequencies_draw_each_position_by_itself() -> None:
    codes = torch.tensor([[[0.0, 1.0], [4.0, 5.0]], [[2.0, 3.0], [6.0, 7.0]]])
    torch.manual_seed(0)
    drawn = frequencies(4_000, StandardNormal(4), lambda: codes)
    shares = {
        (first, second): (drawn[:, :, 0] == torch.tensor([first, second])).all(1).double().mean().item()
        for first in (0.0, 2.0)
        for second in (4.0, 6.0)
    }
    assert torch.equal(drawn[..., 1], drawn[..., 0] + 1)  # the numbers of a code stay together
    assert list(shares.values()) == pytest.approx([0.25] * 4, abs=5 * (0.25 * 0.75 / 4_000) ** 0.5)


def test_samples_are_made_of_codes_of_training_images() -> None:
    subject = subject_of("fsq", sampler="frequencies")
    model = subject.model
    assert isinstance(model, Quantized)
    known, drawn = model.codebook.codes(subject.scores.means.float()), model.codebook.codes(subject.codes(50))
    for position in range(2):
        assert set(drawn[:, position].tolist()) <= set(known[:, position].tolist())


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_pictures_are_of_latents_that_the_codebook_has(kind: str) -> None:
    subject, z = subject_of(kind), torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    model = subject.model
    assert isinstance(model, Quantized)
    assert (subject.decode_usual(z) == subject.decode_usual(model.codebook.nearest(z))).all()
    assert not torch.equal(model.decode(z), model.decode(model.codebook.nearest(z)))
    vectors = subject.encode(some_split([0] * 4))
    wanted = subject.data.pixels.unscaled(model.decode(vectors))
    assert torch.equal(torch.from_numpy(subject.decode_usual(vectors)), wanted)
