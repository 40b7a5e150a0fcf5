"""The lab as a part of a published page: one element, and the module that mounts itself in it."""

from __future__ import annotations

import html
import json
from functools import cache
from pathlib import Path
from typing import Any

from sparsity_moves.widgets.lab.module import module
from sparsity_moves.widgets.lab.recipes import CONTROLS, Setting, checked

RECORDED = Path(__file__).parent / "recorded.json"

SILENT = (
    "The lab needs JavaScript. What it would show first is a recorded run: after {step} steps the full model gets "
    "{accuracy:.1%} of the answers right, without its FFN {noFfn:.1%}, without attention {noAttention:.1%}."
)


@cache
def recorded() -> dict[str, Any]:
    """The committed recorded run."""
    found: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


def element(setting: Setting) -> str:
    """HTML of the lab, opened with a setting (its own where that is empty); works over http and from the disk.

    The module stands inside of the page: a browser loads none from file://.
    """
    state = {"recorded": recorded(), "setting": checked(setting) if setting else None, "links": True}
    silent = html.escape(SILENT.format(**recorded()["rows"][-1]))
    return (
        f'<div class="lab-host"><noscript><p>{silent}</p></noscript></div><script type="module">{module()}\n'
        f'mount(document.querySelector(".lab-host"), {json.dumps(state)});</script>'
    )


def fragment(text: str) -> str:
    """The part of an address that opens the lab with a setting: `experts:8;routing:frozen`, completed.

    Raises `UserError` where the lab has no such control or value.
    """
    given: Setting = {}
    for part in text.split(";"):
        name, _, written = part.strip().partition(":")
        control = next((c for c in CONTROLS if c["name"] == name), None)
        values = control["values"] if control else []
        given[name] = next((value for value in values if str(value) == written), written)
    return "#lab=" + ";".join(f"{name}:{value}" for name, value in checked(given).items())
