"""Fleets: many same-shaped models trained as one program."""

from sparsity_moves.training.evaluation import accuracy, correct, exact_match, held_out_accuracy, no
from sparsity_moves.training.fleet import MOMENTS, Fleet, Moment, Run, State, train
from sparsity_moves.training.profiles import PROFILES, settings
from sparsity_moves.training.spec import Profile, Spec, TaskName

__all__ = [
    "MOMENTS",
    "PROFILES",
    "Fleet",
    "Moment",
    "Profile",
    "Run",
    "Spec",
    "State",
    "TaskName",
    "accuracy",
    "correct",
    "exact_match",
    "held_out_accuracy",
    "no",
    "settings",
    "train",
]
