"""The files a published page loads, all taken from installed Python packages: no network, no npm."""

import shutil
from importlib import metadata
from pathlib import Path

from sparsity_moves.errors import UserError
from sparsity_moves.figures import book_renderer

MATHJAX_PACKAGE = "sphinx-mathjax-offline"
MATHJAX_PARTS = ("tex-mml-chtml.js", "output/chtml/fonts/woff-v2/")


def fill(folder: Path, own: Path) -> None:
    """Put the charts' script and style, Vega, MathJax and the book's own files (`own`) into `folder`.

    Raises:
        UserError: the package that brings MathJax is not installed.
    """
    shutil.copytree(own, folder, dirs_exist_ok=True)
    (folder / "vega-bundle.js").write_text(book_renderer.vega_bundle(), encoding="utf-8")
    (folder / "chart.js").write_text(book_renderer.chart_script(), encoding="utf-8")
    (folder / "chart.css").write_text(book_renderer.chart_style(), encoding="utf-8")
    _copy_mathjax(folder / "mathjax")


def _copy_mathjax(folder: Path) -> None:
    """MathJax 3 for TeX input, with its fonts, as the package has them."""
    try:
        files = metadata.files(MATHJAX_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    copied = 0
    for file in files:
        _, found, inside = file.as_posix().partition("/static/mathjax/")
        if found and inside.startswith(MATHJAX_PARTS):
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), target)
            copied += 1
    if copied < 2:  # the script and at least one font
        raise UserError(f"MathJax is missing: install the package {MATHJAX_PACKAGE}.")
