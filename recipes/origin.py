"""What a measurement was made with, so that the table knows which ones are stale."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reparam import recipes
from reparam.config import flatten
from reparam.files import sha256, to_json
from reparam.lineage import source_hash

HERE = Path(__file__).parent
MEASURED = ("preprocess", "train", "evaluate")  # stages whose source changes results
ADDRESS = "download.folder.path"
RENDERED = 4000
PHOTOGRAPHS, SCENES = "cut-outs of two photographs", f"{RENDERED:,} rendered scenes"
GENERATORS = {PHOTOGRAPHS: "photographs.py", SCENES: "scenes.py"}  # of images that are made here


def determined_by(folder: Path, name: str, changes: Mapping[str, Any]) -> dict[str, str]:
    """Hash what determines the result of a recipe: its parameters, the source of the stages on the way to it, and that
    of the images if they are made here.

    Where files come from does not: their content is known by checksums.
    Raises: ParamsError as `recipes.read`.
    """
    values = flatten(recipes.read(folder, name, changes))
    sections = ("download", *MEASURED, "model", "objective")
    own = {path: value for path, value in values.items() if path.startswith(sections) and path != ADDRESS}
    parameters = hashlib.sha256(to_json(own).encode()).hexdigest()
    generator = GENERATORS.get(str(changes.get(ADDRESS)))
    images = {"images": sha256(HERE / generator)} if generator else {}
    return {"parameters": parameters} | {stage: source_hash(stage) for stage in MEASURED} | images
