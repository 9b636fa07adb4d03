"""The two figures of robustness: one sense of it against the other, and accuracy as either disturbance grows."""

import altair as alt
import pandas as pd

from benchmarks.engine.table import RUN, Table, groups
from benchmarks.experiments.experiment import Figure
from benchmarks.experiments.robustness_choice import (
    QUOTED_RADIUS,
    QUOTED_SCALE,
    RADII,
    SENSES,
    chosen,
    quoted,
    strengths,
    within,
)
from benchmarks.problems.classification import NOISE_SCALES
from benchmarks.report import figures

# A figure follows a technique over the strengths that cost at most this much of validation accuracy.
SHOWN = 0.02


def draw(runs: Table, grids: dict[str, list[float]]) -> list[Figure]:
    """Draws both; `grids` are those of `robustness_choice.strengths`."""
    style = figures.style_of(list(runs["technique"].unique()))
    by_problem = {problem: own for (problem,), own in groups(runs, ["problem"]).items()}
    # Of a problem on which every strength diverged nothing is chosen: its charts are empty.
    selected = {
        problem: pd.concat([own.head(0), *chosen(own, grids).values()])
        for problem, own in by_problem.items()
    }
    return [
        Figure(
            "agreement",
            "Where the two senses of robustness agree, and where they part",
            "A line follows a technique from its weakest strength on, while it costs at most "
            f"{100 * SHOWN:g} points of validation accuracy, a dot the mean over the seeds; a diamond is the chosen "
            "strength, its cross the least and the greatest seed. The dashed lines meet at `none`. Up and right of it "
            "both senses agree; up and left, a technique buys robustness to the inputs with that to the parameters.",
            alt.hconcat(
                *(
                    _agreement(problem, strengths(own, grids), own, selected[problem], style[0])
                    for problem, own in by_problem.items()
                )
            ),
        ),
        Figure(
            "curves",
            "Accuracy against the radius of the attack, and against the scale of the noise",
            "Mean over the seeds, at the chosen strengths.",
            alt.vconcat(*(_curves(problem, selected[problem], style) for problem in by_problem)),
        ),
    ]


def _means(runs, by):
    rows = (
        quoted(runs)
        .groupby(by, sort=False)
        .agg(
            strength=("setting", "first"),
            accuracy=("test_accuracy", "mean"),
            **{sense: (sense, "mean") for sense in SENSES},
            **{f"{sense}_low": (sense, "min") for sense in SENSES},
            **{f"{sense}_high": (sense, "max") for sense in SENSES},
        )
    )
    rows["accuracy"] *= 100
    return rows.reset_index().rename(columns={"technique": "label"})


_MEANS = ["label", "strength", "accuracy", *SENSES]


def _agreement(problem, found, own, selected, color):
    tolerated = within(found, SHOWN)
    # The order of the strengths: a line goes from the weakest on.
    order = tolerated.assign(order=tolerated.groupby("technique").cumcount())[[*RUN, "order"]]
    order = order.rename(columns={"technique": "label"})
    paths = _means(own, RUN).merge(order, on=["problem", "label", "settings"])
    paths = paths.sort_values("order", kind="stable")[[*_MEANS, "order"]]
    marks = _means(selected, ["technique"])
    axis = alt.Axis(tickCount=6)
    x = alt.X("parameters:Q", title=f"accuracy % at parameter noise {QUOTED_SCALE:g}", axis=axis)
    y = alt.Y("inputs:Q", title=f"accuracy % under PGD of radius {QUOTED_RADIUS:g}")
    tooltip = ["label:N", "strength:Q", "parameters:Q", "inputs:Q", "accuracy:Q"]
    path = (
        alt.Chart(figures.data(paths))
        .mark_line(point=alt.OverlayMarkDef(size=18), strokeWidth=1, opacity=0.6)
        .encode(x=x.scale(zero=False), y=y.scale(zero=False), color=color, order="order:Q")
    )
    base = alt.Chart(figures.data(marks)).encode(color=color, tooltip=tooltip)
    layers = [
        path,
        base.mark_rule(opacity=0.5).encode(x="parameters_low:Q", x2="parameters_high:Q", y=y),
        base.mark_rule(opacity=0.5).encode(y="inputs_low:Q", y2="inputs_high:Q", x=x),
        base.mark_point(shape="diamond", size=150, filled=True, opacity=1).encode(x=x, y=y),
        base.mark_text(align="left", dx=9, dy=-9, fontSize=11).encode(x=x, y=y, text="label:N"),
    ]
    if (marks["label"] == "none").any():
        none = alt.Chart(figures.data(marks.loc[marks["label"] == "none", _MEANS]))
        cross = {"color": "#777", "strokeDash": [4, 3]}
        layers = [none.mark_rule(**cross).encode(x=x), none.mark_rule(**cross).encode(y=y), *layers]
    return alt.layer(*layers).properties(width=470, height=370, title=problem)


def _curves(problem, selected, style):
    panels = (
        ("pgd_accuracy", RADII, "radius of PGD, maximum norm"),
        ("noise_accuracy", NOISE_SCALES, "scale of the parameter noise"),
    )
    return alt.hconcat(
        *(_curve(selected, name, xs, f"{problem}: {title}", style) for name, xs, title in panels)
    )


def _curve(selected, name, xs, title, style):
    color, dash = style
    points = selected[["technique", name]]
    points = points.assign(x=[list(xs)] * len(points)).explode([name, "x"])
    means = points.astype({name: float, "x": float}).groupby(["technique", "x"], sort=False)
    rows = means[name].mean().rename("y").reset_index().rename(columns={"technique": "label"})
    return (
        alt.Chart(figures.data(rows))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("x:Q", title=title),
            y=alt.Y("y:Q", title="test accuracy").scale(zero=False),
            color=color,
            strokeDash=dash,
            tooltip=["label:N", "x:Q", "y:Q"],
        )
        .properties(width=figures.WIDTH, height=figures.HEIGHT)
    )
