"""The one interval that the book and its certificate give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 9_999
METHOD = f"95\u00a0% percentile bootstrap over seeds, {RESAMPLES} resamples with a fixed random state"


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The bootstrap interval of a mean over seeds; None for a single seed."""
    if len(values) < 2:
        return None
    data = np.asarray(values, dtype=float)
    if not np.isfinite(data).all():  # a model that diverged: no number, and none that hides it
        return float("nan"), float("nan")
    found = bootstrap(
        (data,),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)
