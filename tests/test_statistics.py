"""The statistics say what textbooks say: known answers, independent references, and error rates as promised."""

import numpy as np
import pytest
from scipy.stats import bootstrap, ttest_rel

from sparsity_moves.studies.statistics import (
    RESAMPLES,
    adjusted,
    alike,
    compare,
    critical,
    different,
    interval,
    intervals,
    t_interval,
)

DRAWN = np.random.default_rng(1)


class TestCompare:
    def test_it_is_the_paired_t_test(self) -> None:
        a, b = DRAWN.normal(size=(2, 20))
        assert compare(a - b).p == pytest.approx(ttest_rel(a, b).pvalue)

    def test_its_effect_is_the_mean_in_standard_deviations(self) -> None:
        found = compare([1.0, 2.0, 3.0])
        assert (found.mean, found.effect, found.positive, found.n) == (2.0, 2.0, 3, 3)

    def test_one_pair_gives_a_mean_and_nothing_that_needs_more(self) -> None:
        found = compare([0.3])
        assert (found.mean, found.n) == (0.3, 1)
        assert found.low is found.high is found.p is found.effect is None

    def test_none_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one pair"):
            compare([])

    @pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (0.4, 0.0)])
    def test_equal_differences_leave_no_doubt(self, value: float, p: float) -> None:
        assert compare([value] * 5).p == p

    def test_a_difference_that_is_not_there_is_found_as_often_as_the_level_says(self) -> None:
        found = different(np.random.default_rng(2).normal(size=(4000, 8)))
        assert np.mean(found < 0.05) == pytest.approx(0.05, abs=0.01)


class TestLikeness:
    def test_little_spread_around_none_is_likeness_and_much_spread_is_not(self) -> None:
        noise = np.random.default_rng(3).normal(size=40)
        assert alike(noise * 0.1, 1.0) < 0.001
        assert alike(noise * 10, 1.0) > 0.05  # which is no sign of a difference, either
        assert different(noise * 10) > 0.05

    def test_it_holds_exactly_when_the_90_percent_interval_lies_within_the_margin(self) -> None:
        for data in np.random.default_rng(4).normal(0.2, 1, size=(200, 12)):
            half = critical(12, 0.05) * data.std(ddof=1) / np.sqrt(12)
            inside = data.mean() - half > -0.6 and data.mean() + half < 0.6
            assert (alike(data, 0.6) < 0.05) == inside

    def test_at_the_margin_it_errs_as_often_as_the_level_says(self) -> None:
        found = alike(np.random.default_rng(5).normal(1.0, 1, size=(4000, 60)), 1.0)
        assert np.mean(found < 0.05) == pytest.approx(0.05, abs=0.012)


class TestCorrection:
    def test_it_is_the_worked_example_of_its_authors(self) -> None:
        p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
        p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]  # Benjamini & Hochberg 1995, section 3.2
        assert sum(adjusted(np.array(p)) <= 0.05) == 4

    def test_many_tests_of_nothing_find_something_as_seldom_as_one(self) -> None:
        p = np.random.default_rng(6).uniform(size=(2000, 30))
        assert np.mean((adjusted(p) <= 0.05).any(axis=1)) == pytest.approx(0.05, abs=0.015)
        assert np.mean((p <= 0.05).any(axis=1)) > 0.7


def test_the_t_interval_is_the_one_that_leaves_out_what_the_test_rejects() -> None:
    for data in np.random.default_rng(7).normal(0.5, 1, size=(100, 10)):
        bounds = t_interval(data)
        assert bounds is not None
        assert (different(data) < 0.05) == (bounds[0] > 0 or bounds[1] < 0)
    assert t_interval([1.0]) is None


class TestIntervals:
    GROUPS = tuple(np.random.default_rng(8).normal(50, 10, size=n).tolist() for n in (5, 1, 64, 5, 2, 20, 64))

    def test_each_is_scipys_bootstrap_of_that_group_alone(self) -> None:
        for values, found in zip(self.GROUPS, intervals(self.GROUPS), strict=True):
            if len(values) < 2:
                assert found is None
                continue
            alone = bootstrap(
                (sorted(values),),
                np.mean,
                n_resamples=RESAMPLES,
                method="percentile",
                rng=np.random.default_rng(0),
            ).confidence_interval
            assert found == pytest.approx((alone.low, alone.high), rel=1e-12)

    def test_the_order_of_seeds_does_not_matter(self) -> None:
        turned = [values[::-1] for values in self.GROUPS]
        assert intervals(turned) == intervals(self.GROUPS)

    def test_a_group_does_not_depend_on_its_neighbours(self) -> None:
        diverged = [[1.0, float("nan"), 2.0, 3.0, 4.0], *self.GROUPS]
        assert np.isnan(intervals(diverged)[0]).all()  # type: ignore[arg-type]
        for values, found in zip(self.GROUPS, intervals(diverged)[1:], strict=True):
            assert found == (pytest.approx(alone, rel=1e-12) if (alone := interval(values)) else None)
