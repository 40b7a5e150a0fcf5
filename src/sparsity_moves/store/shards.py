"""Who trained what, and for how long: the manifest's account of every shard, whichever day or device it ran on.

A shard is `{shape, settings, runs, ...circumstances}`: the spec_id that its runs have at seed 0, the settings that
they share (with the protocol; defaults left out), and spec_id to seed. So the manifest alone gives every run's
settings exactly, and its address can be computed again from them. A shard of which only some runs are here keeps
its whole time and number of models: a run's part of the time is `shard_seconds / shard_models`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

from sparsity_moves.store.run_files import address

Shard = dict[str, Any]
ABOUT_ONE_RUN = ("spec_id", "settings", "spec", "files", "moments", "sha256")


def of_record(record: dict[str, Any]) -> Shard:
    """The account of one run's record."""
    settings = dict(record["settings"])
    seed = settings.pop("seed")
    return {
        "shape": address({**settings, "seed": 0}),
        "settings": settings,
        "runs": {record["spec_id"]: seed},
        **{key: value for key, value in record.items() if key not in ABOUT_ONE_RUN},
    }


def joined(shards: Iterable[Shard]) -> list[Shard]:
    """One entry a shard, in an order that does not depend on the order of arrival."""
    found: dict[str, Shard] = {}
    for shard in shards:
        key = json.dumps({**shard, "runs": None}, sort_keys=True)
        runs = found[key]["runs"] | shard["runs"] if key in found else shard["runs"]
        found[key] = shard | {"runs": dict(sorted(runs.items()))}
    return [found[key] for key in sorted(found, key=lambda key: (found[key]["shape"], key))]


def of_runs(shards: Iterable[Shard], spec_ids: Collection[str]) -> list[Shard]:
    """What these shards have of some runs."""
    wanted = set(spec_ids)
    cut = (shard | {"runs": {k: v for k, v in shard["runs"].items() if k in wanted}} for shard in shards)
    return [shard for shard in cut if shard["runs"]]


def seconds(shards: Iterable[Shard]) -> float:
    """Training time of the runs that are here, in seconds of one process."""
    return float(sum(s["shard_seconds"] / s["shard_models"] * len(s["runs"]) for s in shards))


def settings(shards: Iterable[Shard]) -> dict[str, dict[str, Any]]:
    """Every run's settings, protocol included, by its spec_id."""
    return {
        spec_id: {**shard["settings"], "seed": seed}
        for shard in shards
        for spec_id, seed in shard["runs"].items()
    }
