"""Shards on their way: a state from which a training that was interrupted goes on.

    results/<profile>/.unfinished/<hash of the shard's runs>.safetensors

A state is good for the very runs, device and packages that it was made with, since with others it would not go on
to the same numbers; its header says which they were, and holds a checksum of the tensors. It spares time, no more:
one that is damaged or foreign is left unused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sparsity_moves.store.files import WRITERS, locked, write_bytes
from sparsity_moves.store.run_files import header
from sparsity_moves.store.tables import Broken

if TYPE_CHECKING:  # the store is read where there is no torch
    from sparsity_moves.training import State

FOLDER = ".unfinished"


def checksum(state: State) -> str:
    """Of all tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def runs_of(path: Path) -> list[str]:
    """The runs that a state is of, by its header; none where it is no state."""
    return str(header(path).get("__metadata__", {}).get("runs", "")).split()


class Unfinished:
    """The state of one shard on disk."""

    def __init__(self, root: Path, spec_ids: list[str], circumstances: Mapping[str, str]) -> None:
        """`circumstances` are device and packages."""
        runs = " ".join(spec_ids)
        self.root = root
        self.path = root / FOLDER / f"{hashlib.sha256(runs.encode()).hexdigest()[:16]}.safetensors"
        self.about = {"runs": runs, **circumstances}

    def save(self, state: State) -> None:
        """Put a state in place of the last. Raises `UserError` where the disk refuses; the last is there still."""
        from safetensors.torch import save

        content = save(state, self.about | {"sha256": checksum(state)})
        with locked(self.root / WRITERS, shared=True):
            write_bytes(self.path, content)

    def load(self) -> State | None:
        """The state, None where there is none. Raises `Broken` where it is damaged or another's."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            content = self.path.read_bytes()
            state: State = load(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, SafetensorError):
            raise Broken(f"{self.path} is damaged: it is no state of a training") from None
        about = dict(header(self.path).get("__metadata__", {}))
        if about.pop("sha256", None) != checksum(state):
            raise Broken(f"{self.path} is damaged: it does not match its checksum")
        for key in self.about:
            if about.get(key) != self.about[key]:
                raise Broken(f"{self.path} is another training's, by its {key}: {about.get(key)}")
        return state

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
