"""Which runs a process is training, so that no other on the same disk trains them too.

A claim is a lock on one byte, at the run's address, of a file that stays empty. There is nothing to clean up and no
clock: the system drops the locks of a process that ends, however it ends. Claims spare work, no more: where a disk
knows no locks everything can be claimed, and a run that two processes train is stored once all the same.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from pathlib import Path

from sparsity_moves.store.files import explained


class Claims:
    """The claims of this process on a store's runs. One object a process: closing a second would drop both's."""

    def __init__(self, root: Path) -> None:
        path = root / ".claims"
        with explained(path):
            root.mkdir(parents=True, exist_ok=True)
            self.file = path.open("ab")

    def take(self, spec_ids: Iterable[str]) -> bool:
        """Claim all of these runs, or none of them where another process has one."""
        taken: list[str] = []
        for spec_id in spec_ids:
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place(spec_id))
            except (BlockingIOError, PermissionError):
                self.free(taken)
                return False
            except OSError:  # no locks here
                return True
            taken.append(spec_id)
        return True

    def free(self, spec_ids: Iterable[str]) -> None:
        """Let others have these runs."""
        for spec_id in spec_ids:
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, place(spec_id))

    def close(self) -> None:
        self.file.close()


def place(spec_id: str) -> int:
    """A run's byte; offsets have 63 bits, addresses 64."""
    return int(spec_id, 16) >> 2
