"""The models that a number speaks of, found in a store's tables: one value a seed.

A number names a task, an arm, a setting, a measure and a moment, as a row of `published.csv` does. Without a setting
the arm is that of the study `redistribution`, or of the one study that has it; with one (`norm=rms`), it is the runs
that differ from that arm's in this setting alone. What the tables do not give is `Absent`, with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from sparsity_moves.names import FAMILIES
from sparsity_moves.store import Store
from sparsity_moves.store.tables import CURVES, RUNS
from sparsity_moves.studies import parts
from sparsity_moves.studies.published import PAPER_MOMENT

FOUR = ("dense", "glu", "moe", "moe_glu")
"""The paper's own arms."""
MAIN = "redistribution"
WIDTHS = "sweep"
"""The one study in which a name stands for several widths."""
UNIT = {"percent": 100.0, "points": 100.0}
Row = dict[str, Any]


class Absent(Exception):
    """Why a number cannot be computed from the tables."""


class Families(Mapping[str, pl.DataFrame]):
    """Tables of measures by their name, each read when it is first asked for."""

    def __init__(self, names: Iterable[str], read: Callable[[Any], pl.DataFrame]) -> None:
        self._read = read
        self._tables: dict[str, pl.DataFrame | None] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> pl.DataFrame:
        found: pl.DataFrame | None = self._tables[name]
        if found is None:
            found = self._tables[name] = self._read(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)


class Evidence:
    """Runs, found as the paper speaks of them.

    Args:
        rows: one row a study, model and moment, as runs.parquet has them.
        settings: every run's settings by its spec_id; what stands at its default is left out.
        curves: one row a model and look.
        families: tables of measures by their name, as far as there are any (see `parts`).
    """

    def __init__(
        self,
        rows: pl.DataFrame,
        settings: dict[str, Row],
        curves: pl.DataFrame,
        families: Mapping[str, pl.DataFrame] | None = None,
    ) -> None:
        self.rows, self.curves, self.families = rows, curves, families or {}
        self.settings = {i: _without(own, "seed") for i, own in settings.items()}
        self._alike: dict[str, list[str]] = defaultdict(list)  # runs by their settings, as `_key` writes them
        for spec_id, own in self.settings.items():
            self._alike[_key(own)].append(spec_id)
        self._found: dict[tuple[str, str, str], pl.DataFrame] = {}
        self._parts: dict[
            tuple[str, str, str], pl.DataFrame
        ] = {}  # of all models, by measure, detail, setting

    @staticmethod
    def of(store: Store) -> Evidence:
        """The runs of a store's tables. Raises `Broken` where these are missing or damaged."""
        there = [name for name in FAMILIES if f"{name}.parquet" in store.tables.manifest()["files"]]
        families = Families(there, store.tables.family)
        return Evidence(store.table(RUNS), store.tables.settings(), store.table(CURVES), families)

    def values(self, row: Row) -> pl.DataFrame:
        """`seed` and `value`, in the unit that the row names; raises `Absent` where there is none.

        A model without a value (one that never grokked has no step at which it did) is left out.
        """
        measure, scale = row["measure"], UNIT.get(row["unit"], 1.0)
        if row["detail"].endswith("of the arms"):
            return self._extreme(row)
        if row["detail"]:
            return self._part(row)
        moment = self.moment(row)
        if measure == "difference_from_learned":
            learned = self.at(row | {"arm": row["arm"].removesuffix("_frozen")}, moment)
            found = self.at(row, moment).join(learned, on="seed", suffix="_learned").sort("seed")
            value = pl.col("no_ffn_accuracy") - pl.col("no_ffn_accuracy_learned")
        elif measure in ("grokked", "grokked_seeds"):  # the latter: so many of the paper's five
            grokked = self.at(row, "grokked", required=False)["spec_id"].to_list()
            found = self.at(row, "final")
            value = pl.col("spec_id").is_in(grokked) * float(row["n"] if measure == "grokked_seeds" else 1)
        elif measure == "grokked_step":
            found, value = self.at(row, "grokked"), pl.col("step").cast(pl.Float64)
        elif measure not in self.rows.columns:
            raise Absent("the tables have no such column")
        else:
            found, value = self.at(row, moment), pl.col(measure)
        found = found.select("seed", (scale * value).alias("value")).drop_nulls()
        if found.is_empty():
            raise Absent("the tables have no value for it")
        return found

    def _part(self, row: Row) -> pl.DataFrame:
        """A number of a part of each model, from a table of measures."""
        place = parts.part(row)
        if place is None or place[0] not in self.families:
            raise Absent("the tables hold whole models, not their parts")
        # a convention says how the number is taken, not which models it is of
        models = self.at(
            row | {"setting": "" if row["setting"].startswith("convention=") else row["setting"]},
            self.moment(row),
        )
        name = (row["measure"], row["detail"], row["setting"])
        if name not in self._parts:
            self._parts[name] = parts.values(row, self.families[place[0]])
        found = models.select("spec_id", "moment", "seed").join(
            self._parts[name], on=["spec_id", "moment"], maintain_order="left"
        )
        if found.is_empty():
            raise Absent("the tables of measures do not have these runs")
        return found.select("seed", pl.col("value").cast(pl.Float64) * UNIT.get(row["unit"], 1.0))

    def _extreme(self, row: Row) -> pl.DataFrame:
        """The lowest or highest of the paper's four arms, by their means."""
        each = []
        for arm in FOUR:
            try:
                each.append(self.values(row | {"arm": arm, "detail": ""}))
            except Absent:
                continue
        if not each:
            raise Absent("no run is stored")
        pick = min if row["detail"].startswith("lowest") else max
        return pick(each, key=lambda values: float(values["value"].mean()))  # type: ignore[arg-type]

    def moment(self, row: Row) -> str:
        """When a number's models are looked at: the row's moment, or the paper's."""
        if row["measure"] in ("grokked", "grokked_seeds", "grokked_step"):
            return "grokked"
        return str(row["moment"] or PAPER_MOMENT.get(row["task"], ""))

    def at(self, row: Row, moment: str, *, required: bool = True) -> pl.DataFrame:
        """The models that a number speaks of, at one moment, in the order of their seeds."""
        found = self.models(row["task"], row["arm"], row["setting"]).filter(moment=moment)
        if required and found.is_empty():
            raise Absent(f"no run has reached the moment {moment}")
        return found.sort("seed")

    def models(self, task: str, arm: str, setting: str = "") -> pl.DataFrame:
        """Every row of these models, each once. Raises `Absent` where there is none, or several settings."""
        if setting == "experts=1":  # one expert is the dense layer: its balance loss is constant
            arm, setting = "dense", ""
        key = (task, arm, setting)
        if key not in self._found:
            self._found[key] = self._models(*key)
        return self._found[key]

    def _models(self, task: str, arm: str, setting: str) -> pl.DataFrame:
        rows = self.rows.filter(task=task, arm=arm)
        if MAIN in set(rows["study"]):
            rows = rows.filter(study=MAIN)
        elif set(rows["study"]) != {WIDTHS}:
            rows = rows.filter(pl.col("study") != WIDTHS)
        shapes = {_key(own): own for own in (self.settings[i] for i in rows["spec_id"].unique())}
        if len(shapes) != 1:
            raise Absent("no run is stored" if not shapes else "studies give this arm several settings")
        (shape,) = shapes.values()
        if setting:
            field, _, value = setting.partition("=")
            if field not in self.rows.columns:
                raise Absent(f"runs have no setting {field}")
            rows = self.rows.filter(pl.col(field).cast(pl.String).str.strip_suffix(".0") == value)
            own = {i: _key(_without(self.settings[i], field)) for i in rows["spec_id"].unique()}
            fits = _key(_without(shape, field))
            rows = rows.filter(pl.col("spec_id").is_in([i for i, key in own.items() if key == fits]))
            if rows.is_empty():
                raise Absent("no run is stored")
        else:
            rows = self.rows.filter(pl.col("spec_id").is_in(self._alike[_key(shape)]))
        return rows.unique(("spec_id", "moment"), keep="first", maintain_order=True)


def _without(settings: Row, field: str) -> Row:
    return {key: value for key, value in settings.items() if key != field}


def _key(settings: Row) -> str:
    return str(sorted(settings.items()))
