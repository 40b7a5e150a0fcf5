"""The command line: bad input stops with one clear sentence, a non-zero exit, and loses nothing already trained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsity_moves import cli, studies
from sparsity_moves.store.families import FILES
from sparsity_moves.store.run_files import recorded
from sparsity_moves.studies import Study, arm, engine

SPECS = [arm("dense", "smoke", "add7", seed, steps=4, evaluate_every=2) for seed in (1, 2)]
HERE = Path(cli.__file__).parents[2]


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs a command in this process over a book of two small runs; gives its exit status and both outputs."""
    monkeypatch.setenv("SPARSITY_MOVES_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(studies, "every", lambda profile: [Study("one", tuple(("dense", s) for s in SPECS))])
    monkeypatch.chdir(HERE)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparsity-moves", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A results folder with the two runs and their tables."""
    root = tmp_path_factory.mktemp("trained")
    before = os.environ.get("SPARSITY_MOVES_RESULTS")
    os.environ["SPARSITY_MOVES_RESULTS"] = str(root)
    real, studies.every = studies.every, lambda profile: [Study("one", tuple(("dense", s) for s in SPECS))]
    try:
        engine.run(SPECS, studies.store("smoke"), quiet=True)
        studies.write_tables("smoke")
    finally:
        studies.every = real
        os.environ.pop("SPARSITY_MOVES_RESULTS")
        if before is not None:
            os.environ["SPARSITY_MOVES_RESULTS"] = before
    return root


@pytest.fixture
def results(trained, tmp_path) -> Path:
    """A copy to damage, where `command` looks."""
    shutil.copytree(trained, tmp_path / "results")
    return tmp_path / "results" / "smoke"


def one_sentence(err: str) -> str:
    """The command's only line on stderr."""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("sparsity-moves: ")
    return lines[0]


def test_a_second_training_trains_nothing(command, results):
    before = {p: p.stat().st_mtime_ns for p in (results / "runs").rglob("*")}
    status, out, _ = command("train", "--profile", "smoke")
    assert status == 0
    assert "0 models trained, 2 were there already" in out
    assert {p: p.stat().st_mtime_ns for p in (results / "runs").rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--without", "nowhere"), "nowhere holds no run"),
        (("--checkpoints", "deadbeef"), "holds no parameters of a run deadbeef"),
    ],
)
@pytest.mark.usefixtures("results")
def test_a_pack_of_what_is_not_there_is_refused(command, tmp_path, words, said):
    status, _, err = command("export", str(tmp_path / "pack"), "--profile", "smoke", *words)
    assert status == 2
    assert said in one_sentence(err)
    assert not (tmp_path / "pack").exists()


def test_a_pack_of_nothing_is_refused(command, tmp_path):
    status, _, err = command("export", str(tmp_path / "pack"), "--profile", "smoke")
    assert status == 2
    assert "holds no run to pack" in one_sentence(err)


def test_a_reader_that_goes_away_is_no_traceback():
    words = [
        sys.executable,
        "-c",
        "from sparsity_moves.cli import main; main()",
        "status",
        "--profile",
        "smoke",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=HERE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait() == 1
    assert said == b""


def test_runs_of_no_study_alone_make_no_tables(command, results, monkeypatch):
    for path in results.glob("*.parquet"):
        path.unlink()
    (results / "manifest.json").unlink()
    other = arm("dense", "smoke", "add7", 3, steps=4, evaluate_every=2)
    monkeypatch.setattr(studies, "every", lambda profile: [Study("other", (("dense", other),))])
    status, out, err = command("train", "--profile", "smoke", "--minutes", "0")
    assert status == 0, err
    assert "1 are still missing" in out


class TestOnAMachineThatIsLentForAWhile:
    def test_nothing_is_begun_once_the_time_is_up_and_the_same_command_goes_on(self, command):
        status, out, _ = command("train", "--profile", "smoke", "--minutes", "0")
        assert status == 0
        assert "0 models trained, 0 were there already" in out
        assert "2 are still missing" in out
        status, out, _ = command("train", "--profile", "smoke", "--minutes", "9")
        assert "2 models trained" in out
        assert "missing" not in out

    @pytest.mark.parametrize(("words", "models"), [(("--tasks", "histogram"), 0), (("--studies", "one"), 2)])
    def test_some_studies_or_tasks_can_be_trained_alone(self, command, words, models):
        status, out, _ = command("train", "--profile", "smoke", *words)
        assert status == 0
        assert f"{models} models trained, 0 were there already" in out

    def test_a_study_that_is_not_there_is_refused(self, command):
        status, _, err = command("train", "--profile", "smoke", "--studies", "two")
        assert status == 2
        assert "no study is called 'two'; at the profile smoke there are one" in one_sentence(err)

    def test_only_what_is_new_is_packed(self, command, results, tmp_path):
        shutil.copytree(results, tmp_path / "before")
        more = arm("dense", "smoke", "add7", 3, steps=4, evaluate_every=2)
        engine.run([more], studies.store("smoke"), quiet=True)
        status, out, _ = command(
            "export", str(tmp_path / "pack"), "--profile", "smoke", "--without", str(tmp_path / "before")
        )
        assert status == 0
        assert "1 runs packed" in out


@pytest.mark.usefixtures("results")
def test_what_is_whole_is_said_to_be(command):
    status, out, err = command("verify", "--profile", "smoke")
    assert (status, err) == (0, "")
    assert "2 runs and all tables" in out
    status, out, _ = command("status", "--profile", "smoke")
    assert status == 0
    assert "is whole" in out


@pytest.mark.parametrize("name", ["runs.parquet", "curves.parquet", "manifest.json"])
@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_a_damaged_or_missing_table_stops_the_book(command, results, name, how):
    path = results / name
    content = bytearray(path.read_bytes())
    content[0] ^= 0x80
    path.unlink() if how == "missing" else path.write_bytes(content)
    status, _, err = command("book", "--profile", "smoke")
    assert status == 2
    sentence = one_sentence(err)
    assert name in sentence
    assert "`sparsity-moves train --profile smoke` writes it anew" in sentence


@pytest.mark.parametrize("name", ["runs.parquet", "curves.parquet", "manifest.json"])
def test_verify_finds_a_damaged_table(command, results, name):
    path = results / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    status, _, err = command("verify", "--profile", "smoke")
    assert status == 1
    assert name in err


def test_verify_finds_a_damaged_run_and_training_mends_it(command, results):
    path = results / "runs" / SPECS[0].spec_id / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    status, _, err = command("verify", "--profile", "smoke")
    assert status == 1
    assert "checkpoint.safetensors is missing or damaged" in err
    assert command("train", "--profile", "smoke")[0] == 0
    assert path.read_bytes() == whole
    assert command("verify", "--profile", "smoke")[0] == 0


def test_measures_that_stored_runs_lack_are_added_from_their_parameters(command, results):
    def tables() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in results.glob("*.parquet")}

    whole = tables()
    assert "ablation.parquet" in whole
    for directory in (results / "runs").iterdir():  # as a version without measures stored them
        record = json.loads((directory / "record.json").read_text())
        kept = {name: (directory / name).read_bytes() for name in record["files"] if name not in FILES}
        for name, content in recorded(record, kept).items():
            (directory / name).write_bytes(content)
        for name in FILES:
            (directory / name).unlink(missing_ok=True)
    for path in results.glob("*.parquet"):
        path.unlink()
    (results / "manifest.json").unlink()
    assert command("verify", "--profile", "smoke")[0] == 0
    status, out, _ = command("train", "--profile", "smoke")
    assert status == 0
    assert "0 models trained" in out
    assert "2 of those that were there lacked measures" in out
    assert tables() == whole
    shutil.rmtree(results / "runs")
    (results / "ablation.parquet").unlink()
    status, out, _ = command("train", "--profile", "smoke")
    assert status == 0
    assert "0 models trained" in out
    assert "2 lack measures and were stored without their parameters; --measured trains them again" in out
    assert "2 models trained" in command("train", "--profile", "smoke", "--measured")[1]
    assert tables() == whole


def test_certified_numbers_are_verified_until_the_tables_change(command, results):
    status, out, _ = command("certify", "--profile", "smoke")
    assert status == 0
    assert "published numbers over 2 runs" in out
    command("train", "--profile", "smoke")
    status, out, _ = command("verify", "--profile", "smoke")
    assert status == 0
    assert "computed again from the tables, they are the same" in out
    path = results / "certificate.json"
    path.write_bytes(path.read_bytes()[:-9])
    status, _, err = command("verify", "--profile", "smoke")
    assert status == 1
    assert "certificate.json is missing or damaged" in err


def test_nothing_is_certified_before_there_are_tables(command):
    status, _, err = command("certify", "--profile", "smoke")
    assert status == 2
    assert "sparsity-moves train --profile smoke" in one_sentence(err)


def test_runs_packed_in_one_place_are_merged_in_another(command, results, tmp_path):
    pack = str(tmp_path / "pack")
    status, out, _ = command("export", pack, "--profile", "smoke", "--checkpoints", SPECS[0].spec_id)
    assert status == 0
    assert "2 runs packed" in out
    whole = (results / "runs.parquet").read_bytes()
    shutil.rmtree(results)
    status, out, _ = command("merge", pack, "--profile", "smoke")
    assert status == 0
    assert "2 runs taken, 0 were there already" in out
    assert (results / "runs.parquet").read_bytes() == whole
    assert "2 runs and all tables" in command("verify", "--profile", "smoke")[1]
    assert "0 models trained" in command("train", "--profile", "smoke")[1]


@pytest.mark.usefixtures("results")
def test_a_pack_is_merged_into_its_own_profile_only(command, tmp_path):
    command("export", str(tmp_path / "pack"), "--profile", "smoke")
    status, _, err = command("merge", str(tmp_path / "pack"), "--profile", "paper")
    assert status == 2
    assert "holds runs of the profile smoke, not paper; nothing was taken" in one_sentence(err)


def test_parameters_are_kept_of_the_moments_that_are_named(command):
    assert command("train", "--profile", "smoke", "--checkpoints", "final")[0] == 0
    store = studies.store("smoke")
    assert [store.kept(spec.spec_id) for spec in SPECS] == [["final"], ["final"]]


def test_a_book_without_results_says_how_to_get_them(command):
    status, _, err = command("book", "--profile", "smoke")
    assert status == 2
    assert "sparsity-moves train --profile smoke" in one_sentence(err)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--experts", "5"), "5 experts do not divide a width of 64"),
        (("--top-k", "9"), "top-k is from 1 to the number of experts (4), not 9"),
        (("--experts", "0"), "positive"),
        (("--top-k", "0"), "not 0"),
        (("--width", "0"), "positive"),
        (("--width", "-8"), "positive"),
        (("--seeds", "0"), "seed"),
        (("--seeds", "-1"), "seed"),
    ],
)
def test_a_chapter_with_settings_that_do_not_fit_is_refused(command, tmp_path, words, reason):
    """Before anything is trained; a zero is not taken for a setting that was not given."""
    status, _, err = command("chapter", "redistribution", "--profile", "smoke", *words)
    assert status == 2
    assert reason in one_sentence(err)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("chapter", "study"), [("router", "argument"), ("tree_redistribution", "trees"), ("tree_speed", None)]
)
def test_what_a_chapter_needs_is_trained_before_it_where_progress_is_seen(
    command, monkeypatch, chapter, study
):
    from sparsity_moves.publishing import site

    asked: list = []
    monkeypatch.setattr(engine, "run", lambda specs, store: asked.extend(specs))
    monkeypatch.setattr(site, "build_chapter", lambda *given, **more: "there")
    status, out, _ = command("chapter", chapter, "--profile", "smoke")
    assert (status, out) == (0, "the chapter is at there\n")
    expected = list(getattr(studies, study).study("smoke").specs) if study else []
    assert asked == expected


def test_a_chapter_that_is_not_there_is_refused(command):
    status, _, err = command("chapter", "no_such_chapter", "--profile", "smoke")
    assert status == 2
    assert "no_such_chapter" in one_sentence(err)


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_a_number_of_workers_that_is_none_is_refused(command, workers):
    status, _, err = command("train", "--profile", "smoke", "--workers", workers)
    assert status == 2
    assert "worker" in one_sentence(err)


def test_results_that_cannot_be_written_stop_with_one_sentence(command, tmp_path):
    (tmp_path / "results").write_text("in the way")
    status, _, err = command("train", "--profile", "smoke")
    assert status == 2
    said = [line for line in err.splitlines() if not line.startswith("training:")]
    assert "cannot write" in one_sentence("\n".join(said))


def test_stopped_by_hand_it_says_what_is_kept(command, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(studies.engine, "run", interrupted)
    status, _, err = command("train", "--profile", "smoke")
    assert status == 130
    assert "finished runs are kept" in one_sentence(err)


@pytest.mark.parametrize(
    ("words", "named"),
    [(("train", "--profile", "huge"), "huge"), (("trian",), "trian"), (("train", "--speed"), "--speed")],
)
def test_words_that_are_not_known_are_named_by_the_installed_command(words, named):
    script = Path(sys.executable).with_name("sparsity-moves")
    done = subprocess.run(
        [script, *words], capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"}
    )
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
