"""A study: which runs a chapter needs, under which names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields

import polars as pl

from sparsity_moves.errors import UserError
from sparsity_moves.names import Family, Profile
from sparsity_moves.store import Store, measured
from sparsity_moves.training import Spec
from sparsity_moves.training.profiles import SEEDS


@dataclass(frozen=True)
class Study:
    """Named runs. The same run may stand in several studies; it is trained once."""

    name: str
    runs: tuple[tuple[str, Spec], ...]
    """(arm, spec), each spec once."""

    @property
    def specs(self) -> list[Spec]:
        return [spec for _, spec in self.runs]

    @property
    def profile(self) -> Profile:
        return self.runs[0][1].profile


@dataclass(frozen=True)
class Results:
    """A study's tables, as figures read them."""

    study: Study
    moments: pl.DataFrame
    """One row a model and moment: `study`, `arm`, the measures, every field of the spec."""
    curves: pl.DataFrame
    """One row a model and step looked at, with its `arm` and `seed`."""


def seeds(number: int) -> tuple[int, ...]:
    """The first `number` seeds: the paper's five, then 0, 1, 2 and on."""
    if number < 1:
        raise UserError(f"a study needs at least one seed, not {number}")
    more = (n for n in range(number) if n not in SEEDS)
    return (SEEDS + tuple(more))[:number]


FIRST = ("spec_id", "study", "task", "arm", "seed", "moment", "step")
"""The columns that a table of moments begins with."""


def named(study: Study) -> pl.DataFrame:
    """`study`, `arm` and `spec_id` of its runs, in their order."""
    return pl.DataFrame(
        {
            "spec_id": [spec.spec_id for spec in study.specs],
            "study": [study.name] * len(study.runs),
            "arm": [arm for arm, _ in study.runs],
        }
    )


def with_defaults(moments: pl.DataFrame) -> pl.DataFrame:
    """A run from tables that are older than a setting has its default: else it would have another address."""
    defaults = {f.name: f.default for f in fields(Spec) if f.default is not None and f.default is not MISSING}
    return moments.with_columns(
        pl.col(name).fill_null(value) if name in moments.columns else pl.lit(value).alias(name)
        for name, value in defaults.items()
    )


def results(study: Study, store: Store) -> Results:
    """A study's tables from the store. Raises `Broken` where a run is missing or damaged."""
    names, ids = named(study), [spec.spec_id for spec in study.specs]
    moments = with_defaults(names.join(store.moments(ids), on="spec_id", maintain_order="left_right"))
    curves = names.drop("study").join(store.curves(ids), on="spec_id", maintain_order="left_right")
    curves = curves.join(
        moments.select("spec_id", "seed", "task").unique(), on="spec_id", maintain_order="left"
    )
    return Results(study, moments.select(*FIRST, pl.exclude(FIRST)), curves)


def measures(study: Study, store: Store, family: Family) -> pl.DataFrame:
    """A family's rows of a study's runs, with their `arm`, `task` and `seed`; runs that were not measured have none.

    Raises `Broken` where the table is damaged.
    """
    rows = measured.rows(store, family, [spec.spec_id for spec in study.specs])
    task, seed = ([getattr(spec, name) for spec in study.specs] for name in ("task", "seed"))
    names = named(study).drop("study").with_columns(task=pl.Series(task), seed=pl.Series(seed))
    return names.join(rows, on="spec_id", maintain_order="left_right")


def tables(studies: Iterable[Study], store: Store) -> tuple[pl.DataFrame, pl.DataFrame]:
    """runs.parquet and curves.parquet: what is stored of all studies, and runs that only the old tables hold.

    The latter have no study and no arm. A curve stands once, whichever studies show its run.
    """
    names = pl.concat([named(study) for study in studies])
    names = names.filter(pl.col("spec_id").is_in(store.spec_ids()))
    others = sorted(store.tabled().keys() - set(names["spec_id"]))
    names = pl.concat(
        [names, pl.DataFrame({"spec_id": others}, schema={"spec_id": pl.String})], how="diagonal"
    )
    ids = sorted(set(names["spec_id"]))
    moments = with_defaults(names.join(store.moments(ids), on="spec_id", maintain_order="left_right"))
    return moments.select(*FIRST, pl.exclude(FIRST)), store.curves(ids)
