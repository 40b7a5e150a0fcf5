"""The run that the lab shows before anything is started: `python -m sparsity_moves.widgets.lab.record`.

Recorded with the shipped trainer, whose bits are the same everywhere: the page would compute the very same run.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from sparsity_moves.widgets.lab.host import NO_ATTENTION, NO_FFN, Host
from sparsity_moves.widgets.lab.page_html import RECORDED
from sparsity_moves.widgets.lab.recipes import Setting, defaults, spec_of

INPUT = 497


def run(setting: Setting) -> dict[str, Any]:
    """Train the setting's model as the page does, and keep what the page shows (add-7 only)."""
    host = Host(spec_of(setting))
    spec = host.spec
    host.call("initialise", spec.seed)
    rows, loss = [row_of(host, 0, None)], None
    for step in range(spec.steps):
        loss = host.step(spec.rate(step))
        if (step + 1) % spec.evaluate_every == 0 or step + 1 == spec.steps:
            rows.append(row_of(host, step + 1, loss))
    return {"setting": setting, "rows": rows, "look": _look(host)}


def row_of(host: Host, step: int, loss: float | None) -> dict[str, Any]:
    """What the page keeps of one look at the model, as `Session.row` in the page."""
    accuracy, exact, test = host.evaluate()
    loads = host.read("loads", host.blocks, np.int32).tolist()
    return {
        "step": step,
        "loss": loss,
        "accuracy": accuracy,
        "exact": exact,
        "test": test,
        "noFfn": host.evaluate(NO_FFN)[0],
        "noAttention": host.evaluate(NO_ATTENTION)[0],
        "loads": loads,
        "spectrum": None,
    }


def _look(host: Host) -> dict[str, Any]:
    """What the model does with one input, as `Session.look` in the page."""
    task, spec = host.task, host.spec
    tokens = task.evaluation(0, 0).tokens[INPUT]
    answers = len(task.read_out)
    host.write("token_values", tokens.numpy().astype(np.int32))
    predictions: dict[str, Any] = {}
    for name, without in (("noAttention", NO_ATTENTION), ("noFfn", NO_FFN), ("full", 0)):
        host.call("look", 1, without)
        logits = host.read("logit_values", answers * task.classes).reshape(answers, -1)
        predictions[name] = logits.argmax(-1).tolist()
    pattern = host.read("pattern_values", answers * spec.heads * task.length)
    return {
        "tokens": tokens.tolist(),
        "step": spec.steps,
        "predictions": predictions | {"switched": None},
        "pattern": [round(float(x), 4) for x in pattern],
        "experts": host.read("experts_chosen", answers * spec.top_k, np.int32).tolist(),
    }


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(run(defaults()), separators=(",", ":")) + "\n")
    print(f"{RECORDED.name}: {RECORDED.stat().st_size} bytes")
