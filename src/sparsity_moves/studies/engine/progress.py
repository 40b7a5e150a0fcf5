"""How far the training is, and how long it will take: a bar in a terminal or notebook, lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Show = Callable[[float, str], None]
"""Takes the share that is done, from 0 to 1, and a few words."""


@contextmanager
def shown(quiet: bool, what: str = "training") -> Iterator[Show]:
    """A bar in a terminal or notebook, lines elsewhere, of the share done and the time left; nothing if quiet."""
    console = Console(stderr=True)
    if quiet:
        yield lambda done, text: None
    elif console.is_terminal or console.is_jupyter:
        with Progress(
            TextColumn(what),
            BarColumn(),
            TextColumn("{task.percentage:.0f} % · {task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        ) as bar:
            task = bar.add_task("", total=1.0, text="starting")
            yield lambda done, text: bar.update(task, completed=done, text=text)
    else:
        yield lines(what)


def lines(what: str = "training", every: float = 15.0) -> Show:
    """Progress for a log file, at most a line in so many seconds."""
    started, last = time.monotonic(), 0.0

    def show(done: float, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > every:
            last = now
            left = f", about {(now - started) / done * (1 - done):.0f} s left" if done > 0 else ""
            print(f"{what}: {done:.0%} of the work, {text}{left}", file=sys.stderr, flush=True)

    return show
