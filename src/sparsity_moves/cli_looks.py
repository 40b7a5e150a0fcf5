"""Commands whose runs keep their looks alone: sparsity-moves usage · language."""

from __future__ import annotations

from dataclasses import dataclass

from sparsity_moves.errors import UserError
from sparsity_moves.names import Profile, results_folder
from sparsity_moves.store.looks import Looks


@dataclass(frozen=True)
class Usage:
    """Train trees and look at how they are used as they learn, φ at every node and after the sum (results/usage)."""

    profile: Profile = "laptop"
    tasks: tuple[str, ...] = ("histogram",)
    seeds: int = 6

    def run(self) -> int:
        from sparsity_moves.studies import usage
        from sparsity_moves.studies.engine.progress import shown
        from sparsity_moves.studies.engine.worker import device_name, prepare

        where = Looks(results_folder("usage"))
        wanted = usage.groups(self.profile, self.tasks, self.seeds)  # type: ignore[arg-type]
        prepare()
        with shown(quiet=False) as show:
            trained = usage.run(wanted, where, device_name(), show)
        total = sum(len(specs) for _, specs in wanted)
        print(f"{trained} models trained, {total - trained} were there already; looks in {where.root}")
        return 0


@dataclass(frozen=True)
class Language:
    """Train byte-level language models with dense, MoE and tree FFNs, and keep their looks (results/language)."""

    ffn: tuple[str, ...] = ("dense", "moe", "tree", "tree_balanced")
    seeds: int = 3
    steps: int | None = None
    height: int | None = None
    """Of the trees, 5 unless given."""
    activation: str | None = None
    """φ, `gelu` unless given."""
    corpus: str = "generated"
    """`generated` here, or `wikitext` (WikiText-103, which the package `datasets` fetches)."""

    def run(self) -> int:
        try:
            from sparsity_moves.language import runs
        except ImportError as missing:
            raise UserError(f"{missing}: pip install sparsity-moves[language]") from missing
        from sparsity_moves.studies.engine.progress import shown
        from sparsity_moves.studies.engine.worker import device_name, prepare
        from sparsity_moves.studies.study import seeds

        if self.corpus not in ("generated", "wikitext"):
            raise UserError(f"no corpus is called '{self.corpus}'; there are generated and wikitext")
        more = {"steps": self.steps, "tree_depth": self.height, "activation": self.activation}
        own = {name: value for name, value in more.items() if value is not None}
        wanted = [(arm, runs.spec(arm, seed, **own)) for seed in seeds(self.seeds) for arm in self.ffn]
        where = Looks(results_folder("language"))
        prepare()

        with shown(quiet=False) as show:
            trained = runs.run(wanted, where, self.corpus, device_name(), show)  # type: ignore[arg-type]
        print(f"{trained} models trained, {len(wanted) - trained} were there already; looks in {where.root}")
        return 0
