"""What a result depends on, as one hash: files, folders, settings and installed packages."""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

NOT_SOURCE = {"__pycache__", ".ipynb_checkpoints"}


def of_file(path: Path) -> str:
    """SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_path(path: Path) -> str:
    """Hash of a file, of a folder (names and contents), or of the fact that nothing is there."""
    if path.is_file():
        return of_file(path)
    if not path.is_dir():
        return "absent"
    files = sorted(p for p in path.rglob("*") if p.is_file() and not NOT_SOURCE & set(p.parts))
    return of_value({p.relative_to(path).as_posix(): of_file(p) for p in files})


def of_value(value: object) -> str:
    """Hash of anything JSON can write; dictionaries in any order hash alike."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@cache
def of_installed() -> str:
    """Hash of the Python version and of every installed package with its version."""
    packages = sorted({f"{d.name}=={d.version}" for d in metadata.distributions()})
    return of_value([sys.version, *packages])


def of_inputs(paths: Iterable[Path], settings: Mapping[str, object]) -> str:
    """One hash for files, folders, settings and the installed packages together."""
    return of_value([[of_path(path) for path in paths], dict(settings), of_installed()])
