"""The explorer's one file, an ES module with its style inside; it shares the lab's way of making elements."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from sparsity_moves.widgets.lab.module import joined

PAGE = Path(__file__).parent / "page"
PARTS = ("data.js", "view.js", "pictures.js", "explorer.js")


@cache
def module() -> str:
    """The module's text; its default export has `render`, as anywidget wants it."""
    css = (PAGE / "explorer.css").read_text(encoding="utf-8")
    scripts = joined("draw.js", *(str(PAGE / name) for name in PARTS))  # a whole path stands for itself
    text = f"const CSS = {json.dumps(css)};\n{scripts}"
    assert "</script" not in text.lower(), "the module must be able to stand inside of a page"
    return text
