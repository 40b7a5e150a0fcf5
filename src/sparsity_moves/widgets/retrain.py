"""Sliders that retrain one add-7 model right there, in JupyterLab, and draw what became of it.

In the published page, which has no Python behind it, the same cell says how to come here.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import altair as alt
import ipywidgets as widgets
import polars as pl
import vl_convert

from sparsity_moves.errors import UserError
from sparsity_moves.figures import theme as theme  # registers the theme
from sparsity_moves.figures.book_renderer import DATA_DIR
from sparsity_moves.figures.prose import Text, say
from sparsity_moves.names import Profile
from sparsity_moves.studies import arm, seeds
from sparsity_moves.training import Run, Spec, train

ROUTING = {
    "learned (renormalised gate)": "moe",
    "frozen, random": "moe_frozen",
    "Switch gate": "moe_switch",
    "hash of the token": "moe_hash",
}
DRAWN = {"accuracy": "intact", "no_ffn_accuracy": "without FFN", "no_attention_accuracy": "without attention"}
WAIT = "Static page: run `make lab`, open this chapter, and sliders here retrain the model as you move them."


class _Overtaken(Exception):
    """A later setting has been chosen while this one was training."""


class Retrain:
    """The panel. Every change of a slider trains the model anew; a change during training starts over."""

    def __init__(
        self, profile: Profile = "laptop", *, experts: int = 4, width: int = 256, top_k: int = 1
    ) -> None:
        self.profile: Profile = profile
        self.run: Run | None = None
        """The last model trained to its end."""
        self._turn = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        counts = sorted({1, 2, 4, 8, 16, experts})
        spans = sorted({32, 64, 128, 256, width})

        def slider(label: str, options: list[int], value: int) -> Any:
            return widgets.SelectionSlider(
                description=label, options=options, value=value, continuous_update=False
            )

        self.experts = slider("Experts", counts, experts)
        self.width = slider("Width", spans, width)
        self.top_k = slider("Top-k", [1, 2, 4], top_k)
        self.seed = slider("Seed", list(seeds(8)), seeds(1)[0])
        self.routing = widgets.Dropdown(description="Routing", options=ROUTING, value="moe")
        self.bar = widgets.FloatProgress(min=0, max=1, layout=widgets.Layout(width="60%"))
        self.said = widgets.HTML()
        self.picture = widgets.HTML()
        self.controls = (self.experts, self.width, self.top_k, self.seed, self.routing)
        for control in self.controls:
            control.observe(lambda _change: self.start(), names="value")
        self.panel = widgets.VBox([*self.controls, self.bar, self.said, self.picture])

    def spec(self) -> Spec:
        """The run that the controls ask for. Raises `UserError` where they do not fit together."""
        experts = self.experts.value
        name = "dense" if experts == 1 else self.routing.value
        return arm(
            name,
            self.profile,
            "add7",
            self.seed.value,
            experts=experts,
            width=self.width.value,
            top_k=1 if experts == 1 else self.top_k.value,
        )

    def start(self) -> None:
        """Train what the controls ask for, in the background; whatever was training gives way."""
        with self._lock:
            self._turn += 1
            turn = self._turn
        try:
            spec = self.spec()
        except UserError as error:
            self.said.value = str(error)
            return
        self._thread = threading.Thread(target=self._train, args=(spec, turn), daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> None:
        """Until the last training asked for has ended."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _train(self, spec: Spec, turn: int) -> None:
        def heard(step: int) -> None:
            if turn != self._turn:
                raise _Overtaken
            self.bar.value = step / spec.steps
            self.said.value = f"Step {step} of {spec.steps}"

        try:
            heard(0)
            (run,) = train([spec], progress=heard)
            heard(spec.steps)
        except _Overtaken:
            return
        except Exception as error:  # a thread's error would else be seen nowhere
            self.said.value = f"Training stopped: {error}"
            return
        self.run = run
        curve = pl.DataFrame(run.curve)
        last = curve.row(-1, named=True)
        self.said.value = ", ".join(f"{words} {last[name]:.1%}" for name, words in DRAWN.items())
        self.picture.value = vl_convert.vegalite_to_svg(learning_curve(curve).to_json())

    def _repr_mimebundle_(self, **more: Any) -> Any:
        self.start()
        return self.panel._repr_mimebundle_(**more)


def learning_curve(curve: pl.DataFrame) -> alt.Chart:
    """Accuracy, intact and without each component, against the step."""
    long = curve.unpivot(list(DRAWN), index="step", variable_name="shown").with_columns(
        pl.col("shown").replace_strict(DRAWN), (pl.col("value") * 100).alias("percent")
    )
    chart: alt.Chart = (
        alt.Chart(long)
        .mark_line(strokeWidth=3)
        .encode(
            alt.X("step:Q", title="Training step"),
            alt.Y("percent:Q", title="Accuracy (%)", scale=alt.Scale(domain=[0, 100])),
            alt.Color("shown:N", sort=list(DRAWN.values()), title=None, legend=alt.Legend(orient="top")),
            alt.StrokeDash("shown:N", sort=list(DRAWN.values())),
        )
        .properties(width=460, height=220)
    )
    return chart


def retrain(
    profile: Profile = "laptop", *, experts: int = 4, width: int | None = None, top_k: int = 1
) -> Retrain | Text:
    """The panel where there is a kernel to train with; in the published page, one line that says how to get it."""
    if DATA_DIR in os.environ:
        return say(WAIT)
    own = arm("dense", profile, "add7", 42).width if width is None else width
    return Retrain(profile, experts=experts, width=own, top_k=top_k)
