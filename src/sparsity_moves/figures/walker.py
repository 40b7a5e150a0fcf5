"""A token walks down a tree: its input, the digit it answers, the tree and the level are sliders.

Python walks every token of the task down every tree; `walker.js` looks up the leaf that one reached. Without the
script the tree stands there with the width of its branches: how many tokens take each.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from sparsity_moves.measures.tree import walked
from sparsity_moves.model import Parameters, stack
from sparsity_moves.model.tree import leaves, level, visits
from sparsity_moves.training import Spec
from sparsity_moves.training.data import evaluation

_HERE = Path(__file__).parent
WIDTH, ROW = 560, 62
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
PLACES = ("ones digit", "tens digit", "hundreds digit", "thousands digit")


@dataclass(frozen=True)
class Walker:
    """What every token of add-7 does in every tree; the value of a notebook cell's last line."""

    depth: int
    units: int
    inputs: Sequence[str]
    places: Sequence[str]
    leaves: Int[Tensor, "inputs places trees"]
    visits: Int[Tensor, "trees nodes"]
    caption: str

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/plain": self.sentence(0, 0, 0), "text/html": self.to_html()}

    def path(self, leaf: int) -> list[int]:
        """The nodes from the root to a leaf, in heap order."""
        nodes = [0]
        for bit in reversed(range(self.depth)):
            nodes.append(2 * nodes[-1] + 1 + (leaf >> bit & 1))
        return nodes

    def sentence(self, number: int, place: int, tree: int) -> str:
        """The way of one token down one tree."""
        leaf = int(self.leaves[number, place, tree])
        turns = ["right" if node % 2 == 0 else "left" for node in self.path(leaf)[1:]]
        return f"{self.inputs[number]}, {self.places[place]}: {', '.join(turns)}, so leaf {leaf + 1}."

    def to_html(self) -> str:
        trees = self.leaves.shape[2]
        data = {
            "leaves": "".join(DIGITS[leaf] for leaf in self.leaves.flatten().tolist()),
            "trees": trees,
            "positions": len(self.places),
            "depth": self.depth,
            "visits": self.visits.tolist(),
            "inputs": list(self.inputs),
            "places": list(self.places),
            "open": trees * (self.depth + 1),
            "units": self.units,
        }
        body = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
        sliders = (
            (
                "input",
                "Number",
                len(self.inputs) - 1,
                len(self.inputs) // 2,
                self.inputs[len(self.inputs) // 2],
            ),
            ("place", "Answers the", len(self.places) - 1, 0, self.places[0]),
            ("tree", "Tree", trees - 1, 0, "1"),
            ("level", "Walk to level", self.depth, self.depth, str(self.depth)),
        )
        controls = "".join(
            f'<label>{label} <input type="range" name="{name}" min="0" max="{most}" value="{value}"> '
            f"<output>{html.escape(shown)}</output></label>"
            for name, label, most, value, shown in sliders
        )
        said = html.escape(self.sentence(len(self.inputs) // 2, 0, 0))
        return (
            f'<style>{_file("walker.css")}</style><figure class="walker">'
            f'<script type="application/json">{body}</script>'
            f'<div class="walker-controls" role="group" aria-label="A token and a tree: controls">{controls}</div>'
            f'<p class="walker-said" aria-live="polite">{said}</p>{self._tree()}'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure><script>{_file('walker.js')}</script>"
        )

    def _tree(self) -> str:
        """The first tree; a branch is as wide as the share of tokens that takes it."""
        seen = self.visits[0].tolist()
        on = set(self.path(int(self.leaves[len(self.inputs) // 2, 0, 0])))
        places = {
            node: (WIDTH * (i + 0.5) / 2**number, 18 + ROW * number)
            for number in range(self.depth + 1)
            for i, node in enumerate(range(level(number).start, level(number).stop))
        }

        def marks(node: int) -> str:
            return f'data-node="{node}" data-on="{int(node in on)}" data-dead="{int(seen[node] == 0)}"'

        branches = "".join(
            f'<line {marks(n)} x1="{places[(n - 1) // 2][0]:g}" y1="{places[(n - 1) // 2][1]}" x2="{x:g}" y2="{y}" '
            f'stroke-width="{1 + 9 * seen[n] / max(1, seen[0]):.1f}"/>'
            for n, (x, y) in places.items()
            if n
        )
        nodes = "".join(f'<circle {marks(n)} cx="{x:g}" cy="{y}" r="7"/>' for n, (x, y) in places.items())
        numbers = "".join(
            f'<text x="{places[n][0]:g}" y="{places[n][1] + 15}">{i + 1}</text>'
            for i, n in enumerate(range(level(self.depth).start, level(self.depth).stop))
        )
        height = 18 + ROW * self.depth + 32
        opening = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="A binary tree">'
        return f"{opening}{branches}{nodes}{numbers}</svg>"


def walker(spec: Spec, parameters: Parameters, when: str) -> Walker:
    """Every token of a one-layer model of add-7, at the digits that count; `when` says at what step it is."""
    task, ffn = spec.task_object, spec.architecture.ffn
    if ffn.tree_depth > 5 or spec.task != "add7" or spec.depth != 1:
        raise ValueError("a walk is drawn of one layer, on add-7, down trees of height 5 at most")
    sequences = evaluation([spec], torch.device("cpu"))
    (chosen,) = walked(spec.architecture, stack([parameters]), sequences)
    digits = task.digits  # type: ignore[attr-defined]
    inputs = ["".join(map(str, reversed(row[:digits]))) for row in sequences.tokens[0].tolist()]
    order = sorted(range(len(inputs)), key=inputs.__getitem__)
    ends = leaves(ffn, chosen)[0][order]
    places = [*PLACES[:digits], "overflow digit"][: ends.shape[1]]
    return Walker(
        ffn.tree_depth,
        ffn.width,
        [inputs[i] for i in order],
        places,
        ends,
        visits(ffn, chosen)[0],
        f"One model of add-{spec.addend} with {ffn.trees} trees of height {ffn.tree_depth} (seed {spec.seed}, "
        f"{spec.profile} profile, {when}). Branches are as wide as the share of all tokens that takes them; "
        "dashed: nobody does.",
    )


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
