"""Shapes are types: every call into the package is checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook(
    [f"sparsity_moves.{package}" for package in ("tasks", "model", "training", "measures")], "beartype.beartype"
)
