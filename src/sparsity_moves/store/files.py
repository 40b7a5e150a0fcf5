"""Files that are whole or not there: temporary name, sync, rename; their checksums; and one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsity_moves.errors import UserError

WRITERS = ".writers"
"""A lock that all share who write a run or a state: whoever holds it alone finds none but dead writers' parts."""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: dict[str, Any]) -> str:
    """The checksum that a JSON file holds of itself, under `sha256`."""
    body = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file that holds its own checksum; None where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("sha256") == digest(content) else None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating-system error while writing into one sentence that says where and why."""
    try:
        yield
    except OSError as error:
        why = (
            "there is no space left on the disk"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
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


def write_json(path: Path, value: dict[str, Any]) -> None:
    """With its own checksum, so that a damaged byte is found."""
    text = json.dumps(value | {"sha256": digest(value)}, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Wait until no other process is in here, or, if `shared`, none that does not share it.

    The system frees the lock of a process that dies.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        with explained(path):
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
