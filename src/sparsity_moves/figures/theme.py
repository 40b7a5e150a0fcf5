"""How every figure looks: one colour, shape and name for each arm, and text that follows the page.

Text, axes and rules are drawn in `currentColor`, so a chart follows dark mode and print with no redraw.
The arms' colours keep a contrast of 3:1 against the white and the dark page alike; arms that are close in
colour (a router and its frozen twin) differ in lightness, and every arm has its own colour and shape, so
that a print in grey still tells neighbours apart.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt


@dataclass(frozen=True)
class ArmStyle:
    """How one arm is named and drawn."""

    label: str
    colour: str
    shape: str  # a Vega symbol, or the path of one


HEXAGON = "M0,-1L0.87,-0.5L0.87,0.5L0,1L-0.87,0.5L-0.87,-0.5Z"
FIR = "M0,-1L1,0.4L0.3,0.4L0.3,1L-0.3,1L-0.3,0.4L-1,0.4Z"

ARMS: dict[str, ArmStyle] = {
    "dense": ArmStyle("Dense", "#5f636a", "circle"),
    "narrow": ArmStyle("Narrow", "#9c6e00", "square"),
    "glu": ArmStyle("GLU", "#0b7643", "triangle-up"),
    "glu_bilinear": ArmStyle("Bilinear GLU", "#46a16b", "triangle-down"),
    "moe": ArmStyle("MoE", "#1762b6", "diamond"),
    "moe_frozen": ArmStyle("MoE, frozen router", "#468de5", "cross"),
    "moe_switch": ArmStyle("Switch MoE", "#b13c11", "triangle-right"),
    "moe_switch_frozen": ArmStyle("Switch MoE, frozen router", "#de6640", "triangle-left"),
    "moe_hash": ArmStyle("Hash MoE", "#5c6c14", HEXAGON),
    "moe_hash_context": ArmStyle("Context-hash MoE", "#7f8f3a", "cross"),
    "moe_unbalanced": ArmStyle("MoE, no balance loss", "#6359b5", "triangle-up"),
    "moe_switch_unbalanced": ArmStyle("Switch MoE, no balance loss", "#8781e0", "triangle-down"),
    "moe_top2": ArmStyle("MoE top-2", "#00747a", "square"),
    "moe_top2_frozen": ArmStyle("MoE top-2, frozen router", "#279ea4", "cross"),
    "moe_active": ArmStyle("MoE, active-matched", "#006c98", "triangle-down"),
    "moe_glu": ArmStyle("MoE-GLU", "#a8347f", "triangle-left"),
    "moe_glu_frozen": ArmStyle("MoE-GLU, frozen router", "#d45ea7", "triangle-right"),
    "moe_glu_active": ArmStyle("MoE-GLU, active-matched", "#be4993", "arrow"),
    "tree": ArmStyle("Tree", "#8548ac", FIR),
    "tree_balanced": ArmStyle("Tree, balanced", "#ad70d7", "arrow"),
    "tree_active": ArmStyle("Tree, expert-wide path", "#985bc1", "triangle-up"),
}

_SUFFIXES = {
    "norm": "with norm",
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "linear": "no nonlinearity",
    "fp32": "products in fp32",
    "held_out": "carries held out",
    "attention_frozen": "attention never trained",
    "ffn_frozen": "FFN never trained",
    r"e(\d+)": "{} experts",
    r"d(\d+)": "d = {}",
    r"top(\d+)": "top-{}",
    r"depth(\d+)": "{} layers",
    r"height(\d+)": "height {}",
    r"b([\d.]+)": "balance weight {}",
    r"wd([\d.]+)": "weight decay {}",
    r"dropout([\d.]+)": "dropout {}",
    r"beta([\d.]+)": "β₂ = {}",
}
"""What a control's suffix says, as a pattern; see `studies.sweeps` for the controls."""


def arm_style(arm: str) -> ArmStyle:
    """The style of an arm, also of a control such as `moe_norm`, `moe_e8` or `dense_gelu`.

    Raises:
        KeyError: the arm is unknown.
    """
    if arm in ARMS:
        return ARMS[arm]
    for pattern, words in _SUFFIXES.items():
        if found := re.fullmatch(rf"(.+)_{pattern}", arm):
            style = arm_style(found[1])
            return ArmStyle(f"{style.label}, {words.format(*found.groups()[1:])}", style.colour, style.shape)
    raise KeyError(f"no arm is called {arm!r}")


def arm_label(arm: str) -> str:
    """The arm's name for a reader, `moe_frozen` → "MoE, frozen router"."""
    return arm_style(arm).label


def arm_colours(arms: Sequence[str]) -> alt.Scale:
    """The colour scale over the labels of these arms, in this order."""
    styles = [arm_style(arm) for arm in arms]
    return alt.Scale(domain=[s.label for s in styles], range=[s.colour for s in styles])


def arm_shapes(arms: Sequence[str]) -> alt.Scale:
    """The shape scale over the labels of these arms, in this order."""
    styles = [arm_style(arm) for arm in arms]
    return alt.Scale(domain=[s.label for s in styles], range=[s.shape for s in styles])


@alt.theme.register("sparsity_moves", enable=True)
def _theme() -> alt.theme.ThemeConfig:
    ink = "currentColor"
    text: Any = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 13}
    axis: Any = text | {"domainColor": ink, "tickColor": ink, "gridColor": ink, "gridOpacity": 0.15}
    heading: Any = {"color": ink, "subtitleColor": ink, "fontSize": 14, "anchor": "start"}
    return alt.theme.ThemeConfig(
        config={
            "aria": False,  # the picture as a whole has a name; its hundreds of marks need none
            "background": "transparent",
            "font": "system-ui, sans-serif",  # not "inherit": Vega measures the text itself
            "view": {"stroke": "transparent", "continuousWidth": 520, "continuousHeight": 300},
            "axis": axis,
            "legend": text | {"symbolStrokeWidth": 2, "symbolOpacity": 1, "labelLimit": 260},
            "header": text,
            "title": heading,
            "mark": {"tooltip": True, "aria": False},
            "line": {"strokeWidth": 2},
            "point": {"filled": True, "size": 60},
            "rule": {"color": ink},
            "text": {"color": ink, "fontSize": 12},
            "range": {"category": [style.colour for style in ARMS.values()]},
        }
    )
