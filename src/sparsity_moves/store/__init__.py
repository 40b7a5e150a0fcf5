"""Runs on disk: content-addressed, atomic, verified."""

from sparsity_moves.store.packs import Taken, export, merge
from sparsity_moves.store.store import Store
from sparsity_moves.store.tables import Broken

__all__ = ["Broken", "Store", "Taken", "export", "merge"]
