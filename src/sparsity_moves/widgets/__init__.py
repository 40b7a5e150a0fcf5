"""What a live notebook can do and a published page cannot: train a model where you stand."""

from sparsity_moves.widgets.retrain import Retrain, retrain

__all__ = ["Retrain", "retrain"]
