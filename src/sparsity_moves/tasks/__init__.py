"""What is learned: digit addition with carry, modular addition, histogram counting."""

from sparsity_moves.tasks.addition import Addition
from sparsity_moves.tasks.histogram import Histogram
from sparsity_moves.tasks.modular import ModularAddition
from sparsity_moves.tasks.task import Sequences, Task, generator, stacked

TASKS: dict[str, type[Task]] = {t.name: t for t in (Addition, ModularAddition, Histogram)}

__all__ = [
    "TASKS",
    "Addition",
    "Histogram",
    "ModularAddition",
    "Sequences",
    "Task",
    "generator",
    "stacked",
]
