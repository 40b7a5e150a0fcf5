"""Sentences and tables whose numbers come from data, as the value of a notebook cell's last line.

In the book they are MyST (citations, references, numbered tables); live in JupyterLab, plain Markdown.
"""

import html
import os
import re
from dataclasses import dataclass

import polars as pl

from sparsity_moves.figures.book_renderer import DATA_DIR
from sparsity_moves.figures.summary import Summary

_ROLE = re.compile(r"\{(cite:[pt]|numref|eq|ref|doc)\}`([^`]+)`")


@dataclass(frozen=True)
class Text:
    """Markdown for a cell to end with."""

    source: str

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        shown = self.source if DATA_DIR in os.environ else plain(self.source)
        # an empty output would fall back to an empty box of plain text: a comment shows nothing
        return {"text/plain": plain(self.source), "text/markdown": shown or "<!-- nothing to say -->"}


def say(*paragraphs: str) -> Text:
    """Paragraphs of MyST Markdown."""
    return Text("\n\n".join(paragraph.strip() for paragraph in paragraphs))


def plain(source: str) -> str:
    """MyST without its roles and directives, for where nothing resolves them."""
    source = re.sub(r"^:::\{table\} (.*)\n:name: .*\n\n(.*?)\n:::$", r"*\1*\n\n\2", source, flags=re.M | re.S)
    return _ROLE.sub(lambda role: re.sub(r"^(fig|tab)-", "", role[2]), source)


def percent(share: float, digits: int = 1) -> str:
    """0.4431 → "44.3 %"."""
    return f"{100 * share:.{digits}f}\u00a0%"


def hover(shown: str, says: str) -> str:
    """A value that tells more when pointed at."""
    return f'<abbr title="{html.escape(says, quote=True)}">{shown}</abbr>'


def mean(summary: Summary, *, of: str = "") -> str:
    """A mean share in percent; pointed at, it says of how many seeds, and its interval."""
    return hover(percent(summary.mean), f"{of}{': ' if of else ''}{spread(summary)}")


def spread(summary: Summary) -> str:
    """What stands behind a mean: "n = 8 seeds, 95 % CI 7.9 to 12.0"."""
    seeds = f"n = {summary.n} seed{'s' if summary.n != 1 else ''}"
    if summary.low is None or summary.high is None:
        return f"{seeds}, no interval"
    return f"{seeds}, 95 % CI {100 * summary.low:.1f} to {100 * summary.high:.1f}"


def interval(summary: Summary) -> str:
    """The interval alone, in percent: "7.9 to 12.0"."""
    if summary.low is None or summary.high is None:
        return "—"
    return f"{100 * summary.low:.1f}\u00a0to\u00a0{100 * summary.high:.1f}".replace("-", "−")


def table(rows: pl.DataFrame, *, name: str, caption: str) -> Text:
    """A numbered table that `{numref}` finds as `tab-NAME`; columns are headed by their names.

    Numbers are right-aligned. Cells may hold Markdown.
    """
    numeric = [dtype.is_numeric() for dtype in rows.dtypes]
    lines = [
        "| " + " | ".join(rows.columns) + " |",
        "|" + "|".join("---:" if right else "---" for right in numeric) + "|",
        *("| " + " | ".join(map(cell, row)) + " |" for row in rows.iter_rows()),
    ]
    return Text("\n".join([f":::{{table}} {caption}", f":name: tab-{name}", "", *lines, ":::"]))


def cell(value: object) -> str:
    """One table cell: whole numbers with thousands apart, nothing as a dash."""
    match value:
        case None | "":
            return "—"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}".replace(",", "\u202f")
        case float():
            return f"{value:g}"
        case _:
            return str(value).replace("|", "\\|")


def listed(words: list[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"
