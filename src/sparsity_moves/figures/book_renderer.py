"""Show a chart with its caption, its data and its code: in the built book, and live in JupyterLab.

In the book a cell's output is a MyST `chart` directive (see `publishing.sphinx_extension`): the figure is
numbered, `{numref}` finds it as `fig-NAME`, and all charts of the site share one Vega file. Live, the
output is self-contained HTML. Both draw with the same `chart.js`.
"""

import base64
import html
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import altair as alt
import polars as pl
import vl_convert
from markdown_it import MarkdownIt

from sparsity_moves.figures import theme as theme  # registers the theme

DATA_DIR = "SPARSITY_MOVES_DATA_DIR"  # set while the book is built: where the figures' tables go
_HERE = Path(__file__).parent
_ROLE = re.compile(r"\{[a-z:]+\}(?=`)")  # a cross-reference: outside of the book only its text remains


@dataclass(frozen=True)
class Figure:
    """A chart ready to be shown; the value of a notebook cell's last line."""

    name: str
    caption: str
    alt: str
    spec: Mapping[str, object]
    csv: str
    in_book: bool

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        plain = {"text/plain": f"Figure {self.name}: {self.alt}"}
        if self.in_book:
            return plain | {"text/markdown": directive(self)}
        return plain | {"text/html": standalone(self)}


def show(chart: alt.TopLevelMixin, *, name: str, caption: str, data: pl.DataFrame, alt: str) -> Figure:
    """The chart as a figure, and `data` as its download; while the book is built, that file is written.

    Args:
        chart: what to draw.
        name: lower-case words joined by hyphens, unique in the book; `{numref}` finds it as `fig-NAME`.
        caption: MyST Markdown, one paragraph.
        data: the rows behind the picture, offered as CSV.
        alt: what the picture shows, for those who do not see it.

    Raises:
        ValueError: the name is no such word, the caption or the alt text is empty, or another figure of
            this notebook has the name.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"a figure's name is lower-case words joined by hyphens, not {name!r}")
    if not caption.strip() or not alt.strip():
        raise ValueError(f"the figure {name} needs a caption and an alt text")
    csv = data.write_csv()
    folder = os.environ.get(DATA_DIR)
    if folder:
        try:
            with (Path(folder) / f"{name}.csv").open("x", encoding="utf-8", newline="") as file:
                file.write(csv)
        except FileExistsError:
            raise ValueError(f"two figures are called {name}") from None
    spec = chart.to_dict() | {"description": one_line(alt)}
    return Figure(name, one_line(caption), one_line(alt), spec, csv, in_book=bool(folder))


def directive(figure: Figure) -> str:
    """The figure as MyST: a `chart` directive holding the specification, then the caption."""
    fence = "`" * 6
    return f"{fence}{{chart}} {figure.name}\n{to_json(figure.spec)}\n\n{figure.caption}\n{fence}\n"


def standalone(figure: Figure) -> str:
    """The figure as HTML that needs no other file."""
    data = base64.b64encode(figure.csv.encode()).decode()
    link = f'<a href="data:text/csv;base64,{data}" download="{figure.name}.csv">Data (CSV)</a>'
    caption = MarkdownIt().renderInline(_ROLE.sub("", figure.caption))
    script = f"{vega_bundle()}\n{chart_script()}".replace("</script", "<\\/script")
    return (
        f"<style>{chart_style()}</style><figure>{placeholder(figure.name, figure.spec)}"
        f'<figcaption>{caption}<p class="chart-links">{link}</p></figcaption></figure>'
        f"<script>{script}</script>"
    )


def placeholder(name: str, spec: Mapping[str, object]) -> str:
    """The element that `chart.js` draws into, with the specification inside."""
    label = html.escape(str(spec.get("description", name)), quote=True)
    body = to_json(spec).replace("</", "<\\/")  # no string in it may end the script element
    return (
        f'<div class="chart" id="chart-{name}" data-label="{label}">'
        f'<script type="application/json">{body}</script><noscript>{label}</noscript></div>'
    )


def to_json(spec: Mapping[str, object]) -> str:
    """The specification on one line, its keys in order, and no space between."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"))


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script that sets `window.vegaEmbed`."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    script = vl_convert.javascript_bundle(vl_version=version)  # type: ignore[call-arg]
    return f"(function(){{{script}}})();"


def chart_script() -> str:
    """The script that draws every chart of a page."""
    return (_HERE / "chart.js").read_text(encoding="utf-8")


def chart_style() -> str:
    """The style sheet of charts and their controls."""
    return (_HERE / "chart.css").read_text(encoding="utf-8")


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())
