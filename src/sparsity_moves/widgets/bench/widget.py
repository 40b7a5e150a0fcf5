"""The bench in its two hosts: scripts beside the published page, messages from the kernel in JupyterLab."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anywidget
import polars as pl
import traitlets

from sparsity_moves.figures.book_renderer import DATA_DIR
from sparsity_moves.figures.prose import Text, say
from sparsity_moves.names import Profile
from sparsity_moves.widgets.bench.models import Model, models, page_config, to_json
from sparsity_moves.widgets.bench.page_html import module

PREFIX = "bench-"
NONE = (
    "No trained models are stored here, so there is nothing to take apart: `make paper` trains them, or `make book` "
    "your own, smaller ones."
)
COLUMNS = {
    "model": pl.String,
    "changed": pl.Boolean,
    "inputs": pl.Int64,
    "accuracy": pl.Float64,
    "exact_match": pl.Float64,
}


class Bench(anywidget.AnyWidget):
    """The bench in a notebook. What the reader changed and measured comes back as `choice` and `table`."""

    _esm: Any = traitlets.Unicode().tag(sync=True)
    choice: Any = traitlets.Dict().tag(sync=True)
    rows: Any = traitlets.List().tag(sync=True)

    def __init__(self, offered: list[Model]) -> None:
        super().__init__(_esm=module(page_config(offered)))
        self._models = {model.name: model for model in offered}
        self.on_msg(self._answer)

    def _answer(self, _widget: object, wanted: Any, _buffers: object) -> None:
        name = wanted.get("load") if isinstance(wanted, dict) else None
        if isinstance(name, str) and name in self._models:
            self.send({"name": name, "text": self._models[name].text})

    @property
    def table(self) -> pl.DataFrame:
        """What was last measured on all inputs, one row a model whole and one changed; empty before."""
        return pl.DataFrame(self.rows, schema=COLUMNS)


def bench(profile: Profile) -> Bench | Text:
    """The bench, live where there is a kernel; while the book is built, the directive, and a script a model."""
    offered = models(profile)
    if not offered:
        return say(NONE)
    folder = os.environ.get(DATA_DIR)
    if not folder:
        return Bench(offered)
    for model in offered:
        (Path(folder) / f"{PREFIX}{model.name}.js").write_text(model.script, encoding="utf-8")
    return Text(f"```{{bench}}\n{to_json(page_config(offered))}\n```\n")
