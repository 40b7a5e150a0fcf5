"""The committed tables of `benchmarks/`: what was measured once, on a machine that is named."""

import json
import statistics
from typing import Any

from sparsity_moves.names import checkout


def committed(pattern: str) -> dict[str, dict[str, Any]]:
    """Those whose file's name matches, by that name without its ending."""
    found = sorted((checkout() / "benchmarks" / "results").glob(pattern))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}


def rounds(values: list[float], digits: int = 1) -> str:
    """What several rounds measured: their median and range."""
    low, high = (f"{end:.{digits}f}" for end in (min(values), max(values)))
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if low == high else f"{middle} ({low} to {high})"
