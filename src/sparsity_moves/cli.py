"""The command line: sparsity-moves train · measure · status · verify · certify · export · merge · book · chapter ·
bench · usage · language."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import tyro
from rich.console import Console
from rich.table import Table

from sparsity_moves import studies
from sparsity_moves.cli_looks import Language, Usage
from sparsity_moves.errors import UserError
from sparsity_moves.names import EngineName, LooksName, Moment, Profile, TaskName, results_folder
from sparsity_moves.store import Store, export
from sparsity_moves.store.looks import LOOKS, Looks
from sparsity_moves.store.tables import EVERY, Broken

if TYPE_CHECKING:
    from sparsity_moves.training import Spec


@dataclass(frozen=True)
class Train:
    """Train every run of the book that is not stored yet, measure what runs lack, and write the tables."""

    profile: Profile = "laptop"
    workers: int | None = None
    """Shards in training at once; as many as there are cores, or a few a GPU, unless given."""
    engine: EngineName = "local"
    """Processes of this machine, or workers of a Ray cluster (needs the extra `ray`)."""
    address: str | None = None
    """Of a Ray cluster that is running (`auto`, or host and port); one is started here unless given."""
    checkpoints: tuple[Moment, ...] | None = None
    """Moments whose parameters are kept, none where the option is given alone; unless it is given, all, and in the
    paper profile those of a few runs."""
    measured: bool = False
    """Train runs again that lack measures and were stored without their parameters."""
    studies: tuple[str, ...] = ()
    """Of these alone, by the names that `status` lists; of all unless given."""
    tasks: tuple[TaskName, ...] = ()
    """Of these alone."""
    minutes: float | None = None
    """Stop after so many, on a machine that is lent for a while: the same command goes on, with shards that were in
    training from their last state."""

    def run(self) -> int:
        where = studies.store(self.profile)
        every = studies.every(self.profile)
        if unknown := sorted(set(self.studies) - {study.name for study in every}):
            known = ", ".join(study.name for study in every)
            raise UserError(
                f"no study is called '{unknown[0]}'; at the profile {self.profile} there are {known}"
            )
        chosen = [study for study in every if not self.studies or study.name in self.studies]
        specs = list(dict.fromkeys(spec for study in chosen for spec in study.specs))
        specs = [spec for spec in specs if not self.tasks or spec.task in self.tasks]
        trained = studies.engine.run(
            specs,
            where,
            engine=self.engine,
            address=self.address,
            workers=self.workers,
            checkpoints=self.checkpoints,
            measured=self.measured,
            minutes=self.minutes,
        )
        missing = sum(not where.has(spec) for spec in specs)
        measured, left = studies.measuring.fill(specs, where, studies.engine.device_name())
        if where.spec_ids():
            studies.write_tables(self.profile)
        there = len(specs) - trained - missing
        print(f"{trained} models trained, {there} were there already; tables in {where.root}")
        if missing:
            print(f"{missing} are still missing: the time was up, and the same command goes on")
        if measured:
            print(
                f"{measured} of those that were there lacked measures, and were measured from their parameters"
            )
        if left:
            print(
                f"{len(left)} lack measures and were stored without their parameters; --measured trains them again"
            )
        return 0


@dataclass(frozen=True)
class Measure:
    """Measure what stored runs lack, from the parameters that were kept of them; nothing is trained."""

    profile: Profile = "laptop"

    def run(self) -> int:
        where = studies.store(self.profile)
        specs = list(dict.fromkeys(spec for study in studies.every(self.profile) for spec in study.specs))
        from sparsity_moves.studies.engine.progress import shown

        with shown(quiet=False, what="measuring") as show:
            measured, left = studies.measuring.fill(
                specs, where, studies.engine.device_name(), tell=lambda share: show(share, "")
            )
        print(f"{measured} runs in {where.root} were measured from their parameters")
        if left:
            print(f"{len(left)} lack measures of moments whose parameters were not kept")
        return 0


@dataclass(frozen=True)
class Status:
    """Say which runs are stored, which are missing, and which are damaged."""

    profile: Profile = "laptop"

    def run(self) -> int:
        where = studies.store(self.profile)
        table = Table("study", "runs", "stored", "missing", "PFLOP missing")
        every = studies.every(self.profile)
        left: set[Spec] = set()
        for study in every:
            missing = {spec for spec in study.specs if not where.has(spec)}
            left |= missing
            table.add_row(*_row(study.name, study.specs, missing))
        table.add_section()
        table.add_row(*_row("all, each run once", {spec for study in every for spec in study.specs}, left))
        Console().print(table)
        damage = where.damage()
        print("\n".join(damage) if damage else f"everything stored in {where.root} is whole")
        return 1 if damage else 0


def _row(name: str, specs: Collection[Spec], missing: Collection[Spec]) -> list[str]:
    """A line of `status`: runs, stored, missing, and what the missing ones cost."""
    counts = [len(specs), len(specs) - len(missing), len(missing)]
    return [name, *map(str, counts), f"{studies.training_flops(missing) / 1e15:,.3g}"]


@dataclass(frozen=True)
class Verify:
    """Check every stored run, table and look against its checksum, and the certificate against the tables.

    Needs no torch.
    """

    profile: Profile = "laptop"

    def run(self) -> int:
        from sparsity_moves.studies import certificate

        where = Store(results_folder(self.profile))
        certified = (where.root / certificate.FILE).exists()
        if damage := where.damage() + _broken_looks() or (certificate.check(where) if certified else []):
            print("\n".join(damage), file=sys.stderr)
            return 1
        tables = "all tables" if where.tables else "no tables yet"
        print(f"{len(where.spec_ids())} runs and {tables} in {where.root} match their checksums")
        if certified:
            print(f"{certificate.summary(where)}: computed again from the tables, they are the same")
        return 0


def _broken_looks() -> list[str]:
    """A sentence for every table of looks that is damaged."""
    found = []
    for name in get_args(LooksName):
        try:
            Looks(results_folder(name)).table()
        except Broken as broken:
            found.append(str(broken))
    return found


@dataclass(frozen=True)
class Certify:
    """Write down every published number that the tables give again, with its interval, and what they came from."""

    profile: Profile = "laptop"

    def run(self) -> int:
        from sparsity_moves.studies import certificate

        where = Store(results_folder(self.profile))
        certificate.certify(where, certificate.lock_file())
        print(f"{certificate.summary(where)}, in {where.root / certificate.FILE}")
        return 0


@dataclass(frozen=True)
class Export:
    """Pack what is stored of a profile into a few files, to be merged elsewhere."""

    folder: tyro.conf.Positional[Path]
    profile: Profile = "laptop"
    checkpoints: tuple[str, ...] = ()
    """Runs (spec_ids) whose parameters go with them."""
    without: Path | None = None
    """Another store, such as a copy from before: what it has is left out."""

    def run(self) -> int:
        where = studies.store(self.profile)
        if not where.spec_ids():
            raise UserError(f"{where.root} holds no run to pack")
        known = set() if self.without is None else set(Store(self.without).spec_ids())
        if self.without is not None and not known:
            raise UserError(f"{self.without} holds no run: it is no store that could be left out")
        for spec_id in self.checkpoints:
            if not where.checkpoint_file(spec_id):
                raise UserError(f"{where.root} holds no parameters of a run {spec_id}")
        taken = export(where, [i for i in where.spec_ids() if i not in known], self.folder, self.checkpoints)
        print(f"{len(taken.new)} runs packed in {self.folder}, {len(taken.there_already)} were there already")
        return 0


@dataclass(frozen=True)
class Merge:
    """Bring runs that were computed elsewhere into a profile's tables, once every checksum is found right."""

    folder: tyro.conf.Positional[Path]
    profile: Profile = "laptop"

    def run(self) -> int:
        taken = studies.merge(self.profile, self.folder)
        wanted = {spec.spec_id for study in studies.every(self.profile) for spec in study.specs}
        strange = len(set(taken.new) - wanted)
        note = f" ({strange} of them no study here asks for)" if strange else ""
        print(f"{len(taken.new)} runs taken{note}, {len(taken.there_already)} were there already")
        return 0


@dataclass(frozen=True)
class Book:
    """Build the book from the stored runs."""

    profile: Profile = "laptop"

    def run(self) -> int:
        from sparsity_moves.publishing import site

        where = studies.store(self.profile)
        for name in ("runs.parquet", "curves.parquet"):
            where.table(name)
        page = site.build(root(), profile=self.profile, reads=tables(self.profile))
        print(f"the book is at {page}")
        return 0


@dataclass(frozen=True)
class Chapter:
    """Run one chapter with settings of your own, training what it needs."""

    name: tyro.conf.Positional[str]
    profile: Profile | None = None
    experts: int | None = None
    width: int | None = None
    """Of the dense layer; the other arms are matched to it."""
    top_k: int | None = None
    seeds: int | None = None
    """How many."""

    def run(self) -> int:
        from sparsity_moves.publishing import notebooks, site

        given: dict[str, Any] = {
            name: value
            for name in ("profile", "experts", "width", "top_k", "seeds")
            if (value := getattr(self, name)) is not None
        }
        source = root() / "book" / f"{self.name}.md"
        if source.exists():  # refuse what the chapter does not know before anything is trained
            notebooks.checked(given, notebooks.read(source), self.name)
        profile: Profile = self.profile or "laptop"
        if self.name == "redistribution":
            study = studies.redistribution.study(
                profile,
                experts=4 if self.experts is None else self.experts,
                width=self.width,
                top_k=1 if self.top_k is None else self.top_k,
                number_of_seeds=self.seeds,
            )
            needed = [study, studies.sweep.study(profile)]
        else:  # here, where progress can be seen; a notebook trains in silence
            text = source.read_text(encoding="utf-8") if source.exists() and profile != "paper" else ""
            names = [name for name in studies.CHAPTERS if f"studies.{name}." in text]
            needed = [getattr(studies, name).study(profile) for name in names]
        studies.engine.run([spec for s in needed for spec in s.specs], studies.store(profile))
        print(f"the chapter is at {site.build_chapter(root(), self.name, given, reads=tables(profile))}")
        return 0


@dataclass(frozen=True)
class Bench:
    """Measure training speed side by side with a plain loop (needs the source checkout)."""

    peers: bool = False
    """Five programs instead, among them torch.compile, torch.func and JAX, from 1 to 256 models (8 minutes)."""

    def run(self) -> int:
        script = root() / "benchmarks" / ("peers_speed.py" if self.peers else "training_speed.py")
        return subprocess.run([sys.executable, str(script)], check=False).returncode


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Measure, tyro.conf.subcommand("measure")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Certify, tyro.conf.subcommand("certify")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Book, tyro.conf.subcommand("book")]
    | Annotated[Chapter, tyro.conf.subcommand("chapter")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Usage, tyro.conf.subcommand("usage")]
    | Annotated[Language, tyro.conf.subcommand("language")]
)


def root() -> Path:
    """The checkout: where `_toc.yml` is. Raises `UserError` elsewhere."""
    for folder in (Path.cwd(), *Path(__file__).resolve().parents):
        if (folder / "_toc.yml").exists():
            return folder
    raise UserError("there is no book here: run this in the project's checkout, where _toc.yml is")


def tables(profile: Profile) -> list[Path]:
    """What the notebooks read: the reader's tables, and the published ones where there are any."""
    folders = (studies.store(profile).root, studies.store("paper").root)
    there = [f / name for f in dict.fromkeys(folders) for name in EVERY if (f / name).exists()]
    looks = [results_folder(name) / LOOKS for name in get_args(LooksName)]
    return [
        *there,
        *(path for path in looks if path.exists()),
        *(root() / "benchmarks" / "results").glob("*.json"),
    ]


def main() -> None:
    """Run one command; 0 when all is well, 1 where damage was found, 2 where something must be mended."""
    command = tyro.cli(Command, prog="sparsity-moves", description=__doc__)
    try:
        sys.exit(command.run())
    except UserError as error:
        print(f"sparsity-moves: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # who read what is printed has gone; nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("sparsity-moves: stopped; finished runs are kept, the same command goes on", file=sys.stderr)
        sys.exit(130)
