"""What the benchmarks and tests of the book's widgets share: rounds, a browser, a bare page, a page's tasks."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

PATIENCE = 300_000  # milliseconds, after which something hangs


def rounds_asked(about: str) -> int:
    """How many rounds the command line asks for; with `--help`, what the benchmark says about itself."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    if rounds < 1:
        parser.error("--rounds must be 1 or more")
    return rounds


def chromium_path() -> str | None:
    """Where this machine has Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser as a reader has it. Where none is installed, a sentence and the exit status 1."""
    found = chromium_path()
    if not found:
        sys.exit("No Chromium is installed, so the page cannot be timed.")
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # whom Chromium lets in without its sandbox only
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


def bare_page(title: str, body: str) -> str:
    """A page that holds nothing else."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><link rel=icon href='data:,'><style>:root{{color-scheme:light dark}}</style>"
        f"<main><h1>{title}</h1>{body}</main>"
    )


@contextmanager
def tasks_of(browser: Browser, page: Page) -> Iterator[list[float]]:
    """The seconds that each task of the page took meanwhile, there at the end.

    In the time of the page's own thread, so that other programs on the machine do not count.
    """
    tasks: list[float] = []
    browser.start_tracing(page=page, categories=["toplevel", "devtools.timeline", "__metadata"])
    try:
        yield tasks
        page.wait_for_timeout(200)  # a task still open when the trace ends has no length in it
    finally:
        trace = browser.stop_tracing()
    events = json.loads(trace)["traceEvents"]
    mains = {
        (e["pid"], e["tid"])
        for e in events
        if e["name"] == "thread_name" and e["args"]["name"] == "CrRendererMain"
    }
    tasks += [
        e["tdur"] / 1e6
        for e in events
        if (e["pid"], e["tid"]) in mains and e["name"].endswith("RunTask") and "tdur" in e
    ]
    if len(tasks) < 100:
        raise RuntimeError(
            f"the trace holds {len(tasks)} tasks of the page's thread, too few to be one of a page at work"
        )
