"""Paired differences and what they let us say: the tables and sentences of the first result."""

from collections.abc import Iterator

import polars as pl

from sparsity_moves.figures.claim_words import plain, signed
from sparsity_moves.figures.prose import hover, interval, listed, mean, percent, spread
from sparsity_moves.figures.summary import Summary, criterion, differences, summary, value, with_convergence
from sparsity_moves.figures.theme import arm_label
from sparsity_moves.figures.words import SHORT_NAMES, TASK_NAMES, sentence, task_of
from sparsity_moves.studies.published import PAPER_MOMENT, best, published

SHIFTS = ("no_ffn_accuracy", "mean_ffn_accuracy", "resample_ffn_accuracy")


def at_paper_moment(moments: pl.DataFrame) -> pl.DataFrame:
    """The rows of the checkpoint that the paper's ablations look at, task by task."""
    return moments.filter(pl.col("moment") == pl.col("task").replace_strict(PAPER_MOMENT))


def shift(
    rows: pl.DataFrame, task: str, arm: str, measure: str = "no_ffn_accuracy", against: str = "dense"
) -> Summary | None:
    """Redistribution of one arm (equation `redistribution`); None where no seed has both models."""
    pairs = differences(rows.filter(task=task), ["task"], measure, against).filter(arm=arm)
    return summary(pairs["difference"].to_list()) if len(pairs) else None


NAMED = 12
"""Models that a sentence names; a table names more."""

PAIRS = 6
"""Fewest pairs that can show a shift: fewer all have one sign by luck in more than 5 % of cases (2 · ½ⁿ)."""


def moved(moments: pl.DataFrame, task: str, arm: str) -> str:
    """Whether computation has moved into attention, by the book's definition (chapter "Measuring").

    "yes" when, over pairs that both learned the task, the interval of the shift lies above zero under every
    replacement; else "no"; "too few" with fewer than `PAIRS` pairs.
    """
    return _moved(_of_learners(moments, task, arm))


def _moved(found: list[Summary | None]) -> str:
    if any(each is None or each.n < PAIRS for each in found):
        return "too few"
    return "yes" if all(each and each.low is not None and each.low > 0 for each in found) else "no"


def _of_learners(moments: pl.DataFrame, task: str, arm: str) -> list[Summary | None]:
    """The shift under each replacement, over pairs that both learned the task."""
    learned = at_paper_moment(with_convergence(moments).filter("converged"))
    return [shift(learned, task, arm, measure) for measure in SHIFTS]


def difference_table(moments: pl.DataFrame) -> pl.DataFrame:
    """Every arm minus dense, paired by seed, at the paper's checkpoint; three ablations; beside the published."""
    rows = at_paper_moment(moments)
    found = []
    for task, arm in _arms(rows):
        zero, *others = (shift(rows, task, arm, measure) for measure in SHIFTS)
        theirs = _published_shift(task, arm)
        able = _of_learners(moments, task, arm)
        found.append(
            {
                "task": SHORT_NAMES[task],
                "FFN": arm_label(arm),
                "zero": _with_interval(zero),
                "mean": _with_interval(others[0]),
                "resample": _with_interval(others[1]),
                "pairs": f"{zero.n if zero else 0} ({able[0].n if able[0] else 0})",
                "moved": _moved(able),
                "published": points(theirs) if theirs is not None else "—",
            }
        )
    return pl.DataFrame(found)


def convergence_table(moments: pl.DataFrame) -> pl.DataFrame:
    """How many models of each arm learned their task, which did not, and no-FFN accuracy with and without those."""
    rows = with_convergence(moments).filter(moment="final")
    found = []
    for task, arm in _arms(rows, dense=True):
        group = rows.filter(task=task, arm=arm)
        learned = group.filter("converged")
        found.append(
            {
                "task": SHORT_NAMES[task],
                "FFN": arm_label(arm),
                "learned": f"{len(learned)} of {len(group)}",
                "not learned: seeds": ", ".join(map(str, group.filter(~pl.col("converged"))["seed"])),
                "no-FFN accuracy, all": mean(value(group, "no_ffn_accuracy")),
                "only learned": mean(value(learned, "no_ffn_accuracy")) if len(learned) else "",
            }
        )
    return pl.DataFrame(found)


def reading(moments: pl.DataFrame) -> Iterator[str]:
    """What these runs say, sentence by sentence, each decided by the numbers it shows."""
    rows = at_paper_moment(moments)
    add7 = rows.filter(task="add7")
    order = ("dense", "narrow", "moe")
    means = {arm: value(add7, "no_ffn_accuracy", arm=arm) for arm in order}
    ordered = means["dense"].mean < means["narrow"].mean < means["moe"].mean
    yield (
        f"**Addition with carry.** Without its FFN, the dense model still gets {mean(means['dense'])} of the digits "
        f"right, the narrow one {mean(means['narrow'])}, the MoE {mean(means['moe'])}. The paper's order "
        f"(dense, then narrow, then MoE) {'holds' if ordered else '**does not hold**'} here."
    )
    chance = task_of(add7).chance()
    strongest = list(chance)[-1]
    above = [
        arm_label(arm)
        for _, arm in _arms(add7, dense=True)
        if value(add7, "no_ffn_accuracy", arm=arm).mean > chance[strongest]
    ]
    yield (
        f"**Chance.** “{sentence(strongest)}” alone scores {percent(chance[strongest])}. "
        + (f"Above it: {listed(above)}." if above else "No arm's mean is above it.")
        + " Below that line a score alone does not show that anything is computed, since copying digits would "
        "explain it; the difference from the dense model, which could copy as well, shows that attention carries "
        "more."
    )
    yield from _router(rows)
    done = {
        task: [
            arm_label(arm) for _, arm in _arms(rows.filter(task=task)) if moved(moments, task, arm) == "yes"
        ]
        for task in TASK_NAMES
    }
    for task in ("modular_addition", "histogram"):
        found = shift(rows, task, "moe")
        others = [shift(rows, task, "moe", measure) for measure in SHIFTS[1:]]
        named = " and ".join(_with_interval(each) for each in others if each)
        yield f"**{sentence(TASK_NAMES[task])}.** " + (
            f"The MoE's shift is {verdict(found)}, with the FFN set to zero; with its mean and with another "
            f"input's output it is {named}."
            if found
            else "No seed has both a dense model and an MoE that learned the task, so nothing can be said."
        )
    yield (
        f"**By the definition of {{doc}}`measuring`** (at least {PAIRS} pairs that learned, the interval above zero "
        "under all three replacements), computation has moved into attention in: "
        + "; ".join(f"{TASK_NAMES[task]}: {listed(arms)}" for task, arms in done.items())
        + ". An arm that fails it has not been shown *not* to move; one that meets it may have moved by next "
        "to nothing: the {doc}`scoreboard` asks for more than a stated margin on the other two tasks."
    )


def _router(rows: pl.DataFrame) -> Iterator[str]:
    found = shift(rows, "add7", "moe", against="moe_frozen")
    if found:
        yield (
            f"**The router.** Learned minus frozen: {verdict(found)}. Read this with {{eq}}`no-gradient` in mind: "
            "this router gets no gradient from the task, so only the balance loss tells the two apart, and "
            "their likeness says little about routers that do learn."
        )


def apart_from_paper(moments: pl.DataFrame) -> pl.DataFrame:
    """Ours beside the published no-FFN accuracy on add-7, in percent."""
    rows = at_paper_moment(moments).filter(task="add7")
    theirs = best(published()).filter(task="add7", measure="no_ffn_accuracy", setting="", detail="")
    found = []
    order = {arm: place for place, arm in enumerate(rows["arm"].unique(maintain_order=True))}
    theirs = theirs.filter(pl.col("arm").is_in(list(order))).sort(
        pl.col("arm").replace_strict(order, default=None)
    )
    for arm, number, sd, source, words in theirs.select(
        "arm", "value", "sd", "source", "source_text"
    ).iter_rows():
        ours = value(rows, "no_ffn_accuracy", arm=arm)
        found.append(
            {
                "FFN": arm_label(arm),
                "ours": f"{100 * ours.mean:.1f} ± {100 * ours.sd:.1f}",
                "95\u00a0% CI": interval(ours),
                "seeds": ours.n,
                "published": f"{number:.1f}" + (f" ± {sd:.1f}" if sd is not None else ""),
                "ours − published": f"{100 * ours.mean - number:+.1f}".replace("-", "−"),
                "source": hover(source, words),
            }
        )
    return pl.DataFrame(found)


def unlearned(moments: pl.DataFrame) -> str:
    """One sentence that names the models that did not learn their task by the last step."""
    rows = with_convergence(moments).filter(~pl.col("converged"), moment="final")
    if rows.is_empty():
        return "Every model learned its task by its last step."
    if len(rows) > NAMED:
        models = f"{len(rows)} of {len(moments.filter(moment='final'))} models"
        return f"{models} did not learn their task by the last step; {{numref}}`tab-learned` names them."
    named = [
        f"{arm_label(arm)} ({TASK_NAMES[task]}, seed {listed(group['seed'].cast(pl.String).to_list())})"
        for (task, arm), group in rows.group_by("task", "arm", maintain_order=True)
    ]
    return f"These did not learn their task by the last step: {listed(named)}."


def criteria() -> str:
    """When a model counts as having learned, task by task."""
    return "; ".join(f"{name}: {criterion(task)}" for task, name in TASK_NAMES.items())


def verdict(found: Summary) -> str:
    """A difference in points, and whether its interval leaves out zero."""
    shown = hover(f"{points(found.mean)} points", spread(found))
    if found.low is None or found.high is None:
        return f"{shown} (one pair, no interval)"
    clear = found.low > 0 or found.high < 0
    return (
        f"{shown} (95\u00a0% CI {interval(found)}, {found.n} pairs), "
        f"{'an interval without zero' if clear else 'an interval that includes zero'}"
    )


def _with_interval(found: Summary | None) -> str:
    """ "+3.8 (3.2 to 4.4)" points; with two decimals where one would show nothing."""
    if found is None:
        return "—"
    places = 1 if abs(found.mean) >= 0.001 else 2
    shown = signed(100 * found.mean, places)
    if found.low is None or found.high is None:
        return shown
    return f"{shown} ({plain(100 * found.low, places)}\u00a0to\u00a0{plain(100 * found.high, places)})"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _published_shift(task: str, arm: str) -> float | None:
    rows = best(published()).filter(task=task, measure="no_ffn_accuracy", setting="", detail="")
    both = {name: rows.filter(arm=name)["value"] for name in (arm, "dense")}
    if any(v.is_empty() for v in both.values()):
        return None
    return float((both[arm][0] - both["dense"][0]) / 100)


def _arms(rows: pl.DataFrame, *, dense: bool = False) -> Iterator[tuple[str, str]]:
    for task in TASK_NAMES:
        for arm in rows.filter(task=task)["arm"].unique(maintain_order=True):
            if dense or arm != "dense":
                yield task, arm
