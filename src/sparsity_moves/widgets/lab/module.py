"""The one file that a page or JupyterLab loads: an ES module with the worker, the trainer and the style inside.

The sources are ES modules of their own; here they become one, in the order in which they need each other.
"""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pathlib import Path

from sparsity_moves.widgets.lab.build import WASM
from sparsity_moves.widgets.lab.recipes import page_config

PAGE = Path(__file__).parent / "page"
_EXPORT = re.compile(r"^export (?!default)", re.M)
_COMMENT = re.compile(r"^\s*//.*\n", re.M)


def joined(*names: str, folder: Path = PAGE) -> str:
    """The named scripts as one, without their comments and exports."""
    return "\n".join(
        _EXPORT.sub("", _COMMENT.sub("", (folder / name).read_text(encoding="utf-8"))) for name in names
    )


@cache
def config() -> str:
    """The line that gives a script its CONFIG."""
    return f"const CONFIG = {json.dumps(page_config(), separators=(',', ':'))};\n"


@cache
def module() -> str:
    """The module's text; its default export has `render`, as anywidget wants it."""
    wasm = base64.b64encode(WASM.read_bytes()).decode()
    worker = (
        f'const WASM = "{wasm}";\n{config()}{joined("settings.js", "session.js", "partner.js", "worker.js")}'
    )
    css = (PAGE / "lab.css").read_text(encoding="utf-8")
    text = f"{config()}const CSS = {json.dumps(css)};\nconst WORKER = {json.dumps(worker)};\n" + joined(
        "settings.js", "draw.js", "charts.js", "controls.js", "trainer.js", "lab.js"
    )
    assert "</script" not in text.lower(), "the module must be able to stand inside of a page"
    return text
