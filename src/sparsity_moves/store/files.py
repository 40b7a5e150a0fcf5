"""Files that are whole or not there: temporary name, sync, rename; and their checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsity_moves.errors import UserError


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating-system error while writing into one sentence that says where and why."""
    try:
        yield
    except OSError as error:
        why = (
            "there is no space left on the disk"
            if error.errno == errno.ENOSPC
            else error.strerror or str(error)
        )
        raise UserError(f"cannot write {path}: {why}; what was stored before is untouched") from error


def sync(path: Path) -> None:
    """Have the disk hold a file, or a directory's entries, before anyone relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, fill: Callable[[Path], None]) -> None:
    """Have `fill` write a file beside `path`, then put it in place in one step."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fill(part)
            sync(part)
            part.replace(path)
            sync(path.parent)
        finally:
            part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    def fill(part: Path) -> None:
        part.write_bytes(content)

    write(path, fill)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_bytes(path, text.encode())
