"""Shapes are types: every call into the package is checked while the tests run. One thread a test process, as the
package trains: sums then have one order, and tests that run side by side do not fight over the processors."""

import os
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from jaxtyping import install_import_hook
from playwright.sync_api import Browser, sync_playwright

from browsing import chromium_path

torch.set_num_threads(1)
install_import_hook(
    [f"sparsity_moves.{package}" for package in ("tasks", "model", "training", "measures")],
    "beartype.beartype",
)


@pytest.fixture
def untyped(monkeypatch):
    """As a user meets the package: without the tests' checks of types."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The one browser of a test process (Playwright allows no second). In CI its absence is a failure."""
    found = chromium_path()
    if not found:
        reason = "no Chromium is installed, so the pages cannot be looked at"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()
