"""A task to play with, in the static page: a number typed, a slider moved, the next sequence drawn.

Python works out every example; `player.js` only looks up which one to show. So nothing is implemented twice, and
the same output works in the book, from the disk, and live in JupyterLab.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparsity_moves.tasks import Addition, Histogram, ModularAddition, Sequences, Task, generator
from sparsity_moves.tasks.addition import EOS

_HERE = Path(__file__).parent
DRAWN = 60
"""Sequences that the histogram's button goes through."""


@dataclass(frozen=True)
class Control:
    """What the reader moves: a number from 0 to `most`, typed and slid, or a button for the next one."""

    label: str
    most: int
    value: int = 0
    button: bool = False


@dataclass(frozen=True)
class Player:
    """A task with its examples; the value of a notebook cell's last line.

    An example is its cells in one string, apart by blanks. `rows` says which cell stands where in the table;
    `names` translates a cell's number into words; `sentence` has `{cell}` where a cell's text goes.
    """

    name: str
    label: str
    controls: Sequence[Control]
    examples: Sequence[str]
    rows: Mapping[str, Sequence[int | str | None]]
    sentence: str
    caption: str
    names: Mapping[int, Sequence[str]] = field(default_factory=dict)
    marked: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Which values of which cells stand out."""

    def index(self, *values: int) -> int:
        """Which example the controls' values pick."""
        return sum(value * stride for value, stride in zip(values, self.strides, strict=True))

    @property
    def strides(self) -> list[int]:
        strides = [1]
        for control in reversed(self.controls[1:]):
            strides.insert(0, strides[0] * (control.most + 1))
        return strides

    def cells(self, *values: int) -> list[str]:
        """The texts of the example's cells, as shown."""
        raw = self.examples[self.index(*values)].split(" ")
        return [self.names[i][int(text)] if i in self.names else text for i, text in enumerate(raw)]

    def sum(self, *values: int) -> str:
        """The example as a sentence."""
        cells = self.cells(*values)
        return re.sub(r"\{(\d+)\}", lambda cell: cells[int(cell[1])], self.sentence)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/plain": f"{self.label}: {self.sum(*self._start)}", "text/html": self.to_html()}

    @property
    def _start(self) -> list[int]:
        return [control.value for control in self.controls]

    def to_html(self) -> str:
        """The player with its style and script inside; it shows its first example without the script, too."""
        data = {
            "examples": list(self.examples),
            "strides": self.strides,
            "names": {str(cell): list(words) for cell, words in self.names.items()},
            "marked": {str(cell): list(values) for cell, values in self.marked.items()},
            "sentence": self.sentence,
        }
        body = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
        label = html.escape(self.label, quote=True)
        controls = "".join(map(self._control, range(len(self.controls))))
        return (
            f"<style>{_file('player.css')}</style>"
            f'<figure class="player" id="player-{self.name}">'
            f'<script type="application/json">{body}</script>'
            f'<div class="player-controls" role="group" aria-label="{label}: controls">{controls}</div>'
            f'<p class="player-sum" aria-live="polite">{html.escape(self.sum(*self._start))}</p>'
            f'<div class="player-cells" tabindex="0" role="group" aria-label="{label}: the sequence">'
            f"<table>{self._table()}</table></div>"
            f"<figcaption>{self.caption}</figcaption></figure><script>{_file('player.js')}</script>"
        )

    def _control(self, place: int) -> str:
        control = self.controls[place]
        label, most = html.escape(control.label), control.most
        group = f'<div data-control="{place}" data-most="{most}">'
        if control.button:
            return f'{group}<button type="button">{label}</button></div>'
        value = f'min="0" max="{most}" step="1" value="{control.value}"'
        return (
            f'{group}<label>{label} <input type="number" {value}></label> '
            f'<input type="range" {value} aria-label="{label}, slider"></div>'
        )

    def _table(self) -> str:
        texts = self.cells(*self._start)
        raw = self.examples[self.index(*self._start)].split(" ")

        def place(cell: int | str | None) -> str:
            if not isinstance(cell, int):
                return f"<td>{html.escape(cell or '')}</td>"
            stands_out = int(raw[cell] in self.marked.get(cell, ()))
            return f'<td data-cell="{cell}" data-marked="{stands_out}">{html.escape(texts[cell])}</td>'

        return "".join(
            f'<tr><th scope="row">{html.escape(name)}</th>{"".join(map(place, cells))}</tr>'
            for name, cells in self.rows.items()
        )


def player(task: Task) -> Player:
    """The player of a task at its own settings."""
    match task:
        case Addition():
            return _addition(task)
        case ModularAddition():
            return _modular(task)
        case Histogram():
            return _histogram(task)
        case _:
            raise ValueError(f"no player for the task {task.name}")


def _addition(task: Addition) -> Player:
    every, n = task.everything(), task.digits
    symbols = {EOS: "EOS"}
    examples = [
        " ".join(
            [symbols.get(t, str(t)) for t in every.tokens[i].tolist()]
            + [symbols.get(t, str(t)) for t in every.targets[i].tolist()]
            + [str(o) for o in every.operations[i].tolist() if o >= 0]
        )
        for i in range(len(every))
    ]
    reads = list(range(task.length))
    answers = [task.length + i for i in range(n + 2)]
    operations = [2 * task.length - n + i for i in range(n + 1)]
    before: list[int | str | None] = [None] * n
    return Player(
        name="addition",
        label="Addition with carry",
        controls=[Control("Number", 10**n - 1, 497 % 10**n)],
        examples=examples,
        rows={
            "position": [str(i) for i in range(task.length)],
            "reads": reads,
            "answers": [*before, *answers],
            "operation": [*before, *operations, None],
        },
        names=dict.fromkeys(operations, task.operation_names),
        marked={cell: ["1"] for cell in operations},
        sentence="".join(f"{{{i}}}" for i in reversed(range(n)))
        + f" + {task.addend} = "
        + "".join(f"{{{i}}}" for i in reversed(answers[: n + 1])),
        caption="Digits stand ones first. Type a number or slide; a carry that arrives is marked.",
    )


def _modular(task: ModularAddition) -> Player:
    every = task.evaluation(0, 0)
    p = task.modulus
    rows = zip(
        every.tokens.tolist(), every.targets[:, 0].tolist(), every.operations[:, 0].tolist(), strict=True
    )
    return Player(
        name="modular-addition",
        label="Modular addition",
        controls=[Control("a", p - 1, min(p - 1, 3 * p // 4)), Control("b", p - 1, p // 2)],
        examples=[f"{a} {b} {answer} {wraps}" for (a, b, _), answer, wraps in rows],
        rows={
            "position": ["0", "1", "2"],
            "reads": [0, 1, "="],
            "answers": [None, None, 2],
            "operation": [None, None, 3],
        },
        names={3: task.operation_names},
        marked={3: ["1"]},
        sentence=f"{{0}} + {{1}} = {{2}} (mod {p})",
        caption=f"Slide a or b past the modulus {p} and the answer wraps around.",
    )


def _histogram(task: Histogram) -> Player:
    drawn: Sequences = task.sample(DRAWN, generator(0, "player"))
    letters = [chr(ord("A") + s) if task.alphabet <= 26 else f"{s:02d}" for s in range(task.alphabet)]
    n = task.symbols
    examples = [
        " ".join(
            [letters[s] for s in drawn.tokens[i].tolist()] + [str(c + 1) for c in drawn.targets[i].tolist()]
        )
        for i in range(DRAWN)
    ]
    symbols, counts = list(range(n)), list(range(n, 2 * n))
    return Player(
        name="histogram",
        label="Histogram",
        controls=[Control("Next sequence", DRAWN - 1, button=True)],
        examples=examples,
        rows={"position": [str(i) for i in range(n)], "reads": symbols, "answers": counts},
        marked={cell: [str(c) for c in range(2, n + 1)] for cell in counts},
        sentence=" ".join(f"{{{i}}}" for i in symbols) + " → " + " ".join(f"{{{i}}}" for i in counts),
        caption="Each position answers how often its own symbol is in the sequence; counts above one are marked.",
    )


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
