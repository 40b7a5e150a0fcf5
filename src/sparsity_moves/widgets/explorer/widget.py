"""The explorer in its two hosts: files beside the published page, messages from the kernel in JupyterLab."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from sparsity_moves import studies
from sparsity_moves.errors import UserError
from sparsity_moves.figures.book_renderer import DATA_DIR
from sparsity_moves.figures.claim_words import MEASURES as SAID
from sparsity_moves.figures.prose import Text, say
from sparsity_moves.figures.words import MOMENT_NAMES, TASK_NAMES, sentence
from sparsity_moves.names import Profile, results_folder
from sparsity_moves.store import Store
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.redistribution import ARMS
from sparsity_moves.widgets.explorer.data import DRAWN, MEASURES, SOURCES, Chunk, chunks
from sparsity_moves.widgets.explorer.module import module

MORE = {
    "step": "training step of that moment",
    "exact_match": "inputs with every answer right",
    "test_accuracy": "accuracy, held-out inputs",
    "mean_attention_accuracy": "accuracy with attention's mean",
    "resample_attention_accuracy": "accuracy with another input's attention",
    "parameters": "parameters in total",
    "active_parameters": "parameters a token meets",
    "flops_per_token": "FLOPs a token",
    "loss": "loss",
}
CHOSEN = ("experts", "width", "top_k", "d_model", "depth", "balance_weight", "weight_decay", "dropout")
"""Settings that can stand on an axis."""


class Explorer(anywidget.AnyWidget):
    """The explorer in a notebook; `selected` has the addresses of the brushed runs."""

    _esm = module()
    index: Any = traitlets.Dict().tag(sync=True)
    selected: Any = traitlets.List().tag(sync=True)

    def __init__(self, found: dict[str, Chunk]) -> None:
        super().__init__(index=index(found))
        self._chunks = found
        self.on_msg(self._answer)

    def _answer(self, _widget: object, wanted: Any, _buffers: object) -> None:
        key = wanted.get("load") if isinstance(wanted, dict) else None
        if isinstance(key, str) and key in self._chunks:
            self.send({"key": key, "chunk": self._chunks[key]})


def index(found: dict[str, Chunk]) -> dict[str, Any]:
    """What the page must know before it loads anything: which chunks there are, and what is called how."""
    said = {**{name: SAID.get(name) or MORE.get(name, name) for name in (*MEASURES, *DRAWN)}}
    return {
        "keys": sorted(found),
        "tasks": {task: sentence(words) for task, words in TASK_NAMES.items()},
        "sources": SOURCES,
        "moments": MOMENT_NAMES,
        "measures": {name: sentence(said[name]) for name in MEASURES},
        "settings": {name: sentence(name.replace("_", " ")) for name in CHOSEN},
        "drawn": {name: sentence(said[name]) for name in DRAWN},
        "first": list(ARMS),
    }


def explorer(argument: Argument, profile: Profile) -> Explorer | Text:
    """All the runs of the tables: a widget where there is a kernel, else the page's part with its files beside it.

    Raises:
        UserError: two explorers stand in one book.
    """
    sources, stores = {"paper": argument.main}, {"paper": Store(results_folder("paper"))}
    if argument.own is not None:
        sources["own"], stores["own"] = argument.own, studies.store(profile)
    elif argument.profile != "paper":
        sources, stores = {"own": argument.main}, {"own": studies.store(profile)}
    found = chunks(sources, stores)
    folder = os.environ.get(DATA_DIR)
    if not folder:
        return Explorer(found)
    write(found, Path(folder))
    return say(f"```{{explorer}}\n{json.dumps(index(found))}\n```")


def write(found: dict[str, Chunk], folder: Path) -> None:
    """Each chunk as a script that hands it over: a page from the disk may load scripts, and nothing else."""
    for key, chunk in found.items():
        text = f"sparsityMovesRuns({json.dumps(key)},{json.dumps(chunk, separators=(',', ':'))});\n"
        try:
            with (folder / f"explorer-{key}.js").open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise UserError("the book has two explorers; one is all it can have") from None


SILENT = "This view of all the runs needs JavaScript. The runs themselves are in results/paper/runs.parquet."


def element(known: dict[str, Any], data: str = "_static/data/") -> str:
    """HTML of the explorer; its chunks are loaded from the folder `data` as they are wanted."""
    state = json.dumps({"index": known}).replace("</", "<\\/")
    return (
        f'<div class="runs-host"><noscript><p>{html.escape(SILENT)}</p></noscript></div><script type="module">'
        f'{module()}\nmount(document.querySelector(".runs-host"), {{...{state}, links: true, '
        f"load: fromFiles({json.dumps(data)})}});</script>"
    )
