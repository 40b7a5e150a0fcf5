"""Fleets: many same-shaped models trained as one program."""

from sparsity_moves.training.evaluation import accuracy, correct, exact_match, held_out_accuracy, no
from sparsity_moves.training.fleet import Fleet, Moment, Run, State, train
from sparsity_moves.training.profiles import PROFILES, settings
from sparsity_moves.training.spec import Spec

__all__ = [
    "PROFILES",
    "Fleet",
    "Moment",
    "Run",
    "Spec",
    "State",
    "accuracy",
    "correct",
    "exact_match",
    "held_out_accuracy",
    "no",
    "settings",
    "train",
]
