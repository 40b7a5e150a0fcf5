"""What is measured of a run, beside the numbers of runs.parquet: all of it, or at full scale what is cheap.

Which families a run is to have is decided by its spec alone, so that it can be seen which are missing: of a run that
was stored before they were there, or whose table was lost. Where the parameters of all its moments are stored they
are measured from these; else the run has to be trained again, and until then has those of the moments whose are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

from sparsity_moves.measures import measure_families
from sparsity_moves.measures.families import applies
from sparsity_moves.names import FAMILIES, MOMENTS, Family, Profile, TaskName
from sparsity_moves.store import Store, measured
from sparsity_moves.studies.arms import ARMS, arm
from sparsity_moves.training import Run, Spec
from sparsity_moves.training.fleet import Moment
from sparsity_moves.training.profiles import SEEDS

CHEAP: tuple[Family, ...] = ("ablation", "routing")
"""Of every run. At full scale the others are measured of the arms as they are, not of the points of the sweeps."""
NEURONS = SEEDS[:2]
"""Seeds whose neurons have rows of their own at full scale; of all there are means."""


@cache
def arms(profile: Profile, task: TaskName) -> frozenset[Spec]:
    """Every arm at its own settings, by its run of seed 0."""
    return frozenset(arm(name, profile, task, 0) for name in ARMS)


def wanted(spec: Spec) -> tuple[Family, ...]:
    """The families of measures that a run is to have."""
    own: tuple[Family, ...] = FAMILIES
    if spec.profile == "paper":
        if replace(spec, seed=0) not in arms(spec.profile, spec.task):
            own = CHEAP
        elif spec.seed not in NEURONS:
            own = tuple(family for family in FAMILIES if family != "neurons")
    return tuple(family for family in own if applies(family, spec))


def lacking(specs: Iterable[Spec], store: Store) -> dict[Spec, tuple[Family, ...]]:
    """The stored runs that lack families, wholly or at a moment, and which. Raises `Broken` at a damaged table."""
    asked = list(dict.fromkeys(specs))
    stored = [spec for spec in asked if store.has(spec)]
    ids = [spec.spec_id for spec in stored]
    there, moments = measured.there(store, ids), measured.moments(store, ids)
    found = {
        spec: tuple(
            family
            for family in wanted(spec)
            if not moments[spec.spec_id] <= there.get(spec.spec_id, {}).get(family, set())
        )
        for spec in stored
    }
    return {spec: families for spec, families in found.items() if families}


def unmeasurable(specs: Iterable[Spec], store: Store) -> list[Spec]:
    """Stored runs that lack families, and the parameters of one of their moments at least to measure them from."""
    lack = list(lacking(specs, store))
    if not lack:
        return []
    needed = measured.moments(store, (spec.spec_id for spec in lack))
    return [spec for spec in lack if not needed[spec.spec_id] <= set(store.kept(spec.spec_id))]


def fill(
    specs: Iterable[Spec],
    store: Store,
    device: str = "cpu",
    stack: int = 8,
    tell: Callable[[float], None] = lambda share: None,
) -> tuple[int, list[Spec]]:
    """Measure what stored runs lack, from their parameters, at the moments of which these were kept.

    `tell` hears the share done. Gives how many runs have more for it, and those that have to be trained again to
    have all. Raises `Broken` where something stored is damaged.
    """
    groups: dict[Spec, list[Spec]] = defaultdict(list)
    lack, done = lacking(specs, store), 0
    left = unmeasurable(lack, store)
    there = measured.there(store, (spec.spec_id for spec in lack))
    for spec, families in lack.items():
        has = there.get(spec.spec_id, {})
        if any(set(store.kept(spec.spec_id)) - has.get(family, set()) for family in families):
            groups[spec.shape].append(spec)
    for group in groups.values():
        for start in range(0, len(group), stack):
            some = group[start : start + stack]
            runs = [restored(spec, store) for spec in some]
            rows = measure_families(runs, [lack[spec] for spec in some], device)
            measured.add(store, {spec.spec_id: of for spec, of in zip(some, rows, strict=True)})
            done += len(some)
            tell(done / sum(map(len, groups.values())))
    return done, left


def restored(spec: Spec, store: Store) -> Run:
    """A stored run with the parameters that were kept of it; its curve stays in the store."""
    rows = store.moments([spec.spec_id])
    steps = dict(zip(rows["moment"], rows["step"], strict=True))
    kept = store.kept(spec.spec_id)
    there: dict[str, Moment] = {
        name: Moment(steps[name], store.checkpoint(spec.spec_id, name)) for name in MOMENTS if name in kept
    }
    return Run(spec, {}, there)
