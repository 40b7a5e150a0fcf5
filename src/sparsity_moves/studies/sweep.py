"""What if there were more experts, or a wider layer? Expert count × width on add-7, at matched total width."""

from __future__ import annotations

from sparsity_moves.names import Profile
from sparsity_moves.studies.arms import arm
from sparsity_moves.studies.study import Study, seeds

EXPERTS: dict[Profile, tuple[int, ...]] = {
    "smoke": (1, 2, 4),
    "laptop": (1, 2, 4, 8, 16),
    "paper": (1, 2, 4, 8, 16),
}
WIDTHS: dict[Profile, tuple[int, ...]] = {
    "smoke": (32, 64),
    "laptop": (64, 256),
    "paper": (64, 128, 256, 512),
}
SEEDS: dict[Profile, int] = {"smoke": 2, "laptop": 3, "paper": 20}


def study(profile: Profile = "laptop", *, number_of_seeds: int | None = None) -> Study:
    """The paper's MoE at every expert count and width; one expert is the dense layer."""
    number = SEEDS[profile] if number_of_seeds is None else number_of_seeds
    return Study(
        "sweep",
        tuple(
            (
                "dense" if experts == 1 else "moe" if experts == 4 else f"moe_e{experts}",
                arm("dense" if experts == 1 else "moe", profile, "add7", seed, experts=experts, width=width),
            )
            for width in WIDTHS[profile]
            for experts in EXPERTS[profile]
            for seed in seeds(number)
        ),
    )
