"""Does the trainer in the page find what the Python fleet finds? no-FFN accuracy over 20 seeds, at the same settings.

    python benchmarks/lab_agreement.py                         dense and four experts; some minutes on two cores
    python benchmarks/lab_agreement.py --experts 1 2 4 8 16    all that the lab is judged at

The two draw their weights and batches from different generators, so that only distributions can agree: the table
gives both means with their intervals, and the interval of the difference (Welch: unpaired, for a
seed is not the same start in both), which should hold zero. Of m settings each has an interval of 1 - 0.05 / m
(Bonferroni).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import ttest_ind

from sparsity_moves.studies.statistics import interval
from sparsity_moves.training import Spec, train
from sparsity_moves.widgets.lab.host import NO_FFN, Host
from sparsity_moves.widgets.lab.recipes import spec_of

RESULT = Path(__file__).parent / "results" / "lab_agreement.json"


def in_the_lab(spec: Spec) -> tuple[float, float]:
    """Of a run in the page's trainer, at its last step: no-FFN accuracy, and inputs with every answer right."""
    host = Host(spec)
    host.call("initialise", spec.seed)
    for step in range(spec.steps):
        host.step(spec.rate(step))
    return host.evaluate(NO_FFN)[0], host.evaluate()[1]


def in_python(specs: list[Spec]) -> list[float]:
    """No-FFN accuracy of a fleet at its last step."""
    return [run.curve["no_ffn_accuracy"][-1] for run in train(specs)]  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--experts", type=int, nargs="+", default=[1, 4])
    asked = parser.parse_args()
    seeds, level = asked.seeds, 1 - 0.05 / len(asked.experts)
    table = Table("setting", "lab", "Python", f"difference, {level:.1%} interval", "agree")
    found, learned = {}, {}
    for experts in asked.experts:
        name = f"{experts} experts" if experts > 1 else "dense"
        specs = [dataclasses.replace(spec_of({"experts": experts}), seed=seed) for seed in range(seeds)]
        with ProcessPoolExecutor() as pool:
            runs = track(pool.map(in_the_lab, specs), f"{name}, in the lab", total=seeds)
            lab, exact = zip(*runs, strict=True)
        fleet = in_python(specs)
        low, high = ttest_ind(lab, fleet, equal_var=False).confidence_interval(level)
        found[name] = {"lab": lab, "python": fleet, "difference": [float(low), float(high)]}
        learned[name] = exact

        def shown(values: Sequence[float]) -> str:
            ends = interval(list(values)) or (float("nan"), float("nan"))
            return f"{sum(values) / len(values):.1%} [{ends[0]:.1%}, {ends[1]:.1%}]"

        table.add_row(
            name, shown(lab), shown(fleet), f"[{low:.1%}, {high:.1%}]", "yes" if low <= 0 <= high else "NO"
        )
        told = {"seeds": seeds, "level": level, "no_ffn_accuracy": found, "lab_exact_match": learned}
        RESULT.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    Console().print(table)


if __name__ == "__main__":
    main()
