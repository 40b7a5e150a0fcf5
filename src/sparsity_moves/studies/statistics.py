"""The statistics of the book and its certificate: an interval, a paired test, a test of likeness, a correction.

All of it is SciPy's. Models of one seed start alike outside the FFN and see the same batches, so arms are compared
seed by seed: a comparison is a list of differences, one a seed.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, false_discovery_control, sem, t, ttest_1samp

RESAMPLES = 9_999
METHOD = f"95\u00a0% percentile bootstrap over seeds, {RESAMPLES} resamples with a fixed random state"
LEVEL = 0.05
"""Largest share of false findings that is accepted, after correction for the number of tests."""


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The bootstrap interval of a mean over seeds; None for a single seed."""
    return intervals([values])[0]


def intervals(groups: Sequence[Sequence[float]]) -> list[tuple[float, float] | None]:
    """`interval` of each group, in their order.

    Groups of one size share the resamples that each alone would draw: SciPy resamples the places of the values, and
    the means of all these groups over them are one matrix product.
    """
    found: list[tuple[float, float] | None] = [None] * len(groups)
    of_size: dict[int, list[int]] = defaultdict(list)
    for place, values in enumerate(groups):
        of_size[len(values)].append(place)
    for size, places in of_size.items():
        if size < 2:
            continue
        # sorted: the resamples are of places, and an interval is not to depend on the order of seeds
        data = np.sort(np.asarray([groups[place] for place in places], dtype=float))  # (groups, values)
        # a model that diverged: no number, and none that hides it
        low, high = np.full((2, len(data)), np.nan)
        if (finite := np.isfinite(data).all(axis=1)).any():
            low[finite], high[finite] = _percentile_bootstrap(data[finite])
        for place, *bounds in zip(places, low.tolist(), high.tolist(), strict=True):
            found[place] = (bounds[0], bounds[1])
    return found


def _percentile_bootstrap(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends for every row of (groups, values), each (groups,)."""
    size = data.shape[1]

    def means(drawn: np.ndarray, axis: int) -> np.ndarray:  # noqa: ARG001 (SciPy asks for it)
        """(groups, resamples), from the places drawn, (resamples, values)."""
        row = np.arange(len(drawn))[:, None]
        times = np.bincount((drawn + size * row).ravel(), minlength=drawn.size).reshape(drawn.shape)
        return np.asarray(data @ times.T / size)

    found = bootstrap(
        (np.arange(size),),
        means,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return found.low, found.high


@dataclass(frozen=True)
class Comparison:
    """Differences over seeds, and how far they are from none."""

    mean: float
    low: float | None
    high: float | None
    """Of the bootstrap interval; None for a single pair."""
    n: int
    positive: int
    """Pairs whose difference is above zero."""
    effect: float | None
    """Cohen's d of paired differences: their mean in units of their standard deviation (ddof = 1)."""
    p: float | None
    """Of the paired t-test, two-sided; None for a single pair."""


def compare(differences: Sequence[float]) -> Comparison:
    """What paired differences show. Raises `ValueError` where there is none."""
    data = np.asarray(differences, dtype=float)
    if len(data) == 0:
        raise ValueError("a comparison needs at least one pair")
    bounds = interval(differences)
    sd = float(data.std(ddof=1)) if len(data) > 1 else 0.0
    return Comparison(
        mean=float(data.mean()),
        low=bounds[0] if bounds else None,
        high=bounds[1] if bounds else None,
        n=len(data),
        positive=int((data > 0).sum()),
        effect=float(data.mean()) / sd if sd else None,
        p=float(different(data)) if len(data) > 1 else None,
    )


def different(differences: np.ndarray) -> np.ndarray:
    """p of the two-sided paired t-test along the last axis: is the mean difference other than zero?"""
    return _p(differences, 0.0, "two-sided")


def alike(differences: np.ndarray, margin: float) -> np.ndarray:
    """p of equivalence along the last axis: does the mean lie within ± `margin`?

    TOST, two one-sided t-tests (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987). A small p shows likeness; a large
    one shows nothing. The margin must be stated before the data are seen.
    """
    return np.asarray(np.maximum(_p(differences, -margin, "greater"), _p(differences, margin, "less")))


def _p(differences: np.ndarray, mean: float, side: str) -> np.ndarray:
    data = np.asarray(differences, dtype=float)
    above = data.mean(axis=-1) - mean
    certain = {"two-sided": above != 0, "greater": above > 0, "less": above < 0}[side]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # where all differences are one number: no spread, no doubt
        found = ttest_1samp(data, mean, axis=-1, alternative=side).pvalue
    sure = np.where(np.ptp(data, axis=-1) > 0, found, np.where(certain, 0.0, 1.0))
    # a model that diverged: nothing is found where there is no number
    return np.asarray(np.where(np.isfinite(data).all(axis=-1), sure, 1.0))


def adjusted(p: np.ndarray) -> np.ndarray:
    """p corrected for the number of tests along the last axis (Benjamini & Hochberg, J. R. Stat. Soc. B 57, 1995)."""
    return np.asarray(false_discovery_control(p, axis=-1, method="bh"))


def t_interval(values: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The 95 % interval that belongs to the t-test, along the last axis; None for a single value."""
    data = np.asarray(values, dtype=float)
    n = data.shape[-1]
    if n < 2:
        return None
    half = critical(n, LEVEL / 2) * sem(data, axis=-1)
    return data.mean(axis=-1) - half, data.mean(axis=-1) + half


def of_few(values: Sequence[float], few: int) -> tuple[float, float]:
    """Between which values 95 % of the means of so few seeds lie, drawn from these without replacement."""
    data = np.asarray(values, dtype=float)
    order = np.random.default_rng(0).random((RESAMPLES, len(data))).argsort(axis=1)[:, :few]
    low, high = np.quantile(data[order].mean(axis=1), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def critical(n: int, tail: float) -> float:
    """The t of n values beyond which lies a share `tail` of its distribution."""
    return float(t.ppf(1 - tail, n - 1))
