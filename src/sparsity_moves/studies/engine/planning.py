"""What is to be trained, and in which shards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from sparsity_moves.kernels.forms import fitting, in_one_pass
from sparsity_moves.model import count
from sparsity_moves.store import Broken, Store
from sparsity_moves.store.tables import checkpoint_name
from sparsity_moves.studies.measuring import lacking, unmeasurable
from sparsity_moves.training import Spec

STACK = {"cpu": 8, "cuda": 64}
"""Models a fleet. On a CPU, eight of add-7 take a tenth less time than twice four, and sixteen gain no more."""
ROOM = {"cpu": 8e9, "cuda": 12e9}
"""Bytes of a step's activations that a fleet may fill, so that those side by side fit a GPU of 80 GB."""


@dataclass(frozen=True)
class Shard:
    """Runs that are trained together."""

    specs: tuple[Spec, ...]

    @property
    def spec_ids(self) -> list[str]:
        return [spec.spec_id for spec in self.specs]

    @property
    def cost(self) -> float:
        """Forward FLOPs, roughly: what progress and order go by."""
        spec = self.specs[0]
        tokens = len(spec.task_object.read_out) * sequences(spec)
        overhead = 2e6  # what a step costs beside its products, in the same unit
        return len(self.specs) * spec.steps * (tokens * count(spec.architecture).flops_per_token + overhead)


def sequences(spec: Spec) -> int:
    """Of one step."""
    return spec.batch or len(spec.task_object.training_pool(spec.seed, 0, spec.pool))


def most(spec: Spec, device: str) -> int:
    """Models of which a step's activations fit `ROOM`.

    At every token they are fourteen numbers a dimension of the stream, most of them of attention, and four a hidden
    unit, or as much as two where a GPU keeps the open ones alone.
    """
    task = spec.task_object
    tokens = (len(task.read_out) + (spec.depth - 1) * task.length) * sequences(spec)
    architecture, ffn = spec.architecture, spec.architecture.ffn
    passes = device == "cuda" and fitting(architecture) and not spec.dropout
    open_alone = passes and in_one_pass(ffn, spec.precision == "tf32")
    units = 2 * ffn.top_k * ffn.expert_width if open_alone else 4 * spec.width
    return max(1, int(ROOM[device] / (4 * tokens * (units + 14 * spec.d_model))))


def shards(specs: Iterable[Spec], stack: int, device: str) -> list[Shard]:
    """Fleets of at most `stack` runs that differ in their seeds only, nor more than fit, and of about one size where
    there are several; the costliest first."""
    groups: dict[Spec, dict[str, Spec]] = defaultdict(dict)
    for spec in specs:
        groups[spec.shape][spec.spec_id] = spec
    cut = []
    for shape, group in groups.items():
        models = list(group.values())
        fleets = ceil(len(models) / min(stack, most(shape, device)))
        size = ceil(len(models) / fleets)
        cut += [Shard(tuple(models[i : i + size])) for i in range(0, len(models), size)]
    return sorted(cut, key=lambda shard: -shard.cost)


def missing(
    specs: Sequence[Spec], store: Store, moment: str | None = None, measured: bool = False
) -> tuple[list[Spec], list[str]]:
    """Runs to train, and one sentence for each damaged thing that has been set aside for it.

    Where a `moment` is named, a run whose parameters then are not stored is to be trained too; where `measured`,
    one that lacks measures and parameters to measure it from.
    """
    lost = store.set_tables_aside() if store.tables.damage() else {}
    todo, said = [], list(lost.values())
    lack = set(unmeasurable(specs, store)) if measured else set()
    for spec in dict.fromkeys(specs):
        sentence = damaged(spec.spec_id, store)
        if sentence:
            said.append(sentence)
        absent = not store.has(spec) or (moment and not store.has(spec, moment))
        if sentence or absent or spec in lack or checkpoint_name(spec.spec_id) in lost:
            todo.append(spec)
    return todo, said


def damaged(spec_id: str, store: Store) -> str | None:
    """One sentence, where a run's directory was damaged and has been set aside."""

    def found() -> Broken | None:
        try:
            if (store.runs / spec_id).exists():
                store.record(spec_id)
        except Broken as broken:
            return broken
        return None

    if not found():
        return None
    with store.writing():  # another process may have seen it too, and have put a whole one in its place
        if not (broken := found()):
            return None
        return f"{broken}; the run was set aside as {store.set_aside(spec_id)} and is trained again"


def trained_meanwhile(spec: Spec, store: Store, moment: str | None, measured: bool = False) -> bool:
    """Whether another process has stored a run that was missing."""
    there = (store.runs / spec.spec_id / "record.json").exists()
    return there and not (measured and lacking([spec], store)) and (moment is None or store.has(spec, moment))
