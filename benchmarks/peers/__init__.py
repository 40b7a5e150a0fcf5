"""The same training by five programs, one file each. A file has

    forms(spec, device)         the ways in which its author would try to make it fast, by name
    build(work, device, form)   a function that trains `work.steps` steps and gives their losses (steps, models)

and raises `Unavailable` where it cannot run. All are given the same `Work`: weights, batches, settings.
"""

from __future__ import annotations

ROWS = {
    "a": ("plain PyTorch loop", "plain"),
    "b": ("the same, torch.compile", "compiled"),
    "c": ("torch.func vmap", "vmap"),
    "d": ("JAX vmap + jit", "jax_vmap"),
    "e": ("this project", "fleet"),
}
"""Every row's name and its file."""

ONE_AT_A_TIME = ("a", "b")


class Unavailable(Exception):
    """A row that cannot run here, and why."""
