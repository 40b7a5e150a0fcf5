"""The certificate: every published number that the tables give again, checked from them alone, without torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sparsity_moves.errors import UserError
from sparsity_moves.store import Store
from sparsity_moves.store.files import digest, write_json
from sparsity_moves.store.shards import joined
from sparsity_moves.studies import arm, certificate

SEEDS = range(1, 7)
VALUES = np.random.default_rng(0).uniform(0.1, 0.6, len(SEEDS))
LOCK = Path(__file__).parents[1] / "constraints.txt"


def planted(root: Path, values=VALUES, loss=math.nan) -> Store:
    """Tables of which every answer is known: two arms of add-7, one with a norm; three of six models grok. `loss` is
    that of a model whose measures are no number."""
    runs, curves, shards = [], [], []

    def add(name, task, seed, moments, study, label=None, **more):
        spec = arm(name, "smoke", task, seed, **more)
        own = json.loads(spec.canonical)
        settings = {key: value for key, value in own.items() if key != "seed"}
        shards.append(
            {"shape": spec.shape.spec_id, "settings": settings, "runs": {spec.spec_id: seed}, "device": "cpu"}
        )
        for moment, step, value in moments:
            key = {"spec_id": spec.spec_id, "study": study, "task": task, "arm": label or name, "seed": seed}
            measured = {"moment": moment, "step": step, "no_ffn_accuracy": value, "attention_share": value}
            runs.append(key | measured | {"norm": spec.norm, "experts": spec.experts, "width": spec.width})
        curves.append(
            {
                "spec_id": spec.spec_id,
                "step": 1,
                "loss": loss if any(map(math.isnan, (m[2] for m in moments))) else 1.0,
            }
        )

    for seed, value in zip(SEEDS, values, strict=True):
        value = float(value)
        moments = [("first_best", 1, value), ("final", 2, 0.9)]
        add("dense", "add7", seed, moments, "redistribution")
        add("dense", "add7", seed, [("first_best", 1, 0.5)], "sweep", width=32)
        add("dense", "add7", seed, [("first_best", 1, 2 * value)], "controls", "dense_norm", norm="rms")
        add("moe", "add7", seed, moments, "redistribution")
        add("moe_frozen", "add7", seed, [("first_best", 1, value + 0.05)], "redistribution")
        grokked = [("grokked", 100 * seed, value)] if seed % 2 else []
        add("dense", "modular_addition", seed, [*grokked, ("final", 9, 1.0)], "redistribution")
    store = Store(root)
    store.tables.write(pl.DataFrame(runs, infer_schema_length=None), pl.DataFrame(curves), joined(shards))
    return store


@pytest.fixture
def store(tmp_path) -> Store:
    return planted(tmp_path / "smoke")


@pytest.fixture
def certified(store) -> Store:
    certificate.certify(store, LOCK)
    return store


def number(store: Store, task: str, arm: str, measure: str, setting: str = "") -> dict:
    wanted = {"task": task, "arm": arm, "measure": measure, "setting": setting}
    rows = certificate.numbers(store)["numbers"]
    (row,) = [row for row in rows if wanted.items() <= row.items()]
    return row


class TestNumbers:
    """Each is the mean over seeds, where the paper looks, in the paper's unit."""

    def test_a_mean_stands_beside_the_published_value_with_its_interval(self, store):
        row = number(store, "add7", "dense", "no_ffn_accuracy")
        assert row["value"] == pytest.approx(100 * VALUES.mean(), rel=1e-12)
        assert row["low"] < row["value"] < row["high"]
        assert (row["n"], row["moment"]) == (6, "first_best")
        assert (row["published"], row["published_sd"], row["published_n"]) == (11.9, 3.6, 5)

    def test_the_interval_is_the_one_the_book_draws(self, store):
        from sparsity_moves.figures.summary import summary

        row = number(store, "add7", "dense", "no_ffn_accuracy")
        drawn = summary((100 * VALUES).tolist())
        assert (row["low"], row["high"]) == pytest.approx((drawn.low, drawn.high), rel=1e-12)

    def test_a_setting_is_looked_for_among_the_runs_that_differ_in_it_alone(self, store):
        row = number(store, "add7", "dense", "no_ffn_accuracy", "norm=rms")
        assert row["value"] == pytest.approx(200 * VALUES.mean(), rel=1e-12)

    def test_differences_are_paired_by_seed(self, store):
        row = number(store, "add7", "moe_frozen", "difference_from_learned")
        assert (row["low"], row["value"], row["high"]) == pytest.approx((5, 5, 5))

    def test_grokking_is_counted_and_its_step_is_of_those_that_grokked(self, store):
        assert (
            number(store, "modular_addition", "dense", "grokked_seeds")["value"] == 2.5
        )  # of the paper's five
        assert number(store, "modular_addition", "dense", "grokked_step")["value"] == 300

    def test_what_the_tables_do_not_give_is_listed_with_the_reason(self, store):
        left = {
            (r["task"], r["arm"], r["measure"]): r["why"] for r in certificate.numbers(store)["not_computed"]
        }
        assert left["add7", "moe_top2", "no_ffn_accuracy"] == "no run is stored"
        assert left["add7", "moe_frozen", "p_value"] == "the tables have no such column"
        assert left["add7", "dense", "attention_flip_rate"] == "the tables hold whole models, not their parts"

    @pytest.mark.parametrize("loss", [math.nan, math.inf, 1e-7], ids=["nan", "inf", "small"])
    def test_a_model_whose_loss_or_measures_are_no_number_is_counted_and_its_mean_says_so(
        self, tmp_path, loss
    ):
        """A model can be spoiled where no input of its training set leads."""
        values = VALUES.copy()
        values[2] = math.nan
        store = planted(tmp_path / "smoke", values, loss)
        certificate.certify(store, LOCK)
        assert number(store, "add7", "dense", "attention_share")["value"] == "nan"
        written = json.loads((store.root / certificate.FILE).read_text(), parse_constant=pytest.fail)
        assert arm("moe", "smoke", "add7", 3).spec_id in written["diverged"]
        assert certificate.check(store) == []


class TestCheck:
    """What was certified is computed again from the tables alone."""

    def test_it_says_what_it_came_from(self, certified):
        written = json.loads((certified.root / certificate.FILE).read_text())
        assert written["lock_sha256"] == hashlib.sha256(LOCK.read_bytes()).hexdigest()
        assert written["devices"] == ["cpu"]
        assert written["profile"] == "smoke"
        assert "percentile bootstrap" in written["interval"]
        for name in ("runs.parquet", "curves.parquet"):
            content = (certified.root / name).read_bytes()
            assert written["files"][name] == hashlib.sha256(content).hexdigest()

    def test_it_agrees_with_its_tables_and_is_the_same_twice(self, certified):
        assert certificate.check(certified) == []
        before = (certified.root / certificate.FILE).read_bytes()
        certificate.certify(certified, LOCK)
        assert (certified.root / certificate.FILE).read_bytes() == before

    @pytest.mark.parametrize("key", ["value", "low", "high", "published", "n"])
    def test_a_number_that_is_not_the_tables_is_named(self, certified, key):
        path = certified.root / certificate.FILE
        written = json.loads(path.read_text())
        row = next(r for r in written["numbers"] if r["arm"] == "dense" and r["measure"] == "no_ffn_accuracy")
        row[key] += 1
        path.write_text(json.dumps(written | {"sha256": digest(written)}))
        (sentence,) = certificate.check(certified)
        assert f"add7 dense no_ffn_accuracy the {key}" in sentence

    def test_a_damaged_certificate_is_said_to_be(self, certified):
        path = certified.root / certificate.FILE
        path.write_bytes(path.read_bytes().replace(b"11.9", b"12.9"))
        (sentence,) = certificate.check(certified)
        assert "certificate.json is missing or damaged" in sentence

    def test_tables_written_anew_want_a_new_certificate(self, certified):
        planted(certified.root, VALUES / 2)
        assert "was written for another runs.parquet; certify again" in certificate.check(certified)[0]

    def test_it_vouches_for_every_file(self, certified):
        path = certified.root / certificate.FILE
        own = json.loads(path.read_text())
        own = {name: value for name, value in own.items() if name != "sha256"}
        own["files"]["attention.parquet"] = "0" * 64
        write_json(path, own)
        assert certificate.check(certified) == [
            f"{path} was written for another attention.parquet; certify again"
        ]

    def test_damaged_or_missing_tables_are_not_certified(self, store, tmp_path):
        (store.root / "curves.parquet").write_bytes(b"")
        with pytest.raises(UserError, match=r"curves\.parquet is damaged"):
            certificate.certify(store, LOCK)
        with pytest.raises(UserError, match=r"manifest\.json is missing"):
            certificate.certify(Store(tmp_path / "nowhere"), LOCK)


NO_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ray", "triton"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from sparsity_moves import cli
sys.argv = ["sparsity-moves", *sys.argv[1:]]
cli.main()
"""


def without_torch(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SPARSITY_MOVES_RESULTS": str(root)}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NO_TORCH), *words, "--profile", "smoke"],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_certificates_are_written_and_verified_where_there_is_no_torch(store):
    done = without_torch(store.root.parent, "certify")
    assert (done.returncode, done.stderr) == (0, "")
    done = without_torch(store.root.parent, "verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert "36 runs and all tables" in done.stdout
    assert "published numbers over 36 runs" in done.stdout
    assert "computed again from the tables, they are the same" in done.stdout
    (store.root / "runs.parquet").write_bytes(b"")
    done = without_torch(store.root.parent, "verify")
    assert done.returncode == 1
    assert "runs.parquet is damaged" in done.stderr
