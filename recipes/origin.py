"""What a measurement was made with, so that the table knows which ones are stale."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reparam import recipes
from reparam.config import flatten
from reparam.files import to_json
from reparam.lineage import source_hash

MEASURED = ("preprocess", "train", "evaluate")  # stages whose source changes results
ADDRESS = "download.folder.path"


def determined_by(folder: Path, name: str, changes: Mapping[str, Any]) -> dict[str, str]:
    """Hash what determines the result of a recipe: its parameters, and the source of the stages on the way to it.

    Where files come from does not: their content is known by checksums.
    Raises: ParamsError as `recipes.read`.
    """
    values = flatten(recipes.read(folder, name, changes))
    sections = ("download", *MEASURED, "model", "objective")
    own = {path: value for path, value in values.items() if path.startswith(sections) and path != ADDRESS}
    parameters = hashlib.sha256(to_json(own).encode()).hexdigest()
    return {"parameters": parameters} | {stage: source_hash(stage) for stage in MEASURED}
