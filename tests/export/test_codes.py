"""The export of models whose codes are entries of a codebook."""

import numpy as np
import onnxruntime
import pytest
import torch
from exported_model import Exported, torch_images

from reparam.cards.export import CodebookFacts, ExportCard
from reparam.client import Client
from reparam.errors import ParityError
from reparam.explorer.page import render
from reparam.export import triton, verify
from reparam.models.quantized import Quantized
from reparam.shell.verify import verify as verify_files

pytest_plugins = ["fixtures_export"]


@pytest.fixture
def manifest(quantized: Exported) -> ExportCard:
    return ExportCard.read(quantized.directory / "manifest.json", "export")


def test_the_encoder_puts_out_vectors_and_codes_and_there_is_no_score(
    manifest: ExportCard, quantized: Exported
) -> None:
    assert list(manifest.graphs) == ["encoder", "decoder"]
    mean, codes = manifest.graphs["encoder"].outputs
    assert (mean.name, mean.dtype, mean.shape, mean.unit) == ("mean", "float32", ("batch", 6), "as in codebook.npz")
    assert (codes.name, codes.dtype, codes.shape) == ("codes", "int64", ("batch", 2))
    assert isinstance(quantized.model, Quantized)
    assert codes.range == (0, quantized.model.quantizer.size - 1)
    assert manifest.codebook == CodebookFacts(codes=quantized.model.quantizer.size, positions=2, dimensions=3)
    assert (manifest.has_prior, manifest.prior, manifest.scores) == (False, None, None)


def test_the_table_has_the_vectors_of_all_codes(quantized: Exported) -> None:
    assert isinstance(quantized.model, Quantized)
    with np.load(quantized.directory / "codebook.npz") as arrays:
        table = arrays["vectors"]
        assert arrays.files == ["vectors"]
    np.testing.assert_array_equal(table, quantized.model.quantizer.vectors().numpy())
    assert "codebook.npz" in ExportCard.read(quantized.directory / "manifest.json", "export").files


def test_the_scale_factor_is_that_of_the_vectors(manifest: ExportCard, quantized: Exported) -> None:
    with torch.no_grad():
        vectors = quantized.model.posterior(quantized.pixels.scaled(torch_images(quantized.images)))[0]
    assert manifest.codes is not None
    assert manifest.codes.scale_factor == pytest.approx(1 / vectors.std(correction=0).item(), rel=1e-4)


def test_golden_answers_have_codes_and_are_verified(quantized: Exported) -> None:
    with np.load(quantized.directory / "golden.npz") as golden:
        codes, mean = golden["codes"], golden["mean"]
    assert (codes.dtype, codes.shape) == (np.int64, (8, 2))
    np.testing.assert_array_equal(Client(quantized.directory, device="cpu").vectors(codes), mean)
    assert "encoder, codes: largest difference 0" in list(verify_files(quantized.directory))


def test_codes_may_depend_on_a_label(quantized_conditional: Exported) -> None:
    model, images = quantized_conditional.model, quantized_conditional.images
    assert isinstance(model, Quantized)
    client, labels = Client(quantized_conditional.directory, device="cpu"), np.arange(len(images)) % 3
    with torch.no_grad():
        x = quantized_conditional.pixels.scaled(torch_images(images))
        wanted = model.codebook.codes(model.posterior(x, torch.from_numpy(labels))[0])
    codes = client.encode_codes(images, labels)
    np.testing.assert_array_equal(codes, wanted.numpy())
    assert (codes != client.encode_codes(images, 0)).any()
    assert "encoder, codes: largest difference 0" in list(verify_files(quantized_conditional.directory))


def test_each_pixel_of_an_image_of_latents_is_a_code(codes_of_pixels: Exported) -> None:
    facts = ExportCard.read(codes_of_pixels.directory / "manifest.json", "export")
    assert (facts.latent_shape, facts.codebook) == ((3, 2, 3), CodebookFacts(codes=9, positions=6, dimensions=3))
    client = Client(codes_of_pixels.directory, device="cpu")
    codes, (mean, _) = client.encode_codes(codes_of_pixels.images), client.encode(codes_of_pixels.images)
    with np.load(codes_of_pixels.directory / "codebook.npz") as arrays:
        table = arrays["vectors"]
    wanted = table[codes.reshape(-1, 2, 3)].transpose(0, 3, 1, 2)  # (B, h, w, d) -> (B, d, h, w)
    np.testing.assert_array_equal(client.vectors(codes), wanted)
    np.testing.assert_array_equal(mean, wanted)
    np.testing.assert_array_equal(client.decode(codes=codes), client.decode(mean))


def test_every_code_is_found_from_its_vectors_by_the_page_and_triton_knows_its_type(quantized: Exported) -> None:
    assert "All is computed in this page." in render(quantized.directory)
    assert '  name: "codes"\n  data_type: TYPE_INT64\n  dims: [ 2 ]' in triton.configuration(
        "encoder", quantized.graphs()["encoder"].facts
    )


class Rounded:
    """A runtime that takes so many codes of the encoder for others."""

    def __init__(self, wrong: int) -> None:
        self.wrong = wrong

    def run(self, path: object, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = dict(zip(outputs, session.run(outputs, inputs), strict=True))
        if "codes" in found and len(found["codes"]) > 2:  # not the extremes
            rows = slice(0, self.wrong)
            found["codes"][rows, 0] += 1
            found["mean"][rows, :3] += 0.5
        return list(found.values())


def test_a_vector_between_two_codes_may_be_rounded_to_either_but_not_many(quantized: Exported) -> None:
    graphs, images = quantized.graphs(), quantized.images
    errors = verify.measure_parity(graphs, Rounded(1), quantized.directory, images, seed=0)  # type: ignore[arg-type]
    assert errors["encoder_max_error"] < 1e-5
    with pytest.raises(
        ParityError, match=r"^export: encoder\.onnx, batch of 17: wanted the codes of torch, at most one "
    ):
        verify.measure_parity(graphs, Rounded(2), quantized.directory, images, seed=0)  # type: ignore[arg-type]
