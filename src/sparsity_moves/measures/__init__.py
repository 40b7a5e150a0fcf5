"""One file a measure. Each takes a stacked fleet and its inputs and gives numbers; none knows of disks."""

from sparsity_moves.measures.families import measure_families
from sparsity_moves.measures.moments import measure

__all__ = ["measure", "measure_families"]
