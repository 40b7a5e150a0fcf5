"""How soon the explorer's picture follows the brush, told from the committed benchmark."""

from sparsity_moves.figures.benchmarks import committed, rounds
from sparsity_moves.figures.claim_words import plain


def speed() -> str:
    """Milliseconds from a move of the brush to its picture, beside those of a Vega-Lite chart of the same runs."""
    found = committed("explorer_speed.json").get("explorer_speed")
    if not found:
        return "How fast it is has not been measured yet: `python benchmarks/explorer_speed.py` does it."
    about = found["about"]
    explorer, points, linked = (
        f"{rounds(found['pages'][name]['picture'], 0)} ms" for name in ("explorer", "points", "linked")
    )
    where = f"{about['cores']} cores, in Chromium {about['chromium'].split('.')[0]}"
    return (
        f"With all {plain(about['runs'], 0)} runs of add-7 shown, a move of the brush is on the screen after "
        f"{explorer}; a Vega-Lite chart takes {points} for the points alone, {linked} with a mean curve for "
        "each FFN, where the explorer also draws their ranges. Medians of "
        f"{about['rounds']} rounds and their range, on {where} (`python benchmarks/explorer_speed.py`)."
    )
