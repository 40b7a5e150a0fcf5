"""The scoreboard: every claim with its verdict, and a control that judges them again over any of the seeds.

Python writes the page as all seeds have it, so it is whole without a script. `scoreboard.js` judges again in the
page: it has every pair of values and the critical values of t from SciPy, so it only averages, compares and counts.
"""

import html
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsity_moves.figures.claim_words import (
    MEASURES,
    UNITS,
    digits,
    draws_words,
    effect_words,
    mean_words,
    number_words,
    runs_words,
    sides,
    signed,
)
from sparsity_moves.figures.prose import hover
from sparsity_moves.figures.words import MOMENT_NAMES, SHORT_NAMES
from sparsity_moves.studies.claims import SOURCES, Claim
from sparsity_moves.studies.statistics import LEVEL, compare, critical
from sparsity_moves.studies.verdicts import FIVE, VERDICTS, Board, Number, Tested, words
from sparsity_moves.training.profiles import SEEDS

_HERE = Path(__file__).parent
SYMBOLS = dict(zip(VERDICTS, "●▲◐○◌·", strict=True))


@dataclass(frozen=True)
class Scoreboard:
    """Every claim of a board; the value of a notebook cell's last line."""

    board: Board
    profile: str

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/plain": f"Scoreboard: {self.count()}", "text/html": self.to_html()}

    @cached_property
    def seeds(self) -> list[int]:
        """All seeds of any claim, the paper's first."""
        tested = (seed for parts in self.board.tested.values() for t in parts for seed in t.differences)
        every = {*tested, *(seed for number in self.board.numbers for seed in number.values)}
        return [seed for seed in SEEDS if seed in every] + sorted(every - set(SEEDS))

    @cached_property
    def _verdicts(self) -> dict[str, str]:
        return self.board.verdicts()

    def count(self) -> str:
        """How many claims have which verdict: "9 reproduced or holding, 2 partly"."""
        number = Counter(self._verdicts.values())
        shown = [f"{number[verdict]} {_said(verdict)}" for verdict in VERDICTS if number[verdict]]
        return f"{len(self.board.claims)} claims: {', '.join(shown)}"

    def to_html(self) -> str:
        """The scoreboard with its style, data and script inside."""
        body = json.dumps(self.data(), separators=(",", ":")).replace("</", "<\\/")
        rows = "".join(map(self._claim, self.board.claims))
        return (
            f"<style>{_file('scoreboard.css')}</style>"
            f'<section class="scoreboard" aria-label="Scoreboard">'
            f'<script type="application/json">{body}</script>{self._controls()}'
            f'<p class="scoreboard-said" aria-live="polite">Over all {len(self.seeds)} seeds, {self.count()}.</p>'
            f"<ol>{rows}</ol></section><script>{_file('scoreboard.js')}</script>"
        )

    def data(self) -> dict[str, Any]:
        """What the script judges from: values by seed, and critical values by number of seeds."""
        corrected = max(self.board.corrected_for, 1)
        levels = [k * LEVEL / corrected for k in range(1, corrected + 1)]
        numbers = range(2, len(self.seeds) + 1)
        return {
            "seeds": self.seeds,
            "paper": self._paper,
            "level": LEVEL,
            "two": [[round(critical(n, level / 2), 4) for level in levels] for n in numbers],
            "one": [[round(critical(n, level), 4) for level in levels] for n in numbers],
            "symbols": SYMBOLS,
            "claims": [
                {
                    "words": {verdict: words(claim, verdict) for verdict in VERDICTS},
                    "parts": [self._part_data(tested) for tested in self.board.tested[claim.id]],
                    "numbers": [self._number_data(number) for number in self._numbers(claim)],
                }
                for claim in self.board.claims
            ],
        }

    def _part_data(self, tested: Tested) -> dict[str, Any]:
        part = tested.part
        return {
            "kind": part.kind,
            "margin": part.margin,
            "unit": UNITS[part.unit],
            "runs": runs_words(part, self.profile),
            "digits": digits(part.unit),
            "published": tested.published,
            "wide": tested.margin,
            "values": self._by_seed(tested.differences),
        }

    def _number_data(self, number: Number) -> dict[str, Any]:
        return {
            "published": number.row["value"],
            "margin": number.margin,
            "p": number.row["measure"] == "p_value",
            "digits": digits(number.row["unit"]),
            "values": self._by_seed(number.values),
        }

    def _by_seed(self, values: dict[int, float]) -> list[float | None]:
        return (
            [float(f"{values[seed]:.6g}") if seed in values else None for seed in self.seeds]
            if values
            else []
        )

    def _numbers(self, claim: Claim) -> list[Number]:
        return [number for number in self.board.numbers if number.claim.id == claim.id]

    def _controls(self) -> str:
        most = len(self.seeds)
        boxes = "".join(
            f'<label><input type="checkbox" value="{seed}" checked>{seed}</label>' for seed in self.seeds
        )
        return (
            '<form class="scoreboard-seeds" hidden><fieldset><legend>Judge over which seeds?</legend>'
            '<div><button type="button" data-pick="all">All</button>'
            f'<button type="button" data-pick="paper">The paper’s {len(self._paper)}</button>'
            '<button type="button" data-pick="draw">Draw at random</button>'
            f'<label>how many <input type="range" min="2" max="{most}" value="{min(FIVE, most)}">'
            f"<output>{min(FIVE, most)}</output></label></div>"
            f"<details><summary>One by one</summary><div class='scoreboard-boxes'>{boxes}</div></details>"
            "</fieldset></form>"
        )

    @property
    def _paper(self) -> list[int]:
        return [seed for seed in SEEDS if seed in self.seeds]

    @cached_property
    def _of_five(self) -> dict[str, int | None]:
        return self.board.of_five()

    @cached_property
    def _p(self) -> dict[str, list[float | None]]:
        found = iter(self.board.p())
        return {claim.id: [next(found) for _ in self.board.tested[claim.id]] for claim in self.board.claims}

    def _claim(self, claim: Claim) -> str:
        verdict = self._verdicts[claim.id]
        link = f"{claim.page}.html" + (f"#fig-{claim.figure}" if claim.figure else "")
        parts = "".join(
            f"<li>{self._part(tested, p)}</li>"
            for tested, p in zip(self.board.tested[claim.id], self._p[claim.id], strict=True)
        )
        measured = any(tested.differences for tested in self.board.tested[claim.id])
        five = draws_words(self._of_five[claim.id], self.board.pairs(claim)) if measured else ""
        return (
            f'<li class="claim" id="claim-{claim.id}" data-verdict="{verdict}">'
            f'<p><span class="verdict">{SYMBOLS[verdict]} {words(claim, verdict)}</span> '
            f'<a href="{link}">{html.escape(claim.sentence)}</a></p>'
            f'<ul class="parts">{parts}</ul>'
            f'<p class="facts">{SOURCES[claim.source]} {five}</p>{self._number_table(claim)}</li>'
        )

    def _part(self, tested: Tested, p: float | None) -> str:
        part, values = tested.part, [*tested.differences.values()]
        said = f"{sides(part)}, {SHORT_NAMES[part.task].lower()}, {MEASURES[part.measure]}"
        said += f", {part.detail}" if part.detail else ""
        if part.margin:
            said += f" (margin {part.margin:g}{UNITS[part.unit]})"
        if not values:
            return f"{html.escape(said)}: not yet measured, {html.escape(tested.why)}"
        found = compare(values)
        effect = f", d = {found.effect:.2f}" if found.effect is not None else ""
        shown = hover(
            effect_words(values, part.unit),
            f"{found.n} pairs, {found.positive} of them above zero{effect}; p = {p:.2g} corrected for "
            f"{self.board.corrected_for} tests; runs: {runs_words(part, self.profile)}"
            if p is not None
            else f"{found.n} pair",
        )
        theirs = (
            f" (published {signed(tested.published, digits(part.unit))})"
            if tested.published is not None
            else ""
        )
        return f'{html.escape(said)}: <span class="effect">{shown}</span>{theirs}'

    def _number_table(self, claim: Claim) -> str:
        numbers = self._numbers(claim)
        if not numbers:
            return ""
        found = Counter(number.verdict() for number in numbers)
        shown = ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS if found[verdict])
        rows = "".join(map(self._number_row, numbers))
        head = "".join(f'<th scope="col">{name}</th>' for name in ("number", "published", "ours", "verdict"))
        what = f"{len(numbers)} published number{'s' if len(numbers) != 1 else ''}"
        apart = f"<p>{html.escape(claim.apart)}</p>" if claim.apart else ""
        return (
            f"<details><summary>{what}: {shown}</summary>{apart}"
            f'<div class="wide" tabindex="0" role="group" aria-label="Numbers of this claim">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
        )

    def _number_row(self, number: Number) -> str:
        row, values = number.row, [*number.values.values()]
        places = digits(row["unit"])
        theirs = f"{row['value']:.{places}f}" + (f" ± {row['sd']:g}" if row["sd"] is not None else "")
        ours = html.escape(number.why)
        if values:
            moment = MOMENT_NAMES.get(number.moment, "")
            ours = hover(
                mean_words(values, places), f"n = {len(values)} seeds; {self.profile} profile, {moment}"
            )
        return (
            f'<tr><th scope="row">{html.escape(number_words(row))}</th>'
            f"<td>{hover(theirs, row['source_text'])}</td>"
            f'<td class="ours">{ours}</td><td class="judged">{number.verdict()}</td></tr>'
        )


def _said(verdict: str) -> str:
    return {"reproduced": "reproduced or holding", "not reproduced": "not reproduced or not holding"}.get(
        verdict, verdict
    )


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
