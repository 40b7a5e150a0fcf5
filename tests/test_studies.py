"""Which runs the book asks for: counted, addressed as ever, and named so that a name means one setting."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache

import pytest

from sparsity_moves import studies
from sparsity_moves.measures import measure
from sparsity_moves.model import count
from sparsity_moves.store import Store
from sparsity_moves.studies import ARMS, Study, arm, controls, kept, sweeps, training_flops, trees
from sparsity_moves.training import Spec, train

TASKS = ("add7", "modular_addition", "histogram")


@cache
def runs(profile: str) -> list[Study]:
    return studies.every(profile)


@cache
def sweep(family: str) -> Study:
    return sweeps.study(family)


def addresses(found: list[Study]) -> str:
    """A fingerprint of a set of runs."""
    ids = {spec.spec_id for study in found for spec in study.specs}
    return f"{len(ids)} {hashlib.sha256(' '.join(sorted(ids)).encode()).hexdigest()[:16]}"


class TestEvery:
    """What each profile trains."""

    def test_the_laptops_runs_are_the_ones_they_always_were(self):
        assert [study.name for study in runs("laptop")] == ["redistribution", "sweep", "argument", "trees"]
        assert addresses(runs("laptop")[:2]) == "93 d0db228500b815d7"

    def test_so_are_the_first_published_ones(self):
        """Results at these addresses are committed: a setting that is new must not move them."""
        assert addresses(runs("paper")[:2]) == "964 07c5a2445edfb650"

    def test_full_scale_has_the_controls_and_the_sweeps_too(self):
        names = [study.name for study in runs("paper")]
        assert names == ["redistribution", "sweep", "trees", "controls", *sweeps.FAMILIES]
        shown = ["redistribution", "sweep", "argument", "trees"]
        assert [study.name for study in runs("smoke")] == [*shown, "controls"]

    def test_what_the_chapters_train_on_a_laptop_has_full_scale_runs_of_the_same_names(self):
        names = {name for study in runs("paper") for name, spec in study.runs if spec.task == "add7"}
        assert {name for study in runs("laptop") for name, _ in study.runs} <= names

    @pytest.mark.parametrize("profile", ["smoke", "laptop", "paper"])
    def test_a_study_has_each_run_once_and_all_of_its_own_profile(self, profile):
        for study in runs(profile):
            assert len(set(study.specs)) == len(study.specs)
            assert {spec.profile for spec in study.specs} == {profile}

    def test_a_name_means_one_setting_of_a_task_and_a_setting_has_one_name(self):
        """In all studies but `sweep`, whose rows differ in their width too."""
        shapes: dict[tuple[str, str], Spec] = {}
        names: dict[Spec, str] = {}
        for study in runs("paper"):
            for name, spec in study.runs if study.name != "sweep" else ():
                assert shapes.setdefault((spec.task, name), spec.shape) == spec.shape, (study.name, name)
                assert names.setdefault(spec, name) == name


class TestControls:
    def test_every_arm_on_every_task_as_often_as_in_the_first_result(self):
        study = controls.study("paper")
        assert {name for name, _ in study.runs} == ARMS.keys()
        seeds = {task: [s.seed for n, s in study.runs if (n, s.task) == ("moe_hash", task)] for task in TASKS}
        assert [len(seeds[task]) for task in TASKS] == [64, 20, 20]
        assert set(studies.redistribution.study("paper").specs) < set(study.specs)


class TestTrees:
    """Matched in total, and matched in open units."""

    def test_three_tasks_seven_heights_and_twenty_seeds(self):
        study = trees.study("paper")
        arms = {"tree", "tree_balanced", "tree_active"}
        names = arms | {f"tree_height{h}" for h in (2, 4, 5, 6, 7, 8)} | set(trees.BESIDE)
        names |= {f"{a}_height{h}" for a in ("tree_balanced", "tree_active") for h in (5, 7)}
        for task in TASKS:
            own = [(name, spec.seed) for name, spec in study.runs if spec.task == task]
            assert {name for name, _ in own} == names
            assert len(own) == len(set(own)) == 20 * len(names)
        assert {spec.tree_depth for spec in study.specs} == {0, 2, 3, 4, 5, 6, 7, 8}

    def test_what_it_is_held_against_is_trained_once(self):
        controlled = {spec.spec_id for spec in controls.study("paper").specs}
        beside = [spec for name, spec in trees.study("paper").runs if name in (*trees.BESIDE, "tree")]
        assert all(spec.spec_id in controlled for spec in beside)

    def test_sizes_are_matched_as_their_names_say(self):
        for name, spec in trees.study("paper", number_of_seeds=1).runs:
            ffn, dense = spec.architecture.ffn, 256 if spec.task == "add7" else 512
            if name.startswith("tree_active"):
                assert dense // 4 - spec.tree_depth - 1 < ffn.open_blocks <= dense // 4
            elif spec.tree_depth and (spec.task, spec.tree_depth) != ("add7", 8):
                assert dense - ffn.nodes < ffn.width <= dense

    @pytest.mark.parametrize("profile", ["smoke", "laptop"])
    def test_it_is_there_at_every_size(self, profile):
        study = trees.study(profile)
        assert {spec.profile for spec in study.specs} == {profile}
        assert {spec.task for spec in study.specs} == set(TASKS)


class TestSweeps:
    """One setting at a time."""

    @pytest.mark.parametrize("family", sweeps.FAMILIES)
    def test_a_point_has_at_least_five_seeds_and_twenty_on_add_7(self, family):
        study = sweep(family)
        for name, spec in study.runs:
            same = [s for n, s in study.runs if (n, s.task) == (name, spec.task)]
            assert len({s.seed for s in same}) == len(same) == (20 if spec.task == "add7" else 5)
            assert same[0].seed == 42

    @pytest.mark.parametrize("family", sweeps.FAMILIES)
    def test_every_arm_of_it_is_there_unchanged_too(self, family):
        specs = set(sweep(family).specs)
        for name in sweeps.FAMILIES[family].arms:
            for task in sweeps.FAMILIES[family].tasks:
                assert arm(name, "paper", task, 42) in specs

    @pytest.mark.parametrize(
        ("family", "field", "values"),
        [
            ("experts", "experts", {1, 2, 4, 8, 16}),
            ("top_k", "top_k", {1, 2, 3, 4}),
            ("model_width", "d_model", {64, 128, 256}),
            ("depth", "depth", {1, 2, 3, 4}),
            ("norm", "norm", {"none", "rms"}),
            ("activation", "activation", {"relu", "gelu", "silu", "none"}),
            ("balance", "balance_weight", {0.0, 0.001, 0.01, 0.1, 1.0}),
            ("beta2", "beta2", {0.98, 0.999}),
            ("frozen", "frozen", {"none", "attention", "ffn"}),
            ("dropout", "dropout", {0.0, 0.1, 0.3}),
            ("held_out", "train_below", {None, 3}),
        ],
    )
    def test_its_setting_takes_these_values(self, family, field, values):
        assert {getattr(spec, field) for spec in sweep(family).specs} == values

    def test_weight_decay_takes_four_values_beside_the_tasks_own(self):
        specs = sweep("weight_decay").specs
        own = {"add7": 0.01, "modular_addition": 1.0, "histogram": 0.0}
        for task, value in own.items():
            assert {s.weight_decay for s in specs if s.task == task} == {value, 0.1, 0.5, 1.0, 2.0}

    def test_the_ffn_grows_with_the_model(self):
        for name, spec in sweep("model_width").runs:
            if name.startswith(("dense", "moe")) and "glu" not in name:
                assert spec.width == 4 * spec.d_model

    def test_what_has_a_name_keeps_it(self):
        def names(family: str, task: str) -> set[str]:
            return {name for name, spec in sweep(family).runs if spec.task == task}

        assert {"moe_e2", "moe", "moe_e16", "dense", "glu"} < names("experts", "add7")
        assert {"moe", "moe_top2", "moe_top4", "moe_top2_frozen"} < names("top_k", "add7")
        assert {"dense", "dense_d256"} < names("model_width", "add7") & names("model_width", "histogram")
        assert "dense_d128" in names("model_width", "add7") - names("model_width", "histogram")
        assert {"glu_bilinear", "dense_relu", "dense_linear"} < names("activation", "histogram")
        assert {"moe_unbalanced", "moe_b0.001", "moe", "moe_b1"} < names("balance", "add7")
        assert names("norm", "histogram") == {f"{a}{b}" for a in sweeps.FOUR for b in ("", "_norm")}

    def test_one_expert_is_the_dense_layer_whatever_its_gate(self):
        assert arm("moe_switch", "paper", "add7", 1, experts=1) == arm("dense", "paper", "add7", 1)

    def test_they_run_at_the_size_of_a_test_too(self):
        assert all(spec.profile == "smoke" for study in sweeps.studies("smoke") for spec in study.specs)


class TestKept:
    """Which parameters are stored."""

    @pytest.mark.parametrize("profile", ["smoke", "laptop"])
    def test_all_where_they_are_few(self, profile):
        assert kept(arm("moe_hash", profile, "add7", 3)) == ("first_best", "grokked", "final")

    def test_at_full_scale_one_model_of_the_arms_that_the_book_opens(self):
        specs = {spec for study in runs("paper") for spec in study.specs}
        opened = {(s.task, n): kept(s) for n, s in controls.study("paper").runs if kept(s)}
        arms = ("dense", "narrow", "glu", "moe", "moe_frozen", "moe_switch", "moe_glu")
        expected = {
            "add7": ("first_best", "final"),
            "modular_addition": ("grokked",),
            "histogram": ("first_best",),
        }
        assert opened == {(task, name): expected[task] for task in TASKS for name in arms}
        assert sum(bool(kept(spec)) for spec in specs) == len(opened) == 21
        assert kept(arm("dense", "paper", "add7", 137)) == ()
        assert kept(arm("dense", "paper", "add7", 42, norm="rms")) == ()

    def test_what_is_asked_for_is_kept_all_the_same(self, tmp_path):
        """And a run that was stored without it is trained again, once."""
        spec = arm("dense", "paper", "add7", 1, digits=1, steps=2, evaluate_every=1)
        store = Store(tmp_path)
        for moment, trained, there in [
            (None, 1, []),
            (None, 0, []),
            ("final", 1, ["final", "first_best"]),
            ("final", 0, ["final", "first_best"]),
        ]:
            assert studies.engine.run([spec], store, moment=moment, quiet=True) == trained
            assert sorted(store.kept(spec.spec_id)) == there

    def test_some_moments_give_way_to_more_and_not_to_others(self, tmp_path):
        spec = arm("dense", "smoke", "add7", 1, steps=2, evaluate_every=1)
        store = Store(tmp_path)
        for named, there in [
            (("first_best",), ["first_best"]),
            (("final",), ["first_best"]),
            (("final", "first_best"), ["final", "first_best"]),
            ((), ["final", "first_best"]),
        ]:
            (run,) = train([spec])
            store.save(run, measure([run])[0], {"shard_models": 1, "shard_seconds": 1.0}, named)
            assert sorted(store.kept(spec.spec_id)) == there
            assert store.damage() == []


class TestCost:
    """FLOPs before they are spent."""

    def test_a_dense_models_are_counted_by_hand(self):
        spec = arm("dense", "paper", "modular_addition", 42)
        sequences, d, width = 3830, 128, 512  # 30 % of 113 x 113; read at one position of three
        layer = 2 * d * 4 * d + 4 * 3 * d + 2 * 2 * d * width
        assert training_flops([spec]) == 3 * 40_000 * sequences * (layer + 2 * d * spec.task_object.classes)

    def test_a_run_asked_for_twice_costs_once_and_seeds_cost_the_same(self):
        one, two = arm("moe", "paper", "add7", 1), arm("moe", "paper", "add7", 2)
        assert training_flops([one, two, one]) == 2 * training_flops([one])

    def test_closed_experts_are_computed_and_hence_counted(self):
        dense, moe, active = (arm(name, "paper", "add7", 1) for name in ("dense", "moe", "moe_active"))
        assert training_flops([moe]) == training_flops([dense]) < training_flops([active]) / 2
        assert count(moe.architecture).flops_per_token < count(dense.architecture).flops_per_token

    def test_layers_below_the_last_are_computed_everywhere(self):
        spec = arm("dense", "paper", "modular_addition", 1)
        costs = [training_flops([replace(spec, depth=depth)]) for depth in (1, 2, 3)]
        assert costs[2] - costs[1] == costs[1] - costs[0] > 2 * costs[0]
