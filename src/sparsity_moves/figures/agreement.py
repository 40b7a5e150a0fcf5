"""Does the trainer in the page find what the book's does, and how fast is it? Told from the committed benchmarks."""

import json
from pathlib import Path
from typing import Any

from sparsity_moves.figures.benchmarks import rounds
from sparsity_moves.figures.claim_words import signed
from sparsity_moves.figures.prose import mean
from sparsity_moves.figures.summary import summary
from sparsity_moves.names import checkout

LEARNED = 0.99  # of all inputs every answer right
WHO = {"lab": "the lab's trainer", "python": "the book's trainer"}


def benchmark(name: str = "lab_agreement") -> Path:
    """The table that `benchmarks/NAME.py` wrote."""
    return checkout() / "benchmarks" / "results" / f"{name}.json"


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
            + (
                f"no difference is found, and one of {max(-low, high):.1f} points is not ruled out."
                if low <= 0 <= high
                else "**which leaves zero out: they differ.**"
            )
        )
    return (
        f"Do the two trainers find the same? Right without the FFN at the last step, over {told['seeds']} seeds each "
        f"(`python benchmarks/lab_agreement.py`; the usual 5 % are shared among {len(lines)} comparisons):\n\n"
        + "\n".join(lines)
        + "\n\n"
        + _learned(told)
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


def speed() -> str:
    """Seconds until the page has learned and answers, and its steps a second beside PyTorch's."""
    if not benchmark("lab_speed").exists():
        return "How fast the page is has not been measured yet: `python benchmarks/lab_speed.py` does it."
    told = json.loads(benchmark("lab_speed").read_text(encoding="utf-8"))
    about, lines = told["about"], []
    for experts, row in told["experts"].items():
        both = zip(row["steps a second"], row["plain steps a second"], strict=True)
        cells = rounds(row["learned"]), rounds(row["done"]), rounds([page / plain for page, plain in both])
        lines.append(f"| {experts} | {' | '.join(cells)} |")
    answer, task = (
        rounds([1000 * seconds for seconds in told["page"][name]], 0) for name in ("answer", "longest task")
    )
    return (
        f"How fast is it? On {about['cores']} cores, in Chromium {about['chromium'].split('.')[0]}, pictures "
        f"included; medians of {about['rounds']} rounds of one seed and their range "
        "(`python benchmarks/lab_speed.py`):\n\n"
        f"| Experts | Seconds to {LEARNED:.0%} right | Seconds in all | Steps a second, times PyTorch's |\n"
        "|--:|--:|--:|--:|\n" + "\n".join(lines) + "\n\n"
        "PyTorch's is a plain loop of the same model and batch on the same cores, which evaluates nothing. "
        f"A slider moved in training shows the new model's numbers after {answer} ms; the longest that any task "
        f"of the page took its thread is {task} ms."
    )
