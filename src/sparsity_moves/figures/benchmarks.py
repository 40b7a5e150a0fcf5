"""The committed tables of `benchmarks/`: what was measured once, on a machine that is named."""

import json
from typing import Any

from sparsity_moves.names import checkout


def committed(pattern: str) -> dict[str, dict[str, Any]]:
    """Those whose file's name matches, by that name without its ending."""
    found = sorted((checkout() / "benchmarks" / "results").glob(pattern))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}
