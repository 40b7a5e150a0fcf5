"""Runs on disk: content-addressed, atomic, verified."""

from sparsity_moves.store.store import Broken, Store

__all__ = ["Broken", "Store"]
