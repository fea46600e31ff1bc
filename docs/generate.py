"""Write what is generated from the source: the comments of the params files, and the pages of reference."""

from pathlib import Path

from ruamel.yaml import YAML

from reparam import metrics
from reparam.config.document import HEAD, reference, with_comments
from reparam.recipes import SHIPPED, merge

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Write the files. Values stay as they are; a parameter that params.yaml lacks gets the shipped value."""
    for path in (SHIPPED, ROOT / "params.yaml"):
        text = path.read_text(encoding="utf-8")
        own, separator, _ = text.partition("\n\n")[0].partition("\n#\n")  # of a recipe: where it is from
        head = f"{own}{separator}{HEAD}" if separator else HEAD
        values = YAML().load(SHIPPED)
        merge(values, YAML().load(text))
        path.write_text(with_comments(values, head), encoding="utf-8")
    for name, text in {"parameters": reference(), "metrics": metrics.reference()}.items():
        (ROOT / f"docs/reference/{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
