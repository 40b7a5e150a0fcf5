"""The look of the figures: every arm can be told from every other, on paper and on either page."""

from itertools import combinations

import altair as alt
import polars as pl
import pytest

from sparsity_moves.figures.book_renderer import DATA_DIR, show
from sparsity_moves.figures.theme import ARMS, arm_colours, arm_label, arm_shapes, arm_style

WHITE, DARK = "#ffffff", "#121212"  # the page in light and in dark


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_stands_out_from_the_light_and_the_dark_page(arm: str) -> None:
    assert contrast(ARMS[arm].colour, WHITE) >= 3
    assert contrast(ARMS[arm].colour, DARK) >= 3


def test_no_two_arms_look_or_are_called_the_same() -> None:
    for one, other in combinations(ARMS.values(), 2):
        assert one.colour != other.colour
        assert one.label != other.label


@pytest.mark.parametrize("arm", [arm for arm in ARMS if f"{arm}_frozen" in ARMS])
def test_a_frozen_twin_differs_in_shape_and_in_grey(arm: str) -> None:
    one, twin = ARMS[arm], ARMS[f"{arm}_frozen"]
    assert one.shape != twin.shape
    assert contrast(one.colour, twin.colour) >= 1.5


@pytest.mark.parametrize(
    ("arm", "label"),
    [
        ("moe_e8", "MoE, 8 experts"),
        ("dense_d256", "Dense, d = 256"),
        ("moe_glu_norm", "MoE-GLU, with norm"),
        ("glu_relu", "GLU, ReLU"),
        ("dense_attention_frozen", "Dense, attention never trained"),
        ("dense_dropout0.1", "Dense, dropout 0.1"),
    ],
)
def test_a_control_is_drawn_like_its_arm_and_says_what_differs(arm: str, label: str) -> None:
    assert arm_label(arm) == label
    assert arm_style(arm).colour == next(
        ARMS[base].colour for base in ("moe_glu", "moe", "dense", "glu") if arm.startswith(base)
    )


@pytest.mark.parametrize("arm", ["nonsense", "moe_nonsense", "_norm"])
def test_an_unknown_arm_is_refused(arm: str) -> None:
    with pytest.raises(KeyError, match="no arm is called"):
        arm_style(arm)


def test_an_arm_keeps_its_colour_and_shape_whichever_others_are_drawn() -> None:
    for scale, part in ((arm_colours, "colour"), (arm_shapes, "shape")):
        drawn = scale(["glu", "moe"]).to_dict()
        assert drawn == {
            "domain": ["GLU", "MoE"],
            "range": [getattr(ARMS["glu"], part), getattr(ARMS["moe"], part)],
        }


class TestShow:
    rows = pl.DataFrame({"x": [1, 2]})

    def figure(self, **changes: str) -> object:
        chart = alt.Chart(self.rows).mark_point().encode(x="x:Q")
        words = {"name": "two-points", "caption": "Two points.", "alt": "Two points"} | changes
        return show(chart, data=self.rows, **words)

    def test_in_the_book_it_writes_its_rows_and_asks_for_a_numbered_figure(
        self, tmp_path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(DATA_DIR, str(tmp_path))
        output = self.figure()._repr_mimebundle_()
        assert pl.read_csv(tmp_path / "two-points.csv").equals(self.rows)
        assert "{chart} two-points" in output["text/markdown"]
        with pytest.raises(ValueError, match="two figures are called two-points"):
            self.figure()

    @pytest.mark.parametrize("wrong", [{"name": "Two points"}, {"caption": " "}, {"alt": ""}])
    def test_it_refuses_a_figure_that_cannot_be_found_or_read(self, wrong: dict[str, str]) -> None:
        with pytest.raises(ValueError, match=r"name|caption"):
            self.figure(**wrong)
