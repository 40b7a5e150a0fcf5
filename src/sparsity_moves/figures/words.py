"""What a run was, in words, from the columns of its spec: captions never type a setting in."""

import polars as pl

from sparsity_moves.figures.prose import cell, listed
from sparsity_moves.tasks import TASKS, Task
from sparsity_moves.training import PROFILES, settings

TASK_NAMES = {
    "add7": "addition with carry",
    "modular_addition": "modular addition",
    "histogram": "histogram",
}
SHORT_NAMES = {"add7": "Addition", "modular_addition": "Modular", "histogram": "Histogram"}
"""For table cells."""
MOMENT_NAMES = {
    "first_best": "the first best checkpoint",
    "grokked": "the checkpoint at which it grokked",
    "final": "the last step",
}
COMPONENT_NAMES = {"ffn": "the FFN", "attention": "attention"}
REPLACEMENT_NAMES = {
    "no": "set to zero",
    "mean": "replaced by its mean",
    "resample": "taken from another input",
}

assert set(TASK_NAMES) == set(TASKS)


def task_of(rows: pl.DataFrame) -> Task:
    """The task that these rows of `runs.moments` were run on: all of one task, at one setting."""
    fields = {"add7": ("digits", "addend", "train_below"), "modular_addition": ("modulus", "train_fraction")}
    name = rows["task"][0]
    wanted = fields.get(name, ("alphabet", "symbols"))
    return TASKS[name](**{field: rows[field][0] for field in wanted if field in rows.columns})


def setting(rows: pl.DataFrame) -> str:
    """The task's setting: "3 digits plus 7", "modulus 31", "8 symbols from 16"."""
    row = rows.row(0, named=True)
    match row["task"]:
        case "add7":
            return f"{row['digits']} digits plus {row['addend']}"
        case "modular_addition":
            return f"modulus {row['modulus']}, {row['train_fraction']:.0%} of the pairs trained on".replace(
                "%", "\u00a0%"
            )
        case _:
            return f"{row['symbols']} symbols from an alphabet of {row['alphabet']}"


def setting_beside_paper(rows: pl.DataFrame) -> str:
    """`setting`, and the paper's own where it is another."""
    task = rows["task"][0]
    ours, theirs = setting(rows), setting(pl.DataFrame([{"task": task} | settings("paper", task)]))
    return ours if ours == theirs else f"{ours} (paper: {theirs})"


def protocol(rows: pl.DataFrame) -> str:
    """Model and training in one phrase, from rows of one task."""
    row = rows.filter(arm="dense").row(0, named=True) if "dense" in rows["arm"] else rows.row(0, named=True)
    batch = f"batches of {row['batch']}" if row["batch"] else "all training inputs every step"
    return (
        f"{setting(rows)}; d_model {row['d_model']}, {row['heads']} heads, dense FFN width {row['width']}; "
        f"{cell(row['steps'])} steps of {batch}"
    )


def seeds(rows: pl.DataFrame) -> str:
    """How many seeds an arm has: "8 seeds an arm", or per task where they differ."""
    counts = rows.group_by("task", "arm", maintain_order=True).agg(pl.col("seed").n_unique())
    each = {
        task: sorted(set(counts.filter(task=task)["seed"]))
        for task in counts["task"].unique(maintain_order=True)
    }
    if len({tuple(numbers) for numbers in each.values()}) == 1:
        return f"{_range(next(iter(each.values())))} an arm"
    return f"{listed([f'{_range(n)} ({TASK_NAMES[t]})' for t, n in each.items()])} an arm"


def _range(numbers: list[int]) -> str:
    low, high = numbers[0], numbers[-1]
    return f"{low if low == high else f'{low} to {high}'} seed{'s' if high != 1 else ''}"


def profile(rows: pl.DataFrame) -> str:
    """Which profile trained these rows: "laptop profile"."""
    names: list[str] = [name for name in PROFILES if name in set(rows["profile"])]
    return f"{listed(names)} profile"


def sentence(text: str) -> str:
    """With a capital first letter."""
    return text[:1].upper() + text[1:]
