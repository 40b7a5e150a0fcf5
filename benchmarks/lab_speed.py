"""How fast is the live lab, in a browser, beside PyTorch on the same cores?

    python benchmarks/lab_speed.py               dense and 2, 4, 8, 16 experts; about six minutes on two cores
    python benchmarks/lab_speed.py --rounds 1    a quick look

For every number of experts, in one run: the seconds until the page says that 99 % of all inputs are answered right,
the steps a second of the whole run, pictures and evaluations included, and those of a plain PyTorch loop of the same
model and batch, which evaluates nothing. Rounds of both alternate, so that a busy machine slows both. Then the page's
answer to a slider that is moved while it trains, and its longest task (in the time of the page's own thread).
The goals are 10 s, 0.5 s and 0.1 s. A goal that the best round misses is named, and the exit status is 1.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Browser, Page
from rich.console import Console
from rich.progress import track
from rich.table import Table

import plain_loop
from browsing import PATIENCE, bare_page, launched, rounds_asked, tasks_of
from sparsity_moves.figures.benchmarks import rounds
from sparsity_moves.studies.engine import cores
from sparsity_moves.training.data import batches
from sparsity_moves.widgets.lab.page_html import element
from sparsity_moves.widgets.lab.recipes import CONTROLS, spec_of

RESULT = Path(__file__).parent / "results" / "lab_speed.json"
EXPERTS = (1, 2, 4, 8, 16)
GOALS = {"learned": 10.0, "answer": 0.5, "longest task": 0.1}
PLAIN_STEPS = 100
STATE = 'document.querySelector(".lab-state").textContent'
LEARNED = f"() => /Training|Done/.test({STATE}) && Number(/right in ([0-9.]+)%/.exec({STATE})?.[1]) >= 99"
DONE = f"() => /Done/.test({STATE})"


def set_slider(page: Page, name: str, value: float) -> None:
    """Move a slider to a value, as a finger does: by its input event."""
    place = next(c["values"].index(value) for c in CONTROLS if c["name"] == name)
    page.evaluate(
        """([name, place]) => { const e = document.querySelector(`.lab [name=${name}]`);
            e.value = place; e.dispatchEvent(new Event("input", {bubbles: true})); }""",
        [name, place],
    )


def until(page: Page, pattern: str) -> None:
    """Wait until the lab's sentence about itself matches."""
    page.wait_for_function(f"() => /{pattern}/.test({STATE})")


def learned_and_done(page: Page, experts: int) -> tuple[float, float]:
    """Seconds from the slider's move to 99 % exact match, and to the end of the run."""
    began = time.perf_counter()
    set_slider(page, "experts", experts)  # which trains at once
    page.wait_for_function(LEARNED)
    learned = time.perf_counter() - began
    page.wait_for_function(DONE)
    return learned, time.perf_counter() - began


def answer(page: Page) -> float:
    """Seconds from a slider's move, some steps into a training, to the first numbers of the new model's training."""
    page.get_by_role("button", name="Train").click()
    until(page, "step [1-9][0-9]{2,} of")
    return page.evaluate(
        """() => new Promise((done) => {
            const step = () => Number(/step (\\d+)/.exec(document.querySelector(".lab-state").textContent)?.[1]);
            const slider = document.querySelector(".lab [name=experts]"), before = step(), began = performance.now();
            const look = () => {
                const experts = document.querySelectorAll(".lab-loads li").length;
                if (experts === 8 && step() > 0 && step() < before) done((performance.now() - began) / 1000);
            };
            // Each change is looked at, since a busy machine can skip any number of frames.
            new MutationObserver(look).observe(document.querySelector(".lab"),
                { subtree: true, childList: true, characterData: true });
            slider.value = 3;
            slider.dispatchEvent(new Event("input", {bubbles: true}));
        })"""
    )


def longest_task(browser: Browser, page: Page, meanwhile: str = "") -> float:
    """Seconds of the page's longest task while it trains and a slider is moved now and then.

    `meanwhile` is evaluated in the page at the end.
    """
    with tasks_of(browser, page) as tasks:
        page.get_by_role("button", name="Train").click()
        for experts in (1, 16, 2):
            page.wait_for_timeout(700)
            set_slider(page, "experts", experts)
        page.wait_for_timeout(700)
        if meanwhile:
            page.evaluate(meanwhile)
    return max(tasks)


def plain_steps_a_second(experts: int) -> float:
    """Of the same run in an ordinary PyTorch loop, on all cores."""
    spec = spec_of({"experts": experts})
    torch.manual_seed(0)
    model = plain_loop.Transformer(spec)
    step = plain_loop.updates(model, spec, plain_loop.losses(model, spec))
    data = ((tokens[0], targets[0]) for tokens, targets in batches([spec], torch.device("cpu")))
    for _ in range(10):
        step(*next(data))
    began = time.perf_counter()
    for _ in range(PLAIN_STEPS):
        step(*next(data))
    return PLAIN_STEPS / (time.perf_counter() - began)


def measured(browser: Browser, address: str, rounds: int, console: Console) -> dict[str, Any]:
    """Each figure of each round; seconds, and steps a second."""

    def opened() -> Page:
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.wait_for_selector(".lab-accuracy svg")
        return page

    names = ("learned", "done", "steps a second", "plain steps a second")
    runs: dict[int, dict[str, list[float]]] = {experts: {name: [] for name in names} for experts in EXPERTS}
    page_figures: dict[str, list[float]] = {"answer": [], "longest task": []}
    for _ in track(range(rounds), "rounds", console=console):
        for experts, row in runs.items():
            page = opened()
            learned, done = learned_and_done(page, experts)
            page.close()
            steps = spec_of({"experts": experts}).steps
            found = (learned, done, steps / done, plain_steps_a_second(experts))
            for name, value in zip(names, found, strict=True):
                row[name].append(value)
        for name, measure in (("answer", answer), ("longest task", lambda page: longest_task(browser, page))):
            page = opened()
            page_figures[name].append(measure(page))
            page.close()
    return {"experts": {str(experts): row for experts, row in runs.items()}, "page": page_figures}


def missed(record: dict[str, Any]) -> list[str]:
    """A sentence for every goal that no round reached."""
    best = {
        f"{name} experts, 99 %": (min(row["learned"]), "learned") for name, row in record["experts"].items()
    }
    best |= {name: (min(values), name) for name, values in record["page"].items()}
    return [
        f"{name}: {value:.2f} s, where {GOALS[goal]} s is the goal"
        for name, (value, goal) in best.items()
        if value > GOALS[goal]
    ]


def table(record: dict[str, Any]) -> Table:
    shown = Table("experts", "99 % after, s", "run, s", "steps a second", "PyTorch's", "ratio")
    for experts, row in record["experts"].items():
        ratios = [a / b for a, b in zip(row["steps a second"], row["plain steps a second"], strict=True)]
        rates = (rounds(row[name], 0) for name in ("steps a second", "plain steps a second"))
        shown.add_row(experts, rounds(row["learned"]), rounds(row["done"]), *rates, rounds(ratios))
    return shown


def main() -> None:
    asked = rounds_asked(__doc__)
    console = Console()
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        place = Path(folder) / "lab.html"
        place.write_text(bare_page("Lab", element({})), encoding="utf-8")
        record = measured(browser, place.as_uri(), asked, console)
        about = {
            "cores": cores(),
            "chromium": browser.version,
            "torch": version("torch"),
            "rounds": asked,
        }
    console.print(table(record))
    for name, values in record["page"].items():
        console.print(f"{name}: {rounds(values, 3)} s")
    RESULT.write_text(json.dumps({"about": about} | record, indent=1) + "\n", encoding="utf-8")
    if wrong := missed(record):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
