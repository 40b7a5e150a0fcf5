"""Doors from the chapters to the lab: each chapter of runs has one, and each opens what its words say."""

import re
from pathlib import Path

import pytest
import yaml

from sparsity_moves.errors import UserError
from sparsity_moves.publishing import site
from sparsity_moves.widgets.lab.page_html import fragment
from sparsity_moves.widgets.lab.recipes import CONTROLS, checked, spec_of

ROOT = Path(__file__).parents[1]
PAGES = site.page_names(yaml.safe_load((ROOT / "_toc.yml").read_text()))
DOOR = re.compile(r"\{try\}`([^<`]+)<([^>`]+)>`")
RUNS = re.compile(r"studies\.(run|argument)\b")
NUMBERS = {"two": 2, "four": 4, "eight": 8, "sixteen": 16}
PROMISES = {
    r"narrow": {"experts": 1, "width": 64},
    r"\bdense layer$|\bone expert\b": {"experts": 1},
    r"^(the|an) moe\b": {"routing": "learned", "top_k": 1, "width": 256, "ffn": "mlp"},
    r"modular addition": {"task": "modular_addition"},
    r"addition with carry": {"task": "add7"},
    r"histogram": {"task": "histogram"},
    r"\bfrozen\b|\bfreeze": {"routing": ("frozen", "switch_frozen")},
    r"switch": {"routing": ("switch", "switch_frozen")},
    r"hash": {"routing": "hash"},
    r"\ba glu\b": {"ffn": "glu", "experts": 1},
    r"\btrees\b": {"ffn": "tree"},
    r"φ after the sum": {"ffn": "tree_balanced"},
    r"without a balance loss": {"balance": 0},
    r"a hundred times stronger": {"balance": 1},
    r"two of four experts open": {"top_k": 2, "experts": 4},
    r"all four open": {"top_k": 4, "experts": 4},
    r"\bas wide as the dense layer\b": {"width": 512, "experts": 2},
}
"""What words promise of a setting; how many experts and units, the numbers in them say."""


def doors(text: str) -> list[tuple[str, str]]:
    """Words and setting of every door of a page."""
    return [(" ".join(words.split()), setting) for words, setting in DOOR.findall(text)]


def opened(setting: str) -> dict[str, str | int | float]:
    """What the lab is set to, read back from the link as the page reads it."""
    values = dict(part.split(":") for part in fragment(setting).removeprefix("#lab=").split(";"))
    of = {control["name"]: control["values"] for control in CONTROLS}
    return {name: next(value for value in of[name] if str(value) == word) for name, word in values.items()}


def broken(words: str, setting: str) -> list[str]:
    """Promises of the words that the setting does not keep, and changes that no word speaks of."""
    found, said = [], words.lower()
    got, usual = opened(setting), checked({"task": opened(setting)["task"]})
    promised: dict[str, object] = {"task": got["task"]} if "addition" in said or "histogram" in said else {}
    for pattern, wanted in PROMISES.items():
        if re.search(pattern, said):
            promised |= wanted
    count = re.search(r"\b(two|four|eight|sixteen) experts\b(?! open)", said)
    units = re.search(r"\b(\d+) units\b", said)
    promised |= {"experts": NUMBERS[count[1]]} if count else {}
    promised |= {"width": int(units[1])} if units else {}
    for name, value in promised.items():
        if got[name] not in (value if isinstance(value, tuple) else (value,)):
            found.append(f"{words!r} promises {name} {value}, the door has {got[name]}")
    for name, value in got.items():
        if value != usual[name] and name not in promised and name != "task":
            found.append(f"{words!r} says nothing of {name} {value}")
    return found


@pytest.mark.parametrize("name", PAGES)
def test_a_chapter_of_runs_has_doors_that_open_what_they_say(name: str) -> None:
    text = (ROOT / "book" / f"{name}.md").read_text()
    there = doors(text)
    assert there or not RUNS.search(text), "no door leads from here to the lab"
    assert len(there) == text.count("{try}"), "a door is written in another way than {try}`words <setting>`"
    if name != "lab":  # whose own list is of things to do
        assert not [fault for words, setting in there for fault in broken(words, setting)]
    specs = [spec_of(opened(setting)) for _, setting in there]
    assert len({spec.spec_id for spec in specs}) == len(set(there)), "two doors of a page open the same run"


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ("sixteen experts", "experts:8"),
        ("a frozen router", "routing:learned"),
        ("the dense layer", "experts:4"),
        ("the MoE", "experts:4;routing:hash"),
        ("the histogram", "task:add7"),
        ("two experts", "experts:2;width:512"),  # a change that nobody speaks of
    ],
)
def test_a_door_that_does_not_keep_its_word_is_noticed(words: str, setting: str) -> None:
    assert broken(words, setting)


def test_a_door_to_nowhere_is_refused() -> None:
    with pytest.raises(UserError, match="experts in the lab is one of"):
        opened("experts:5")
