"""Build the book: run its notebooks, gather what the pages load, let Jupyter Book write the HTML.

Everything happens in a work folder; the finished pages take the place of the last good ones in one move,
so that a build that fails loses nothing. What has not changed is not done again.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypedDict

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sparsity_moves.errors import UserError
from sparsity_moves.processes import end_with
from sparsity_moves.publishing import assets, fingerprint, notebooks

BIBLIOGRAPHY = "bibliography"
_PERCENT = re.compile(r"(reading sources|writing output)\.\.\. \[\s*(\d+)%\]")
_NOISE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Book:
    """Where a book's parts are.

    Attributes:
        root: the folder of `_config.yml`, `_toc.yml`, `constraints.txt` and `book/`.
        output: the folder that receives `html/`, and `work/` for what is kept between builds.
        reads: the tables (files or folders) that the notebooks read.
    """

    root: Path
    output: Path
    reads: tuple[Path, ...] = ()

    @property
    def sources(self) -> Path:
        return self.root / "book"

    @property
    def lock(self) -> Path:
        return self.root / "constraints.txt"

    @property
    def work(self) -> Path:
        return self.output / "work"

    @property
    def html(self) -> Path:
        return self.output / "html"


@dataclass(frozen=True)
class Page:
    """One page of the book; `runs` if it has code."""

    name: str
    source: Path
    runs: bool
    parameters: Mapping[str, object] = field(default_factory=dict)


def build(
    root: Path,
    *,
    profile: str,
    output: Path | None = None,
    reads: Iterable[Path] = (),
    jobs: int = 2,
    console: Console | None = None,
) -> Path:
    """Build the whole book and return its `index.html`.

    Args:
        root: the repository, with `_config.yml`, `_toc.yml`, `constraints.txt` and `book/`.
        profile: given to every notebook that has the parameter `profile`.
        output: receives `html/`; `_build` under the root unless given.
        reads: the tables (files or folders) the notebooks read; a change runs them again.
        jobs: how many notebooks run at once.
        console: where progress is shown.

    Raises:
        UserError: a page is missing, a notebook failed, or Jupyter Book warned. The last good pages stay.
    """
    book = Book(root.resolve(), (output or root / "_build").resolve(), tuple(reads))
    toc = _load(book.root / "_toc.yml")
    pages = [_page(book, name, {"profile": profile}, strict=False) for name in page_names(toc)]
    return _publish(book, pages, toc, jobs, console or Console())


def build_chapter(
    root: Path,
    name: str,
    parameters: Mapping[str, object],
    *,
    output: Path | None = None,
    reads: Iterable[Path] = (),
    console: Console | None = None,
) -> Path:
    """Run one chapter with the reader's own parameters and return its page, apart from the book.

    Raises:
        UserError: no such chapter, an unknown parameter, or what `build` raises.
    """
    place = output or root / "_build" / "chapters" / name
    book = Book(root.resolve(), place.resolve(), tuple(reads))
    known = page_names(_load(book.root / "_toc.yml"))
    if name not in known:
        raise UserError(f"The book has no chapter {name!r}; it has: {', '.join(known)}.")
    pages = [_page(book, name, parameters, strict=True)]
    if BIBLIOGRAPHY in known and name != BIBLIOGRAPHY:
        pages.append(_page(book, BIBLIOGRAPHY, {}, strict=False))
    toc = {"format": "jb-book", "root": name, "chapters": [{"file": p.name} for p in pages[1:]]}
    # Links to the other chapters lead nowhere here: their warnings do not count.
    return _publish(book, pages, toc, 1, console or Console(), strict=False).with_name(f"{name}.html")


def _publish(
    book: Book, pages: list[Page], toc: object, jobs: int, console: Console, strict: bool = True
) -> Path:
    with _alone(book), _progress(console) as progress:
        task = progress.add_task("Running the notebooks", total=len(pages))
        _run_all(book, pages, jobs, progress, task)
        staging = _stage(book, pages, toc)
        inputs = fingerprint.of_inputs([staging, notebooks.PACKAGE], {"strict": strict})
        index = book.html / "index.html"
        stamp = book.html / ".inputs"
        if index.is_file() and stamp.is_file() and stamp.read_text() == inputs:
            progress.update(task, description="Nothing has changed", completed=len(pages))
            return index
        task = progress.add_task("Writing the pages", total=200)
        fresh = _sphinx(book, staging, progress, task, strict)
        (fresh / ".inputs").write_text(inputs)
        _swap(fresh, book.html)
    return index


@contextmanager
def _alone(book: Book) -> Iterator[None]:
    """Wait until no other build writes to the same folder; a full disk or the like is one sentence."""
    try:
        book.work.mkdir(parents=True, exist_ok=True)
        with (book.work / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise UserError(f"The book could not be written: {error}.") from error


def _run_all(book: Book, pages: list[Page], jobs: int, progress: Progress, task: TaskID) -> None:
    """Run the notebooks, a few at a time; the first failure is raised once the running ones ended."""
    waiting = [page for page in pages if page.runs and not notebooks.is_current(**_run(book, page))]
    progress.advance(task, len(pages) - len(waiting))
    if not waiting:
        return
    context = get_context("spawn")  # the kernel's zmq threads do not survive a fork
    workers = min(jobs, len(waiting))
    with ProcessPoolExecutor(workers, context, initializer=end_with, initargs=(os.getpid(),)) as pool:
        running = [pool.submit(notebooks.execute, **_run(book, page)) for page in waiting]
        try:
            for done in as_completed(running):
                done.result()
                progress.advance(task)
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise


class _Run(TypedDict):
    source: Path
    target: Path
    parameters: Mapping[str, object]
    exports: Path
    reads: tuple[Path, ...]
    lock: Path


def _run(book: Book, page: Page) -> _Run:
    return _Run(
        source=page.source,
        target=_executed(book, page),
        parameters=page.parameters,
        exports=_exports(book, page),
        reads=book.reads,
        lock=book.lock,
    )


def _executed(book: Book, page: Page) -> Path:
    return book.work / "notebooks" / f"{page.name}.ipynb"


def _exports(book: Book, page: Page) -> Path:
    return book.work / "notebooks" / f"{page.name}.data"


def _stage(book: Book, pages: list[Page], toc: object) -> Path:
    """The folder that Sphinx reads: pages, references, assets, tables, settings."""
    staging = book.work / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    data = staging / "assets" / "data"
    data.mkdir(parents=True)
    for page in pages:
        target = staging / f"{page.name}{'.ipynb' if page.runs else page.source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_executed(book, page) if page.runs else page.source, target)
        for table in sorted(_exports(book, page).glob("*")) if page.runs else ():
            if (data / table.name).exists():
                raise UserError(f"Two pages have a figure called {table.stem}; the second is {page.name}.")
            shutil.copy(table, data)
    for references in book.sources.glob("*.bib"):
        shutil.copy(references, staging)
    assets.fill(staging / "assets", book.sources / "assets")
    shutil.copy(book.root / "_config.yml", staging)
    (staging / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False))
    return staging


def _sphinx(book: Book, staging: Path, progress: Progress, task: TaskID, strict: bool) -> Path:
    """Let Jupyter Book write the pages into a fresh folder.

    Raises:
        UserError: it failed or, when strict, warned; the message has its first complaint.
    """
    fresh = book.work / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    settings = ["--config", str(staging / "_config.yml"), "--toc", str(staging / "_toc.yml")]
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(staging)]
    command += [*settings, "--path-output", str(fresh), *(["-W", "--keep-going"] if strict else [])]
    environment = os.environ | {"PYTHONHASHSEED": "0", "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}
    log = book.work / "sphinx.log"
    complaints: list[str] = []
    with (
        log.open("w") as record,
        subprocess.Popen(
            command,
            cwd=staging,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout or ():
            line = _NOISE.sub("", line)
            record.write(line)
            if stage := _PERCENT.search(line):
                before = 0 if stage[1] == "reading sources" else 100
                progress.update(task, completed=before + int(stage[2]))
            elif "WARNING:" in line or "ERROR:" in line or "Error:" in line:
                complaints.append(line.strip().replace(f"{staging}{os.sep}", ""))
    html = fresh / "_build" / "html"
    if process.returncode or not (html / "index.html").is_file():
        first = complaints[0] if complaints else "Jupyter Book stopped"
        raise UserError(f"The pages could not be written: {first} (all of it: {log}).")
    progress.update(task, completed=200)
    return html


def _swap(fresh: Path, html: Path) -> None:
    old = html.with_name("html.old")
    shutil.rmtree(old, ignore_errors=True)
    if html.exists():
        html.rename(old)
    fresh.rename(html)
    shutil.rmtree(old, ignore_errors=True)


def _page(book: Book, name: str, parameters: Mapping[str, object], *, strict: bool) -> Page:
    """The page of that name; unless strict, the parameters it does not have are left out."""
    source = book.sources / f"{name}.md"
    notebook = notebooks.read(source)
    runs = any(cell.cell_type == "code" for cell in notebook.cells)
    if not strict:
        known = notebooks.defaults(notebook, source.name)
        parameters = {key: value for key, value in parameters.items() if key in known}
    return Page(name, source, runs, notebooks.checked(parameters, notebook, source.name))


def page_names(toc: object) -> list[str]:
    """The pages of a table of contents, in order."""
    if isinstance(toc, list):
        return [name for part in toc for name in page_names(part)]
    if not isinstance(toc, dict):
        return []
    own = [str(toc[key]) for key in ("root", "file") if key in toc]
    return own + [name for key in ("parts", "chapters", "sections") for name in page_names(toc.get(key))]


def _load(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path.name} cannot be read: {str(error).splitlines()[0]}.") from error


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
