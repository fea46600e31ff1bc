"""An exported model -> one HTML page that computes it in the browser, from disk and without a network."""

import base64
import html
import json
import re
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from reparam.client.bundle import GOLDEN, Bundle
from reparam.errors import UserError
from reparam.explorer import graph
from reparam.pages.policy import policy

HERE = Path(__file__).parent
SCRIPTS = ("network.js", "code.js", "image.js", "walks.js")
REACH = 3.0  # standard deviations to each side: 99.7 % of a normal distribution


def render(path: Path) -> str:
    """Return the page of a model: a folder, or its decoder alone.

    Raises: UserError if files are missing or damaged, or use operators that the page does not know.
    """
    bundle = Bundle.open(path)
    graphs = {role: _graph(bundle, name) for role in ("encoder", "decoder") if (name := f"{role}.onnx") in bundle.names}
    if "decoder" not in graphs:
        raise UserError(f"{path}: wanted decoder.onnx, found {', '.join(bundle.names)}; give the folder of a model")
    for role, found in graphs.items():
        model = bundle.facts(bundle.directory / f"{role}.onnx", found.pop("metadata"))
    facts = {
        "image": model["image"]["shape"],
        "classes": model.get("classes", []),
        "latent_size": model["latent_size"],
        "latent_shape": model["latent_shape"],
        "prior": _prior(bundle, model),
        "units": _units(model),
        "latents": _latents(model),
        "examples": _examples(bundle),
        **graphs,
    }
    style = _text("style.css")
    script = "".join(map(_text, SCRIPTS))
    return Template(_text("page.html")).substitute(
        title=html.escape(model["title"]),
        description=html.escape(_description(model)),
        policy=policy(f"<style>{style}</style><script>{script}</script>"),
        style=style,
        script=script,
        facts=json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _graph(bundle: Bundle, name: str) -> dict[str, Any]:
    path = bundle.directory / name
    found = graph.read(bundle.read(name), str(path))
    if unknown := sorted({node["op"] for node in found["nodes"]} - operators()):
        raise UserError(
            f"{path}: wanted operators that the page computes, found {', '.join(unknown)}; add them to "
            f"{HERE.name}/network.js, or look at the model with `reparam model sample` and `reparam model reconstruct`"
        )
    return found


def operators() -> set[str]:
    """Return the names of the operators that the page computes."""
    table = _text("network.js").partition("const OPERATORS = {\n")[2].partition("\n};")[0]
    return set(re.findall(r"^  (\w+):", table, re.MULTILINE))


def _description(model: dict[str, Any]) -> str:
    height, width, _ = model["image"]["shape"]
    return (
        f"{model.get('kind_title', model['kind'])}. Data: {model['title']} (licence: {model['licence']}). "
        f"{model['latent_size']} dimensions, images of {height} × {width} pixels. All is computed in this page."
    )


def _is_normal(model: dict[str, Any]) -> bool:
    return bool(model["has_prior"]) and model["prior"] == "standard normal"


def _prior(bundle: Bundle, model: dict[str, Any]) -> dict[str, Any] | None:
    """Return the Gaussians that samples start from, with the share of draws up to each; None if there are none."""
    if not model["has_prior"] or model["prior"] is None:
        return None
    size = model["latent_size"]
    if _is_normal(model):
        return {"means": [[0] * size], "deviations": [[1] * size], "shares": [1]}
    found = bundle.prior(size)
    deviations = np.exp(found.log_variances / 2)
    return {
        "means": found.means.round(6).tolist(),
        "deviations": deviations.round(6).tolist(),
        "shares": found.weights.cumsum().tolist(),
    }


def _units(model: dict[str, Any]) -> str:
    first = ", those that vary most over images first" if "codes" in model else ""
    unit = "In standard deviations of the prior" if _is_normal(model) else "Outputs of the encoder, which have no unit"
    return f"{unit}{first}."


def _latents(model: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the middle and the reach of the slider of each dimension, the most active first."""
    size, codes = model["latent_size"], model.get("codes")
    if codes is None:
        return [{"index": index, "middle": 0.0, "reach": REACH, "deviation": None} for index in range(size)]
    mean, deviation = np.array(codes["mean"]), np.array(codes["deviation"])
    middle = np.zeros(size) if _is_normal(model) else mean
    # With a standard normal prior, at least its reach. A dimension that never changes also gets a slider.
    reach = np.maximum(np.abs(mean - middle) + REACH * deviation, REACH if _is_normal(model) else 1e-3)
    return [
        {"index": index, "middle": middle[index], "reach": reach[index], "deviation": deviation[index]}
        for index in np.argsort(-deviation, kind="stable").tolist()
    ]


def _examples(bundle: Bundle) -> dict[str, Any]:
    """Return the images of the golden answers, where they are there, with the labels of a conditional model."""
    if GOLDEN not in bundle.files:
        return {"count": 0, "pixels": ""}
    arrays = bundle.arrays(GOLDEN)
    pixels = base64.b64encode(arrays["images"].tobytes()).decode()
    labels = {"labels": arrays["label"].tolist()} if "label" in arrays else {}
    return {"count": len(arrays["images"]), "pixels": pixels, **labels}
