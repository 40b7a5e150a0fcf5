"""Shapes are types: every call into the package is checked while the tests run. One thread a test process, as the
package trains: sums then have one order, and tests that run side by side do not fight over the processors."""

import jaxtyping
import pytest
import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
install_import_hook(
    [f"sparsity_moves.{package}" for package in ("tasks", "model", "training", "measures")],
    "beartype.beartype",
)


@pytest.fixture
def untyped(monkeypatch):
    """As a user meets the package: without the tests' checks of types."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
