"""The lab in its two hosts: an anywidget in JupyterLab, a directive in the published page; one module in both."""

from __future__ import annotations

import json
import os
from typing import Any

import anywidget
import polars as pl
import traitlets

from sparsity_moves.figures.book_renderer import DATA_DIR
from sparsity_moves.figures.prose import Text
from sparsity_moves.training import Spec
from sparsity_moves.widgets.lab.module import module
from sparsity_moves.widgets.lab.page_html import recorded
from sparsity_moves.widgets.lab.recipes import Setting, checked, spec_of

COLUMNS = {
    "step": "step",
    "loss": "loss",
    "accuracy": "accuracy",
    "exact": "exact_match",
    "test": "test_accuracy",
    "noFfn": "no_ffn_accuracy",
    "noAttention": "no_attention_accuracy",
}
"""What the page calls a measurement, and what the tables of this book call it."""


class Lab(anywidget.AnyWidget):
    """The live lab in a notebook. What the reader set and trained comes back as `setting`, `spec` and `table`."""

    _esm = module()
    setting: Any = traitlets.Dict().tag(sync=True)
    recorded: Any = traitlets.Dict().tag(sync=True)
    rows: Any = traitlets.List().tag(sync=True)
    links: Any = traitlets.Bool(False).tag(sync=True)

    def __init__(self, **setting: Any) -> None:
        """Open with these controls set. Raises `UserError` for one that the lab does not have."""
        super().__init__(setting=checked(setting), recorded=recorded())

    @property
    def spec(self) -> Spec:
        """The run of the present setting."""
        return spec_of(self.setting)

    @property
    def table(self) -> pl.DataFrame:
        """The reader's last run, one row a measurement; empty before there is one."""
        rows = [{ours: row.get(theirs) for theirs, ours in COLUMNS.items()} for row in self.rows]
        return pl.DataFrame(rows, schema=dict.fromkeys(COLUMNS.values(), pl.Float64)).cast({"step": pl.Int64})


def lab(**setting: Any) -> Lab | Text:
    """The lab, live where there is a kernel; while the book is built, the directive that puts it into the page.

    Raises `UserError` for a control or value that the lab does not have.
    """
    if DATA_DIR in os.environ:
        given: Setting = checked(setting) if setting else {}
        return Text(f"```{{lab}}\n{json.dumps(given)}\n```\n")
    return Lab(**setting)
