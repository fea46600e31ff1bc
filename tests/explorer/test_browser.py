"""The page in a real browser, under its own policy: what it computes, and what hands do with it."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_model import Exported

from reparam.client import Client
from reparam.explorer.page import render

pytest_plugins = ["fixtures_export"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

# Calls the functions of the page, or its controls as hands would; what it returns is read from the document.
PROGRAM = """
const list = numbers => Array.from(numbers, Number), press = (id, key) =>
  element(id).dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
const click = id => element(id).click(), tiles = id => element(id).querySelectorAll("button");
const shown = id => list(element(id).getContext("2d").getImageData(0, 0, width, height).data);
const broken = [];
addEventListener("securitypolicyviolation", event => broken.push(event.violatedDirective));
async function work() { %s }
work().catch(error => String(error.stack)).then(found => {
  const answer = document.createElement("pre");
  answer.id = "answer";
  answer.textContent = JSON.stringify({ found, broken });
  document.body.append(answer);
});
"""


# The browser's clock runs on while a loaded machine decodes a picture, and the page may be dumped too early.
ATTEMPTS = 5


def ask(page: str, program: str, scratch: Path) -> Any:
    """Open the page, run a program in it, and return what it found; nothing may break the policy."""
    script = PROGRAM % program
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    file = scratch / "page.html"
    file.write_text(page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1) + f"<script>{script}</script>")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    profile = f"--user-data-dir={scratch / 'profile'}"
    answers: list[str] = []
    for _ in range(ATTEMPTS):
        done = subprocess.run([BROWSER, *options, profile, file.as_uri()], capture_output=True, text=True, timeout=120)
        if answers := re.findall('<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL):
            break
    assert answers, done.stderr
    answer = json.loads(html.unescape(answers[0]))
    assert answer["broken"] == []
    return answer["found"]


def test_the_page_computes_what_the_client_does(exported: Exported, tmp_path: Path) -> None:
    client, images = Client(exported.directory, device="cpu"), exported.images[:3]
    latents = np.array([[0.5, -1.25], [0, 0], [-3, 2.5]], np.float32)
    found = ask(
        render(exported.directory),
        f"""
        const images = {images.reshape(3, -1).tolist()}, codes = {latents.tolist()};
        const latents = tensor([3, 2], Float32Array.from(codes.flat()));
        return {{ codes: images.map(image => list(encoded(image))), means: list(decode({{ latents }}).mean.data) }};
        """,
        tmp_path,
    )
    np.testing.assert_allclose(found["codes"], client.encode(images)[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["means"], client.decode_mean(latents).ravel(), rtol=0, atol=1e-5)


def test_the_page_is_used_by_hand(exported: Exported, tmp_path: Path) -> None:
    client, golden = Client(exported.directory, device="cpu"), exported.images[::5]
    found = ask(
        render(exported.directory),
        """
        const start = { code: list(code), sliders: list(sliders.map(slider => slider.input.value)) };
        const names = Array.from(element("sliders").querySelectorAll("label > :first-child"), name => name.textContent);
        tiles("examples")[2].click();
        const example = { code: list(code), image: shown("image"), decoded: shown("decoded") };
        sliders[0].input.value = 1.5;
        sliders[0].input.dispatchEvent(new Event("input"));
        const [index, other] = dimensions.map(dimension => dimension.index);
        const slid = { moved: code[index], rest: code[other] };
        press("plane", "ArrowRight");
        press("plane", "ArrowUp");
        const moved = [code[index], code[other]];
        click("start-here");
        click("middle");
        click("end-here");
        tiles("path")[4].click();
        const half = [code[index], code[other]];
        element("temperature").value = 0;
        element("temperature").dispatchEvent(new Event("input"));
        tiles("samples")[7].click();
        const cold = list(code);
        click("clear");
        element("ink").value = "#ff8000";
        press("image", "ArrowRight");
        press("image", " ");
        const drawn = list(image), place = element("brush-place").textContent;
        return { start, names, example, slid, moved, half, cold, drawn, place, codeOfDrawn: list(code) };
        """,
        tmp_path,
    )
    codes = client.encode(golden)[0]
    np.testing.assert_allclose(found["start"]["code"], codes[0], atol=1e-5)  # of the first example
    np.testing.assert_allclose(found["example"]["code"], codes[2], atol=1e-5)
    np.testing.assert_array_equal(seen(found["example"]["image"]), golden[2])
    assert np.abs(seen(found["example"]["decoded"]) - client.reconstruct(golden[2:3])[0].astype(int)).max() <= 1
    order = np.argsort(-np.array(client.metadata["codes"]["deviation"]), kind="stable")
    assert found["names"] == [f"z{index}" for index in order]
    assert found["slid"] == {"moved": 1.5, "rest": pytest.approx(codes[2][order[1]], abs=1e-5)}
    np.testing.assert_allclose(found["moved"], [1.5 + 6 / 40, codes[2][order[1]] + 6 / 40], atol=1e-5)
    np.testing.assert_allclose(found["half"], np.array(found["moved"]) / 2, atol=1e-6)
    assert found["cold"] == [0, 0]
    assert found["place"] == "Brush at column 4, row 2"
    drawn = np.reshape(found["drawn"], client.image_shape)
    assert set(np.unique(drawn[..., 2])) == {0}  # orange has no blue
    assert drawn[..., 0].max() > drawn[..., 1].max() > 0
    np.testing.assert_allclose(found["codeOfDrawn"], client.encode(drawn[None].astype(np.uint8))[0][0], atol=1e-5)


def test_the_page_computes_what_the_client_does_with_each_label(conditional: Exported, tmp_path: Path) -> None:
    client, images = Client(conditional.directory, device="cpu"), conditional.images[:2]
    latents = np.array([[0.5, -1.25], [-3, 2.5]], np.float32)
    found = ask(
        render(conditional.directory),
        f"""
        const images = {images.reshape(2, -1).tolist()};
        const latents = tensor([2, 2], Float32Array.of({", ".join(map(str, latents.ravel()))}));
        return [0, 1, 2].map(label => ({{
          codes: images.map(image => list(encoded(image, label))),
          means: list(decode({{ latents, ...labelsOf(2, label) }}).mean.data),
        }}));
        """,
        tmp_path,
    )
    for label, of_label in enumerate(found):
        np.testing.assert_allclose(of_label["codes"], client.encode(images, label)[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(of_label["means"], client.decode_mean(latents, label).ravel(), rtol=0, atol=1e-5)


def test_all_that_is_shown_is_of_the_chosen_class(conditional: Exported, tmp_path: Path) -> None:
    client, golden = Client(conditional.directory, device="cpu"), conditional.images[::5]
    found = ask(
        render(conditional.directory),
        """
        const part = (canvas, x, y) => list(canvas.getContext("2d").getImageData(x, y, width, height).data);
        const state = () => ({
          label: classes.selectedIndex,
          image: list(image),
          shown: [{ code, canvas: element("decoded") }, ...samples, ...path].map(
            ({ code, canvas }) => ({ code: list(code), image: part(canvas, 0, 0) })),
        });
        const pick = label => {
          classes.selectedIndex = label;
          classes.dispatchEvent(new Event("change"));
        };
        const states = [state()];
        tiles("examples")[1].click();
        states.push(state());
        pick(1);
        states.push(state());
        click("clear");
        states.push(state());
        click("middle");
        pick(2);
        states.push(state());
        await new Promise(done => setTimeout(done, 5000));
        const [label] = classes.labels;
        const [left, top] = [width, height].map(side => side * (STEPS - 1) / 2);
        return {
          states, ends: ends.map(end => list(end)), name: label.textContent,
          options: [...classes.options].map(option => option.text), isHidden: element("class-card").hidden,
          middleOfPlane: part(element("map"), left, top),
        };
        """,
        tmp_path,
    )
    states = found["states"]
    assert (found["name"], found["options"], found["isHidden"]) == ("Class", ["cat", "dog", "owl"], False)
    assert [state["label"] for state in states] == [0, 2, 1, 1, 2]  # an example brings its own
    np.testing.assert_allclose(found["ends"], client.encode(golden[:2], [0, 2])[0], atol=1e-5)
    for state in states:
        codes, label = np.array([each["code"] for each in state["shown"]], np.float32), state["label"]
        images = np.array([seen(each["image"]) for each in state["shown"]])
        assert np.abs(images - client.decode(codes, label).astype(int)).max() <= 1
    for state in states[:4]:
        image = np.reshape(state["image"], (1, *client.image_shape)).astype(np.uint8)
        np.testing.assert_allclose(state["shown"][0]["code"], client.encode(image, state["label"])[0][0], atol=1e-5)
    assert states[4]["shown"][0]["code"] == [0, 0]  # a code that is of no image stays
    assert np.abs(seen(found["middleOfPlane"]) - client.decode(np.zeros((1, 2)), 2)[0].astype(int)).max() <= 1


def seen(pixels: list[int]) -> np.ndarray:
    """What a canvas holds. Shapes: -> (H, W, 3)."""
    return np.reshape(pixels, (4, 6, 4))[..., :3]


def test_a_picture_is_cut_to_the_middle_and_another_file_is_refused(exported: Exported, tmp_path: Path) -> None:
    found = ask(
        render(exported.directory),
        """
        const wide = document.createElement("canvas");
        Object.assign(wide, { width: 120, height: 40 });
        const context = wide.getContext("2d");
        context.fillStyle = "#000080";
        context.fillRect(0, 0, 120, 40);
        context.fillStyle = "#20c040";
        context.fillRect(20, 0, 80, 40);
        await upload(new File(["no picture"], "notes.txt"));
        const problem = [element("problem").textContent, element("problem").hidden];
        await upload(await new Promise(done => wide.toBlob(done)));
        return { image: shown("image"), code: list(code), problem, hidden: element("problem").hidden };
        """,
        tmp_path,
    )
    np.testing.assert_array_equal(seen(found["image"]), np.full((4, 6, 3), [0x20, 0xC0, 0x40]))
    client, green = Client(exported.directory, device="cpu"), np.full((1, 4, 6, 3), [0x20, 0xC0, 0x40], np.uint8)
    np.testing.assert_allclose(found["code"], client.encode(green)[0][0], atol=1e-5)
    wanted = "notes.txt: wanted a picture that this browser can read, found another file."
    assert (found["problem"], found["hidden"]) == ([wanted, False], True)


def test_the_page_says_which_sliders_are_in_sight(exported: Exported, tmp_path: Path) -> None:
    found = ask(
        render(exported.directory),
        """
        const list = element("sliders"), hint = element("in-sight"), seen = [];
        const look = () => { showInSight(); seen.push(hint.hidden ? "" : hint.textContent); };
        look();
        list.style.gridTemplateColumns = "1fr";
        list.style.maxHeight = `${list.querySelector("label").offsetHeight + 20}px`;
        look();
        list.scrollTop = list.scrollHeight;
        look();
        return seen;
        """,
        tmp_path,
    )
    assert found == ["", *(f"{place} to {place} of 2 shown: scroll for the others." for place in (1, 2))]


def test_the_middle_of_an_autoencoder_is_its_mean_code(code: Exported, tmp_path: Path) -> None:
    codes = Client(code.directory, device="cpu").metadata["codes"]
    assert codes["deviation"] != sorted(codes["deviation"], reverse=True)  # so that sliders are in another order
    found = ask(render(code.directory), 'click("middle"); return list(code)', tmp_path)
    np.testing.assert_allclose(found, codes["mean"], rtol=1e-6)


def test_what_a_model_cannot_do_is_not_offered(exported: Exported, code: Exported, tmp_path: Path) -> None:
    program = 'return ["image-card", "samples-card", "class-card"].map(id => element(id).hidden)'
    assert ask(render(code.directory), program, tmp_path) == [False, True, True]  # an autoencoder has no prior
    assert ask(render(exported.directory / "decoder.onnx"), program, tmp_path) == [True, False, True]


def test_samples_without_heat_are_the_middles_of_the_prior(exported: Exported, mixed: Exported, tmp_path: Path) -> None:
    program = 'element("temperature").value = 0; sampleAgain(); return samples.map(sample => list(sample.code))'
    assert np.abs(ask(render(exported.directory), program, tmp_path)).max() == 0
    found = np.array(ask(render(mixed.directory), program, tmp_path))
    distance = np.abs(found[:, None] - mixed.model.prior.components().means.detach().numpy()).max(-1)
    assert distance.min(1).max() < 1e-5
    assert len(set(distance.argmin(1))) > 1
