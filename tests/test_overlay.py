"""The reader's own runs lie over the published ones in every figure of the argument that can show both."""

import io
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from sparsity_moves.figures.book_renderer import Figure
from sparsity_moves.figures.conditions import generality
from sparsity_moves.figures.decomposition import decomposition
from sparsity_moves.figures.grokking import grokking
from sparsity_moves.figures.matching import matching
from sparsity_moves.figures.routers import learned_frozen
from sparsity_moves.figures.strips import LANES, strip
from sparsity_moves.figures.timeline import shift_over_training
from sparsity_moves.figures.undoing import ways_back
from sparsity_moves.store import Store
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.evidence import Evidence

ROOT = Path(__file__).parents[1]


def capacity(argument: Argument) -> object:
    return strip(argument, ("dense", "moe"), name="capacity", caption="C.")


@pytest.fixture(scope="module")
def main() -> Evidence:
    return Evidence.of(Store(ROOT / "results" / "paper"))


@pytest.fixture(scope="module")
def own(main: Evidence) -> Evidence:
    """A reader who trained three seeds."""
    few = main.rows.filter(pl.col("seed") < 3)
    return Evidence(few, main.settings, main.curves.filter(pl.col("spec_id").is_in(few["spec_id"].to_list())))


@pytest.mark.parametrize(
    "figure",
    [
        capacity,
        decomposition,
        generality,
        grokking,
        matching,
        learned_frozen,
        shift_over_training,
        ways_back,
    ],
)
def test_a_figure_has_both_and_says_which_is_which(
    figure: Callable[[Argument], object], main: Evidence, own: Evidence
) -> None:
    both, alone = figure(Argument(main, own)), figure(Argument(main))
    if not isinstance(alone, Figure):
        pytest.skip("its full-scale runs are not stored yet")
    assert isinstance(both, Figure)
    lanes = pl.read_csv(io.StringIO(both.csv))["lane"]
    assert set(lanes) == {LANES["main"], LANES["own"]}
    assert "his computer" in both.caption
    assert "his computer" not in alone.caption
    assert len(pl.read_csv(io.StringIO(alone.csv))) < len(lanes)


def test_the_readers_parts_stand_at_the_same_share_of_training(main: Evidence, own: Evidence) -> None:
    figure = decomposition(Argument(main, own))
    assert isinstance(figure, Figure)
    rows = pl.read_csv(io.StringIO(figure.csv), infer_schema_length=None).filter(lane=LANES["own"])
    assert (rows["own_step"] / rows["own_step"].max() - rows["step"] / rows["step"].max()).abs().max() < 0.01  # type: ignore[operator]
    assert set(rows["n"]) == {3}
    few = Evidence(own.rows.filter(pl.col("arm") != "narrow"), own.settings, own.curves)
    assert "his computer" not in decomposition(Argument(main, few)).caption  # type: ignore[union-attr]
