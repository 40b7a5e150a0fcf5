"""How large every FFN is: parameters in total, parameters a token meets, and what a token costs. All exact."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from sparsity_moves.figures.book_renderer import Figure, show
from sparsity_moves.figures.theme import ARMS as DRAWN
from sparsity_moves.figures.theme import arm_colours, arm_label
from sparsity_moves.figures.words import TASK_NAMES, sentence
from sparsity_moves.model import count
from sparsity_moves.names import Profile
from sparsity_moves.studies import ARMS, arm


def sizes(profile: Profile, *, experts: int = 4, arms: Sequence[str] = ()) -> pl.DataFrame:
    """One row a task and arm, at the profile's widths: shape and counts of its FFN block and whole model."""
    rows = []
    for task in TASK_NAMES:
        for name in arms or [name for name in ARMS if name in DRAWN]:
            spec = arm(name, profile, task, 42, experts=experts)  # type: ignore[arg-type]
            found = count(spec.architecture)
            rows.append(
                {
                    "task": task,
                    "arm": name,
                    "d_model": spec.d_model,
                    "experts": spec.experts,
                    "open": spec.top_k if spec.experts > 1 else 1,
                    "expert_width": spec.architecture.ffn.expert_width,
                    "units": spec.width,
                    "open_units": spec.architecture.ffn.open_blocks * spec.architecture.ffn.expert_width,
                    **vars(found),
                }
            )
    return pl.DataFrame(rows)


def size_table(rows: pl.DataFrame) -> pl.DataFrame:
    """The same for a reader, headed in words; rows of one task. Arms of one size share a row."""
    shown = rows.select(
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String).alias("FFN"),
        pl.when(pl.col("arm").str.starts_with("tree"))
        .then(pl.format("{} of {} units", "open_units", "units"))
        .otherwise(pl.format("{} of {} × {}", "open", "experts", "expert_width"))
        .alias("open experts × width"),
        pl.col("ffn_parameters").alias("parameters"),
        pl.col("active_ffn_parameters").alias("active a token"),
        pl.col("router_parameters").alias("of them router"),
        pl.col("ffn_flops_per_token").alias("FLOPs a token"),
        pl.col("parameters").alias("whole model"),
    )
    alike = [name for name in shown.columns if name != "FFN"]
    return shown.group_by(alike, maintain_order=True).agg(pl.col("FFN").str.join("; ")).select(shown.columns)


def size_map(rows: pl.DataFrame) -> Figure:
    """Total and active parameters of every FFN block, a line from one to the other."""
    data = rows.select(
        pl.col("task").replace_strict(TASK_NAMES),
        pl.col("arm").map_elements(arm_label, return_dtype=pl.String),
        pl.col("ffn_parameters").alias("total"),
        pl.col("active_ffn_parameters").alias("active"),
        pl.col("ffn_flops_per_token").alias("flops"),
    )
    arms = rows["arm"].unique(maintain_order=True).to_list()
    names = [*TASK_NAMES.values()]
    task = alt.param(
        name="size_task",
        value=names[0],
        bind=alt.binding_select(
            options=names[:2], labels=[sentence(names[0]), f"{sentence(names[1])}, {names[2]}"], name="Task "
        ),
    )
    colour = alt.Color("arm:N", scale=arm_colours(arms), legend=None)
    base = (
        alt.Chart(data)
        .transform_filter("datum.task == size_task")
        .encode(alt.Y("arm:N", sort=None, title=None, axis=alt.Axis(grid=True)), colour)
    )
    scale = alt.Scale(type="log", domain=[3_000, 2_200_000])
    tips = [
        alt.Tooltip("arm:N", title="FFN"),
        alt.Tooltip("total:Q", title="parameters", format=","),
        alt.Tooltip("active:Q", title="active a token", format=","),
        alt.Tooltip("flops:Q", title="FLOPs a token", format=","),
    ]
    chart = alt.layer(
        base.mark_rule(strokeWidth=3, opacity=0.5).encode(alt.X("active:Q"), alt.X2("total:Q")),
        base.mark_point(size=70, filled=True).encode(
            alt.X("active:Q", scale=scale, title="Parameters of the FFN block (logarithmic)"), tooltip=tips
        ),
        base.mark_point(size=130, filled=False, strokeWidth=2).encode(alt.X("total:Q"), tooltip=tips),
    ).properties(width=460, height=alt.Step(22))
    add7 = rows.filter(task="add7")
    dense, moe = (add7.filter(arm=name).row(0, named=True) for name in ("dense", "moe"))
    return show(
        chart.add_params(task),
        name="sizes",
        caption=(
            "Size of every FFN block at the paper's widths: rings, all its parameters; dots, those one token "
            "meets. Counted from the shapes of the models that the book trains; no run, no interval. The last two "
            "tasks share their block."
        ),
        alt=(
            "Total and active parameters of each feed-forward layer. On add-7 the dense layer has "
            f"{dense['ffn_parameters']:,}, all active; the mixture of experts has {moe['ffn_parameters']:,}, "
            f"{moe['active_ffn_parameters']:,} of them active."
        ),
        data=rows,
    )
