"""The paper's numbers as a table: whole, tidy, and found by name."""

import polars as pl
import pytest

from sparsity_moves import studies
from sparsity_moves.errors import UserError
from sparsity_moves.figures.theme import arm_label
from sparsity_moves.store import Broken
from sparsity_moves.studies.published import PAPER_MOMENT, SOURCES, best, find, full_scale, published
from sparsity_moves.tasks import TASKS


def test_every_row_names_a_task_an_arm_a_source_and_a_moment_that_exist() -> None:
    rows = published()
    assert set(rows["task"]) <= {*TASKS, ""}
    assert set(rows["source"]) == set(SOURCES)
    assert set(rows["moment"]) <= {"", "first_best", "grokked", "final"}
    assert all(arm_label(arm) for arm in rows["arm"].unique() if arm)
    assert rows["value"].null_count() == 0


def test_a_source_gives_a_number_once() -> None:
    key = ["task", "arm", "setting", "measure", "detail", "source"]
    assert not published().select(key).is_duplicated().any()


def test_values_lie_in_their_unit() -> None:
    for unit, high in (("percent", 100), ("fraction", 1), ("seeds", 5)):
        assert published().filter(unit=unit)["value"].is_between(0, high).all(), unit


@pytest.mark.parametrize(
    ("arm", "value", "sd"),
    [("dense", 11.9, 3.6), ("narrow", 23.7, 5.3), ("moe", 44.3, 12.5), ("moe_frozen", 49.1, 9.5)],
)
def test_the_headline_is_there(arm: str, value: float, sd: float) -> None:
    found = find("add7", arm, "no_ffn_accuracy")
    assert (found["value"], found["sd"], found["n"]) == (value, sd, 5)


def test_the_paper_stands_before_notes() -> None:
    assert find("modular_addition", "dense", "no_ffn_accuracy")["source"] == "paper"
    assert best(published()).select("task", "arm", "setting", "measure", "detail").is_unique().all()


def test_ablations_were_looked_at_where_we_say_the_paper_looks() -> None:
    for task, moment in PAPER_MOMENT.items():
        rows = published().filter(pl.col("measure") == "no_ffn_accuracy", task=task)
        assert set(rows["moment"]) == {moment}


def test_a_number_that_was_not_published_is_refused() -> None:
    with pytest.raises(UserError, match="no published number for add7, moe_hash"):
        find("add7", "moe_hash", "no_ffn_accuracy")


class TestFullScale:
    rows = pl.DataFrame({"spec_id": ["a", "b"], "study": ["redistribution", "sweep"]})

    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SPARSITY_MOVES_RESULTS", str(tmp_path))

    def test_there_is_none_before_it_is_run(self) -> None:
        assert full_scale("redistribution") is None

    def test_it_is_the_study_s_rows(self) -> None:
        studies.store("paper").tables.write(self.rows, pl.DataFrame({"spec_id": ["a"]}), [])
        found = full_scale("redistribution")
        assert found is not None
        assert found["spec_id"].to_list() == ["a"]
        assert full_scale("patching") is None

    def test_a_damaged_table_is_refused(self) -> None:
        studies.store("paper").tables.write(self.rows, pl.DataFrame({"spec_id": ["a"]}), [])
        (studies.store("paper").root / "runs.parquet").write_bytes(b"")
        with pytest.raises(Broken, match="damaged"):
            full_scale("redistribution")
