"""How Sphinx builds the site. Everything that a page needs is in it, so it also works without a network."""

import sys
import tomllib
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))  # autodoc reads this working copy, whatever is installed

project = html_title = "reparam"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True
autodoc_typehints = "none"  # arrays have types of three lines
autodoc_member_order = "bysource"
nb_execution_mode = "force"  # the notebook is kept without outputs
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds of a cell; that which trains a model takes twenty
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sourcelink = False
html_math_renderer = "mathml"


def _inline(writer, node: nodes.math) -> None:  # type: ignore[no-untyped-def]
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(writer, node: nodes.math_block) -> None:  # type: ignore[no-untyped-def]
    writer.body.append(tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Let browsers draw formulas: MathML needs no script."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
