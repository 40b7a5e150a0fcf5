"""The bench as a part of a published page: one element, the module that mounts itself in it, and a script a model."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from sparsity_moves.figures.book_renderer import DATA_DIR
from sparsity_moves.figures.prose import Text, say
from sparsity_moves.names import Profile
from sparsity_moves.widgets.bench.models import models, page_config, to_json
from sparsity_moves.widgets.lab import module as lab
from sparsity_moves.widgets.lab.build import WASM

PAGE = Path(__file__).parent / "page"
PREFIX = "bench-"
NONE = (
    "No trained models are stored here, so there is nothing to take apart: `make paper` trains them, or `make book` "
    "your own, smaller ones."
)
LIVE = "The bench stands in the built book, under this chapter's name: `make book` says where."
SILENT = "The bench needs JavaScript: it runs the published models in this page."


def worker() -> str:
    """The script that runs one model beside the page."""
    wasm = base64.b64encode(WASM.read_bytes()).decode()
    return f'const WASM = "{wasm}";\n{lab.joined("subject.js", "worker.js", folder=PAGE)}'


def module(config: dict[str, Any]) -> str:
    """The module's text; `mount(element, {data})` puts the bench into an element."""
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
        f'{module(config)}\nmount(document.querySelector(".bench-host"), {json.dumps({"data": data})});</script>'
    )


def bench(profile: Profile) -> Text:
    """While the book is built: the models' scripts among the page's data, and the directive that shows them."""
    folder = os.environ.get(DATA_DIR)
    if not folder:
        return say(LIVE)
    offered = models(profile)
    for model in offered:
        (Path(folder) / f"{PREFIX}{model.name}.js").write_text(model.script, encoding="utf-8")
    return Text(f"```{{bench}}\n{to_json(page_config(offered))}\n```\n") if offered else say(NONE)
