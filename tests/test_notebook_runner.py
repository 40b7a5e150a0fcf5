"""The notebook runner: a notebook runs completely, with known parameters, or leaves everything as it was."""

import sys
from pathlib import Path

import nbformat
import pytest

from sparsity_moves.errors import UserError
from sparsity_moves.publishing import notebooks

HEADER = "---\nkernelspec: {display_name: Python 3, language: python, name: python3}\n---\n"
PARAMETERS = "experts = 4\nrate = 0.5\nseeds = [1, 2]\nprofile = 'laptop'\nfrozen: bool = False"


def write(path: Path, *cells: str, parameters: str = "experts = 4") -> Path:
    """A MyST notebook with a parameters cell and these code cells."""
    blocks = [f"```{{code-cell}} ipython3\n:tags: [parameters]\n{parameters}\n```"]
    blocks += [f"```{{code-cell}} ipython3\n{cell}\n```" for cell in cells]
    path.write_text(HEADER + "\n\n".join(blocks) + "\n")
    return path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small source tree to depend on."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "code.py").write_text("answer = 1\n")
    return folder


def texts(target: Path) -> list[str]:
    """What each code cell printed."""
    cells = nbformat.read(target, as_version=4).cells
    return ["".join(o.get("text", "") for o in c.outputs) for c in cells if c.cell_type == "code"]


class TestParameters:
    def test_the_parameters_cell_names_what_may_be_set(self, tmp_path: Path) -> None:
        notebook = notebooks.read(write(tmp_path / "a.md", parameters=PARAMETERS))
        assert notebooks.defaults(notebook, "a.md") == {
            "experts": 4,
            "rate": 0.5,
            "seeds": [1, 2],
            "profile": "laptop",
            "frozen": False,
        }

    @pytest.mark.parametrize(
        ("given", "read"),
        [
            ({"experts": "8"}, {"experts": 8}),
            ({"rate": "1"}, {"rate": 1}),
            ({"seeds": "3,5"}, {"seeds": [3, 5]}),
            ({"seeds": "7"}, {"seeds": [7]}),
            ({"seeds": (1, 2)}, {"seeds": [1, 2]}),
            ({"profile": "8"}, {"profile": "8"}),
            ({"frozen": "True"}, {"frozen": True}),
        ],
    )
    def test_text_is_read_as_the_type_of_the_default(
        self, tmp_path: Path, given: dict[str, object], read: dict[str, object]
    ) -> None:
        notebook = notebooks.read(write(tmp_path / "a.md", parameters=PARAMETERS))
        assert notebooks.checked(given, notebook, "a.md") == read

    @pytest.mark.parametrize(
        "given", [{"experts": "many"}, {"experts": 2.5}, {"experts": True}, {"profile": 3}, {"frozen": "1"}]
    )
    def test_a_value_of_another_type_is_refused(self, tmp_path: Path, given: dict[str, object]) -> None:
        notebook = notebooks.read(write(tmp_path / "a.md", parameters=PARAMETERS))
        with pytest.raises(UserError, match=r"a\.md must be of type"):
            notebooks.checked(given, notebook, "a.md")

    def test_an_unknown_parameter_is_refused_before_anything_runs(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.md", "print(experts)")
        with pytest.raises(UserError, match=r"a\.md has no parameter 'expert'; it has: experts\."):
            notebooks.execute(source, tmp_path / "out.ipynb", {"expert": 8})
        assert not (tmp_path / "out.ipynb").exists()

    def test_a_parameters_cell_that_computes_is_refused(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.md", parameters="experts = 2 ** 3")
        with pytest.raises(UserError, match="may only assign literals"):
            notebooks.execute(source, tmp_path / "out.ipynb")

    def test_a_value_reaches_the_notebook(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.md", "print(experts * 2)")
        notebooks.execute(source, tmp_path / "out.ipynb", {"experts": "8"})
        assert texts(tmp_path / "out.ipynb")[-1] == "16\n"


class TestFailure:
    @pytest.mark.parametrize(
        ("cells", "message"),
        [
            (
                ["1 + 1", "raise ValueError('three experts')"],
                r"a\.md, code cell 3: ValueError: three experts",
            ),
            (["import sys; sys.exit(0)", "print('never')"], r"a\.md, code cell 2: it stopped the notebook"),
            (["import os; os._exit(0)", "print('never')"], r"a\.md did not finish"),
            ([":tags: [skip-execution]\nprint('never')"], r"a\.md, code cell 2: it was never run"),
            ([":tags: [raises-exception]\n1 / 0"], r"a\.md, code cell 2"),
        ],
        ids=["raises", "sys.exit(0)", "os._exit(0)", "skipped", "allowed to raise"],
    )
    def test_anything_but_a_complete_run_is_one_sentence_and_keeps_the_last_good_output(
        self, tmp_path: Path, cells: list[str], message: str
    ) -> None:
        target, exports = tmp_path / "out" / "a.ipynb", tmp_path / "out" / "a.data"
        exports.mkdir(parents=True)
        (exports / "table.csv").write_text("kept")
        target.write_text("the last good run")
        with pytest.raises(UserError, match=message) as caught:
            notebooks.execute(write(tmp_path / "a.md", *cells), target, exports=exports)
        assert len(str(caught.value).splitlines()) == 1
        assert target.read_text() == "the last good run"
        assert (exports / "table.csv").read_text() == "kept"
        assert sorted(p.name for p in target.parent.iterdir()) == ["a.data", "a.ipynb"]

    def test_a_missing_or_unreadable_notebook_is_one_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="There is no notebook"):
            notebooks.execute(tmp_path / "none.md", tmp_path / "out.ipynb")
        (tmp_path / "bad.ipynb").write_text("{")
        with pytest.raises(UserError, match="cannot be read as a notebook"):
            notebooks.execute(tmp_path / "bad.ipynb", tmp_path / "out.ipynb")


class TestOutput:
    def test_two_runs_are_byte_identical_and_hold_no_times(self, tmp_path: Path) -> None:
        noisy = (
            "import sys, warnings\nprint('a', flush=True); print(sorted({'x', 'y'}))\n"
            "warnings.warn('careful')\nprint({'x', 'y', 'z'})"
        )
        source = write(tmp_path / "a.md", noisy)
        for name in ("one", "two"):
            notebooks.execute(source, tmp_path / name / "a.ipynb", {"experts": 2})
        one = (tmp_path / "one" / "a.ipynb").read_bytes()
        assert one == (tmp_path / "two" / "a.ipynb").read_bytes()
        assert b"papermill" not in one
        assert b"duration" not in one

    def test_the_files_a_notebook_exports_appear_with_it(self, tmp_path: Path) -> None:
        cell = f"import os\nopen(os.environ['{notebooks.DATA_DIR}'] + '/t.csv', 'w').write('a')"
        source = write(tmp_path / "a.md", cell)
        notebooks.execute(source, tmp_path / "a.ipynb", exports=tmp_path / "a.data")
        assert (tmp_path / "a.data" / "t.csv").read_text() == "a"

    def test_injected_values_are_hidden_like_the_defaults(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.md", "1")
        source.write_text(source.read_text().replace("[parameters]", "[parameters, remove-cell]"))
        notebooks.execute(source, tmp_path / "a.ipynb", {"experts": 8})
        injected = nbformat.read(tmp_path / "a.ipynb", as_version=4).cells[1]
        assert injected.metadata.tags == ["injected-parameters", "remove-cell"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere kernels are not forked")
class TestWarmKernels:
    LOOK = "import builtins, sys\nprint('torch' in sys.modules, hasattr(builtins, 'left_behind'))"

    def test_a_kernel_has_the_imports_and_nothing_that_another_left_behind(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.md", f"{self.LOOK}\nbuiltins.left_behind = 1")
        for name in ("one", "two"):
            notebooks.execute(source, tmp_path / name / "a.ipynb")
            assert texts(tmp_path / name / "a.ipynb")[1] == "True False\n"

    def test_a_notebook_comes_out_as_from_a_kernel_of_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = "print(os.getcwd(), os.environ['PYTHONHASHSEED'], {'x', 'y', 'z'}, torch.ones(2))"
        source = write(tmp_path / "a.md", "import os, torch", told, "{'a': 1}")
        notebooks.execute(source, tmp_path / "warm.ipynb")
        monkeypatch.setattr(sys, "platform", "another")
        notebooks.execute(source, tmp_path / "cold.ipynb")
        assert (tmp_path / "warm.ipynb").read_bytes() == (tmp_path / "cold.ipynb").read_bytes()


class TestCache:
    def test_runs_again_exactly_when_an_input_or_the_output_changed(
        self, tmp_path: Path, package: Path
    ) -> None:
        source = write(tmp_path / "a.md", "1")
        lock, table = tmp_path / "constraints.txt", tmp_path / "results"
        lock.write_text("numpy==2.4.6\n")
        table.mkdir()
        (table / "runs.parquet").write_bytes(b"one")
        target, exports = tmp_path / "out" / "a.ipynb", tmp_path / "out" / "a.data"

        def current(**parameters: object) -> bool:
            return notebooks.is_current(
                source, target, parameters, exports=exports, reads=[table], lock=lock, package=package
            )

        assert not current(), "nothing has run yet"
        assert notebooks.execute(source, target, exports=exports, reads=[table], lock=lock, package=package)
        assert current()
        assert not notebooks.execute(
            source, target, exports=exports, reads=[table], lock=lock, package=package
        )
        assert not current(experts=8), "another parameter"
        for path in (source, package / "code.py", lock, table / "runs.parquet", target):
            before = path.read_bytes()
            path.write_bytes(before + b"\n")
            assert not current(), f"{path.name} changed"
            path.write_bytes(before)
            assert current(), f"{path.name} is as it was"
        (exports / "stray.csv").touch()
        assert not current(), "the exported files changed"

    def test_an_upgraded_package_makes_it_run_again(
        self, tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, target = write(tmp_path / "a.md"), tmp_path / "a.ipynb"
        notebooks.execute(source, target, package=package)
        assert notebooks.is_current(source, target, package=package)
        monkeypatch.setattr(notebooks.fingerprint, "of_installed", lambda: "another numpy")
        assert not notebooks.is_current(source, target, package=package)
