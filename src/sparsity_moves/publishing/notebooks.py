"""Run one MyST notebook with papermill, and accept nothing less than a complete run.

Papermill alone reports success after `sys.exit(0)` with the later cells unrun, only warns about an
unknown parameter, and writes its output in place. Here every code cell must have run, the cell tagged
`parameters` says which names and types are allowed, and the output appears whole or not at all. What
comes out depends on the inputs only: no timestamps, no random cell ids.
"""

import ast
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jupytext
import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

import sparsity_moves
from sparsity_moves.errors import UserError
from sparsity_moves.publishing import fingerprint
from sparsity_moves.publishing.kernels import WarmKernelManager

PACKAGE = Path(sparsity_moves.__file__).parent
DATA_DIR = "SPARSITY_MOVES_DATA_DIR"  # tells `figures.show` where the tables behind the figures go
_KERNEL_FILE = re.compile(r"\S*ipykernel_\d+\S*\.py:\d+")  # a warning's origin: the path holds a process id


def execute(
    source: Path,
    target: Path,
    parameters: Mapping[str, object] | None = None,
    *,
    exports: Path | None = None,
    reads: Iterable[Path] = (),
    lock: Path | None = None,
    package: Path = PACKAGE,
) -> bool:
    """Run `source` into `target` unless `target` already holds this very run; say whether it ran.

    Args:
        source: a notebook, MyST Markdown or .ipynb.
        target: the executed .ipynb; beside it a .json remembers what it was made from.
        parameters: values for names in the cell tagged `parameters`; text is read as the default's type.
        exports: the folder for the files that the notebook's figures write; replaced with the notebook.
        reads: the tables (files or folders) the notebook reads; a change in one makes it run again.
        lock: the file that pins the packages.
        package: the source tree whose change makes it run again.

    Raises:
        UserError: an unknown parameter or one of the wrong type, a cell that raised, or one that did
            not run. The previous target and exports are then untouched.
    """
    notebook = read(source)
    values = checked(parameters or {}, notebook, source.name)
    inputs = _inputs(source, values, reads, lock, package)
    record = target.with_suffix(".json")
    if _is_current(target, inputs, exports):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".run-") as scratch:
        made = Path(scratch) / "exports"
        made.mkdir()
        with _environment(made if exports else None):
            executed = _run(notebook, values, source)
        draft = Path(scratch) / target.name
        nbformat.write(executed, draft)  # type: ignore[no-untyped-call]
        record.unlink(missing_ok=True)  # from here until the end the target claims nothing
        if exports:
            shutil.rmtree(exports, ignore_errors=True)
            made.rename(exports)
        draft.replace(target)
        draft.write_text(json.dumps({"inputs": inputs, "outputs": _outputs(target, exports)}, indent=1))
        draft.replace(record)
    return True


def is_current(
    source: Path,
    target: Path,
    parameters: Mapping[str, object] | None = None,
    *,
    exports: Path | None = None,
    reads: Iterable[Path] = (),
    lock: Path | None = None,
    package: Path = PACKAGE,
) -> bool:
    """Whether `execute` with the same arguments would find nothing to do.

    Raises:
        UserError: the parameters do not fit the notebook.
    """
    values = checked(parameters or {}, read(source), source.name)
    return _is_current(target, _inputs(source, values, reads, lock, package), exports)


def read(source: Path) -> NotebookNode:
    """The notebook at `source`.

    Raises:
        UserError: there is none, or it cannot be read as one.
    """
    try:
        # Without the format, jupytext takes every fenced block of a page of prose for a cell.
        notebook: NotebookNode = jupytext.read(source, fmt="md:myst" if source.suffix == ".md" else None)
    except FileNotFoundError:
        raise UserError(f"There is no notebook {source}.") from None
    except Exception as error:  # jupytext, nbformat and YAML each raise their own
        raise UserError(f"{source.name} cannot be read as a notebook: {_first_line(error)}.") from error
    return notebook


def defaults(notebook: NotebookNode, name: str) -> dict[str, object]:
    """The names and values that the cell tagged `parameters` assigns.

    Raises:
        UserError: the cell does something other than assign literals.
    """
    found: dict[str, object] = {}
    for cell in notebook.cells:
        if "parameters" not in cell.metadata.get("tags", []):
            continue
        try:
            for statement in ast.parse(cell.source).body:
                match statement:
                    case ast.Assign(targets=[ast.Name(id=key)], value=value):
                        found[key] = ast.literal_eval(value)
                    case ast.AnnAssign(target=ast.Name(id=key), value=ast.expr() as value):
                        found[key] = ast.literal_eval(value)
                    case _:
                        raise ValueError(ast.unparse(statement))
        except (ValueError, SyntaxError) as error:
            raise UserError(f"The parameters cell of {name} may only assign literals: {error}.") from error
    return found


def checked(parameters: Mapping[str, object], notebook: NotebookNode, name: str) -> dict[str, object]:
    """The parameters, each known to the notebook and of its default's type.

    Raises:
        UserError: a name that the notebook does not have, or a value of another type.
    """
    known = defaults(notebook, name)
    values: dict[str, object] = {}
    for key, value in parameters.items():
        if key not in known:
            allowed = ", ".join(known) or "none"
            raise UserError(f"{name} has no parameter {key!r}; it has: {allowed}.")
        values[key] = _as(known[key], value, f"{key} of {name}")
    return values


def _as(default: object, value: object, what: str) -> object:
    """`value` in the default's type; text from the command line is read, `1,2,3` as a list."""
    wanted = type(default)
    if isinstance(value, str) and not isinstance(default, str):
        text = f"[{value}]" if isinstance(default, list | tuple) and value[:1] not in "[(" else value
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise UserError(f"{what} must be of type {wanted.__name__}, not {value!r}.") from None
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return list(value)  # papermill writes both as a list
    exact = type(value) is wanted or default is None
    if not exact and not (wanted is float and type(value) is int):
        raise UserError(f"{what} must be of type {wanted.__name__}, not {value!r}.")
    return value


def _run(notebook: NotebookNode, values: dict[str, object], source: Path) -> NotebookNode:
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        executed = papermill.execute_notebook(
            notebook,
            None,
            values,
            kernel_name="python3",
            progress_bar=False,
            cwd=source.parent,
            extra_arguments=["--log-level=CRITICAL"],  # no advice, and no complaint at being ended
            **({"kernel_manager_class": WarmKernelManager} if sys.platform == "linux" else {}),
        )
    except PapermillExecutionError as error:
        why = error.evalue if error.ename == "UserError" else f"{error.ename}: {error.evalue}"
        raise UserError(f"{source.name}, code cell {error.exec_count}: {_first_line(why)}") from error
    except (DeadKernelError, CellTimeoutError) as error:
        raise UserError(f"{source.name} did not finish: {_first_line(error)}") from error
    _require_complete(executed, source.name)
    return _reproducible(executed)


def _require_complete(notebook: NotebookNode, name: str) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for number, cell in enumerate(cells, start=1):
        if any(output.output_type == "error" for output in cell.outputs):
            raise UserError(f"{name}, code cell {number}: it stopped the notebook before its end.")
        if cell.execution_count is None:
            raise UserError(f"{name}, code cell {number}: it was never run.")


def _reproducible(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what differs between two runs: times, cell ids, process ids, chunked prints."""
    notebook.metadata.pop("papermill", None)
    tags: list[str] = []
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        own = cell.metadata.setdefault("tags", [])
        if "parameters" in own:
            tags = [tag for tag in own if tag != "parameters"]
        elif "injected-parameters" in own:
            own += tags  # the values given hide or show as the defaults do
        if cell.cell_type == "code":
            cell.outputs = list(_joined(cell.outputs))
    notebook.nbformat_minor = max(notebook.nbformat_minor, 5)
    return notebook


def _joined(outputs: list[NotebookNode]) -> Iterator[NotebookNode]:
    last = None
    for output in outputs:
        if output.output_type == "stream":
            output.text = _KERNEL_FILE.sub("notebook", output.text)
            if last is not None and last.output_type == "stream" and last.name == output.name:
                last.text += output.text
                continue
        last = output
        yield output


def _inputs(
    source: Path, values: Mapping[str, object], reads: Iterable[Path], lock: Path | None, package: Path
) -> str:
    return fingerprint.of_inputs([source, package, *([lock] if lock else []), *reads], values)


def _is_current(target: Path, inputs: str, exports: Path | None) -> bool:
    try:
        remembered = json.loads(target.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return False
    return bool(remembered == {"inputs": inputs, "outputs": _outputs(target, exports)})


def _outputs(target: Path, exports: Path | None) -> list[str]:
    return [fingerprint.of_path(path) for path in (target, exports) if path]


@contextmanager
def _environment(data_dir: Path | None) -> Iterator[None]:
    """What the kernel inherits: where figures put their tables, and a fixed hash seed."""
    wanted = {"PYTHONHASHSEED": "0", DATA_DIR: str(data_dir.resolve()) if data_dir else None}
    before = {key: os.environ.get(key) for key in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for key, value in variables.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def _first_line(text: object) -> str:
    return (str(text).strip() or type(text).__name__).splitlines()[0]
