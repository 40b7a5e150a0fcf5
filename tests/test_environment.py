"""What the project says about its environment holds: conda file, extras, pins, licence, citation."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]


def conda_pip() -> list[str]:
    return next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))


def test_conda_asks_for_the_python_that_the_package_requires() -> None:
    python = next(d for d in CONDA["dependencies"] if str(d).startswith("python>="))
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])


def test_conda_installs_this_package_with_extras_that_exist_and_the_pins() -> None:
    own = next(line for line in conda_pip() if line.startswith("-e ."))
    named = re.fullmatch(r"-e \.\[([\w,-]+)\]", own)
    assert named, f"{own} names no extras"
    assert set(named[1].split(",")) <= set(PROJECT["optional-dependencies"])
    assert "-c constraints.txt" in conda_pip()


def test_conda_and_make_ask_for_the_same_torch() -> None:
    conda = next(d for d in CONDA["dependencies"] if str(d).startswith("pytorch="))
    make = re.search(r"^TORCH\s*:= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert make
    assert make[1].startswith(conda.removeprefix("pytorch="))
    torch = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    assert make[1] in torch.specifier


def test_every_dependency_is_pinned_to_a_version_it_allows() -> None:
    pins = {canonicalize_name(pin.name): pin for pin in PINS}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for wanted in (Requirement(line) for group in groups for line in group):
        if wanted.name in ("torch", "triton"):
            continue  # the Makefile chooses the one, and the other goes with it
        pin = pins[canonicalize_name(wanted.name)]
        version = str(pin.specifier).removeprefix("==")
        assert wanted.specifier.contains(version, prereleases=True), f"{pin} is not {wanted}"


def test_pins_leave_torch_and_cuda_to_the_machine_and_name_no_place() -> None:
    names = {canonicalize_name(pin.name) for pin in PINS}
    assert not {n for n in names if n == "torch" or n.startswith(("nvidia", "cuda", "triton"))}
    assert not [pin for pin in PINS if pin.url]


@pytest.mark.parametrize("name", ["CITATION.cff", "_config.yml", "_toc.yml", "environment.yml"])
def test_yaml_files_parse(name: str) -> None:
    assert yaml.safe_load((ROOT / name).read_text())


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
