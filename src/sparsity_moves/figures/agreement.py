"""Does the trainer in the page find what the book's does? Told from the committed benchmark."""

import json
from pathlib import Path
from typing import Any

from sparsity_moves.figures.claim_words import signed
from sparsity_moves.figures.prose import mean
from sparsity_moves.figures.summary import summary
from sparsity_moves.names import checkout

LEARNED = 0.99  # of all inputs every answer right
WHO = {"lab": "the lab's trainer", "python": "the book's trainer"}


def benchmark() -> Path:
    """The table of `benchmarks/lab_agreement.py`."""
    return checkout() / "benchmarks" / "results" / "lab_agreement.json"


def agreement() -> str:
    """What both trainers' models keep without the FFN, whether they differ, and how many learned, by setting."""
    if not benchmark().exists():
        return "Whether both find the same is not measured yet: `python benchmarks/lab_agreement.py` does it."
    told = json.loads(benchmark().read_text(encoding="utf-8"))
    lines = []
    for setting, found in told["no_ffn_accuracy"].items():
        lab, python = (mean(summary(found[who]), of=words) for who, words in WHO.items())
        low, high = (100 * end for end in found["difference"])
        lines.append(
            f"- {setting}: {lab} in the lab, {python} in Python; {told['level']:.1%} interval of the difference "
            f"{signed(low, 1)} to {signed(high, 1)} points (Welch), "
            + ("which includes zero." if low <= 0 <= high else "**which leaves zero out: they differ.**")
        )
    return (
        f"Do the two trainers find the same? Right without the FFN at the last step, over {told['seeds']} seeds each "
        "(`python benchmarks/lab_agreement.py`):\n\n" + "\n".join(lines) + "\n\n" + _learned(told)
    )


def _learned(told: dict[str, Any]) -> str:
    """How many seeds learned in the lab, setting by setting."""
    counts = [
        f"{setting}: {sum(exact >= LEARNED for exact in runs)} of {len(runs)}"
        for setting, runs in told["lab_exact_match"].items()
    ]
    return (
        "How many seeds learn in the time that the lab gives them, that is, are right on at least "
        f"{LEARNED:.0%} of all inputs at the last step? {', '.join(counts)}."
    )
