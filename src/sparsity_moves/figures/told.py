"""Numbers of the argument in sentences: each computed, and pointed at it says n, interval, runs and verdict."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from sparsity_moves.figures.claim_words import UNITS, digits, draws_words
from sparsity_moves.figures.looks import difference
from sparsity_moves.figures.prose import hover, listed, percent
from sparsity_moves.figures.summary import summary, with_convergence
from sparsity_moves.figures.theme import arm_label
from sparsity_moves.figures.words import MOMENT_NAMES, TASK_NAMES, task_of
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.claims import Part, Side
from sparsity_moves.studies.evidence import Absent
from sparsity_moves.studies.published import PAPER_MOMENT
from sparsity_moves.studies.statistics import compare
from sparsity_moves.studies.verdicts import REPRODUCED, STRONGER, UNMEASURED, words

NOT_YET = "*not yet measured*"


@dataclass(frozen=True)
class Teller:
    """Says what the main tables of an argument hold."""

    argument: Argument

    @cached_property
    def _of_five(self) -> dict[str, int | None]:
        return self.argument.board.of_five()

    @cached_property
    def _verdicts(self) -> dict[str, str]:
        return self.argument.board.verdicts()

    def values(
        self, task: str, arm: str, measure: str = "no_ffn_accuracy", moment: str = ""
    ) -> dict[int, float]:
        """One value a seed, accuracies in percent; empty where the tables have none."""
        part = Part("more", task, measure, (Side(arm, "", moment), Side(arm)))
        try:
            return dict(self.argument.main.values(part.row(part.sides[0])).iter_rows())
        except Absent:
            return {}

    def mean(self, task: str, arm: str, measure: str = "no_ffn_accuracy", moment: str = "") -> str:
        """A mean over seeds: "49.1 %"."""
        values = [*self.values(task, arm, measure, moment).values()]
        if not values:
            return NOT_YET
        found, unit = summary(values), self._unit(measure)
        places = digits(unit)
        shown = (
            percent(found.mean / 100)
            if unit == "percent"
            else f"{found.mean:,.{places}f}".replace(",", "\u202f")
        )
        bounds = "no interval"
        if found.low is not None and found.high is not None:
            bounds = f"95 % CI {found.low:.{places}f} to {found.high:.{places}f}"
        return hover(
            shown,
            f"n = {found.n} seeds, {bounds}; runs: {self._runs(task, [arm], moment)}"
            f"{self._beside(task, arm, measure, moment)}",
        )

    def difference(
        self,
        task: str,
        arm: str,
        against: str = "dense",
        measure: str = "no_ffn_accuracy",
        moment: str = "",
        *,
        since: str = "",
        able: bool = False,
    ) -> str:
        """A paired difference with its interval: "+39.0 points (95 % CI 36.4 to 41.6)".

        With `able` it is over pairs of which both had learned the task by the last step.
        """
        one, other = (
            self.values(task, arm, measure, moment),
            self.values(task, against, measure, since or moment),
        )
        if able:
            both = {*self.learners(task, arm)} & {*self.learners(task, against)}
            one = {seed: value for seed, value in one.items() if seed in both}
        pairs = [value - other[seed] for seed, value in one.items() if seed in other]
        return self._paired(pairs, measure, self._runs(task, [arm, against], moment, since))

    def growth(self, task: str, arm: str, measure: str = "no_ffn_accuracy", against: str = "dense") -> str:
        """By how much an arm's shift over another's grows from the paper's checkpoint to the last step."""
        late, early = (
            {seed: value - other[seed] for seed, value in own.items() if seed in other}
            for own, other in (
                (self.values(task, arm, measure, moment), self.values(task, against, measure, moment))
                for moment in ("final", "first_best")
            )
        )
        pairs = [value - early[seed] for seed, value in late.items() if seed in early]
        return self._paired(pairs, measure, self._runs(task, [arm, against], "final", "first_best"))

    def _paired(self, pairs: list[float], measure: str, runs: str) -> str:
        if not pairs:
            return NOT_YET
        found, unit = compare(pairs), self._unit(measure)
        effect = f", d = {found.effect:.2f}" if found.effect is not None else ""
        return difference(found, digits(unit), UNITS[unit], f"{effect}; runs: {runs}")

    def learned(self, task: str, arm: str) -> tuple[int, int]:
        """How many seeds have learned the task by the last step (`summary.criterion`), of how many."""
        seeds = with_convergence(self.argument.moments(task, [arm])).filter(moment="final")["converged"]
        return int(seeds.sum()), len(seeds)

    def learners(self, task: str, arm: str) -> list[int]:
        """The seeds that `learned` counts."""
        found = with_convergence(self.argument.moments(task, [arm])).filter(
            pl.col("converged"), moment="final"
        )
        return found["seed"].to_list()

    def verdict(self, claim: str) -> str:
        """A claim's verdict, which leads to the scoreboard: "reproduced"."""
        (found,) = (each for each in self.argument.board.claims if each.id == claim)
        said = words(found, self._verdicts[claim])
        return f'<abbr title="{found.sentence}">{{doc}}`{said} <scoreboard>`</abbr>'

    def holds(self, claim: str) -> bool:
        """Whether every test of a claim holds."""
        return self._verdicts[claim] in (REPRODUCED, STRONGER)

    def where(self, claim: str, sentence: str, otherwise: str = "") -> str:
        """A conclusion, only where the claim that it rests on holds."""
        return sentence if self.holds(claim) else otherwise

    def of_five(self, claim: str) -> str:
        """In how many draws of five seeds a claim holds: in words."""
        (found,) = (each for each in self.argument.board.claims if each.id == claim)
        return draws_words(self._of_five[claim], self.argument.board.pairs(found))

    def chance(self, task: str) -> str:
        """What the strongest strategy scores that computes nothing."""
        rows = self.argument.main.rows.filter(task=task)
        line, share = [*task_of(rows).chance().items()][-1]
        return hover(percent(share), f"{line}; exact")

    def missing(self, task: str, arms: Iterable[str]) -> str:
        """A sentence that names arms without full-scale runs; empty where all are there."""
        names = [arm_label(arm) for arm in self.argument.missing(task, arms)]
        if not names:
            return ""
        on = f"Not yet run at this scale on {TASK_NAMES[task]}"
        return f"*{on}: {'; '.join(names)}. They join the figure when they are.*"

    def _unit(self, measure: str) -> str:
        return Part("more", "add7", measure, (Side(), Side())).unit

    def _runs(self, task: str, arms: list[str], moment: str, since: str = "") -> str:
        at = MOMENT_NAMES[moment or PAPER_MOMENT[task]] + (f" against {MOMENT_NAMES[since]}" if since else "")
        return (
            f"{listed([*dict.fromkeys(arms)])} on {TASK_NAMES[task]}, {at}, {self.argument.profile} profile"
        )

    def _beside(self, task: str, arm: str, measure: str, moment: str) -> str:
        """What was published of the same, and how ours compares."""
        for number in self.argument.board.numbers:
            row = number.row
            same = (row["task"], row["arm"], row["setting"], row["measure"], row["detail"]) == (
                task,
                arm,
                "",
                measure,
                "",
            )
            if same and moment in ("", row["moment"]) and number.verdict() != UNMEASURED:
                return f"; published {row['value']:g}: {number.verdict()}"
        return ""
