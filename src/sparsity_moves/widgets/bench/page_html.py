"""The bench's one module, and as a part of a published page: an element in which it mounts itself."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from sparsity_moves.widgets.bench.models import to_json
from sparsity_moves.widgets.lab import module as lab
from sparsity_moves.widgets.lab.build import WASM

PAGE = Path(__file__).parent / "page"
SILENT = "The bench needs JavaScript: it runs the published models in this page."


def worker() -> str:
    """The script that runs one model beside the page."""
    wasm = base64.b64encode(WASM.read_bytes()).decode()
    return f'const WASM = "{wasm}";\n{lab.joined("subject.js", "worker.js", folder=PAGE)}'


def module(config: dict[str, Any]) -> str:
    """The module's text; its default export has `render`, as anywidget wants it."""
    css = (lab.PAGE / "lab.css").read_text(encoding="utf-8") + (PAGE / "bench.css").read_text(
        encoding="utf-8"
    )
    text = (
        f"const CONFIG = {to_json(config)};\nconst CSS = {json.dumps(css)};\n"
        f"const WORKER = {json.dumps(worker())};\n"
        + lab.joined("settings.js", "draw.js", "charts.js", "trainer.js")
        + lab.joined("choices.js", "opened.js", "tables.js", "bench.js", folder=PAGE)
    )
    assert "</script" not in text.lower(), "the module must be able to stand inside of a page"
    return text


def element(config: dict[str, Any], data: str) -> str:
    """HTML of the bench; `data` is where the models' scripts lie, as the page's links write it.

    The module stands inside of the page: a browser loads none from file://.
    """
    return (
        f'<div class="bench-host"><noscript><p>{SILENT}</p></noscript></div><script type="module">'
        f'{module(config)}\nmount(document.querySelector(".bench-host"), '
        f"{{load: fromFiles({json.dumps(data)}), links: true}});</script>"
    )
