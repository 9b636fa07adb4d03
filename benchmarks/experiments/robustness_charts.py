"""The two figures of robustness: one sense of it against the other, and accuracy as either disturbance grows."""

import statistics

import altair as alt

from benchmarks.engine.records import Record
from benchmarks.experiments.experiment import Figure
from benchmarks.experiments.robustness_techniques import (
    QUOTED_RADIUS,
    QUOTED_SCALE,
    RADII,
    by_technique,
    chosen,
    quoted,
    validated,
)
from benchmarks.problems.classification import NOISE_SCALES
from benchmarks.report import figures

# A figure follows a technique over the strengths that cost at most this much of validation accuracy.
SHOWN = 0.02


def draw(runs: list[Record]) -> list[Figure]:
    """Draws both."""
    names = list(dict.fromkeys(r.technique for r in runs))
    problems = list(dict.fromkeys(r.problem for r in runs))
    style = figures.named_style(names)
    return [
        Figure(
            "agreement",
            "Where the two senses of robustness agree, and where they part",
            "A line follows a technique from its weakest strength on, while it costs at most "
            f"{100 * SHOWN:g} points of validation accuracy, a dot the mean over the seeds; a diamond is the chosen "
            "strength, its cross the least and the greatest seed. The dashed lines meet at `none`. Up and right of it "
            "both senses agree; up and left, a technique buys robustness to the inputs with that to the parameters.",
            alt.hconcat(*(_agreement(runs, problem, style[0]) for problem in problems)),
        ),
        Figure(
            "curves",
            "Accuracy against the radius of the attack, and against the scale of the noise",
            "Mean over the seeds, at the chosen strengths.",
            alt.vconcat(*(_curves(runs, problem, style) for problem in problems)),
        ),
    ]


def _agreement(runs, problem, colour):
    found = {name: group for (on, name), group in chosen(runs).items() if on == problem}
    paths = []
    for (on, name), candidates in by_technique(runs).items():
        if on == problem:
            best = max(map(validated, candidates))
            shown = [group for group in candidates if validated(group) >= best - SHOWN]
            paths += [_mean_row(name, group) | {"order": i} for i, group in enumerate(shown)]
    marks = [_mean_row(name, group) | _ends(group) for name, group in found.items()]
    axis = alt.Axis(tickCount=6)
    x = alt.X("parameters:Q", title=f"accuracy % at parameter noise {QUOTED_SCALE:g}", axis=axis)
    y = alt.Y("inputs:Q", title=f"accuracy % under PGD of radius {QUOTED_RADIUS:g}")
    tooltip = ["label:N", "strength:Q", "parameters:Q", "inputs:Q", "accuracy:Q"]
    path = (
        alt.Chart(alt.Data(values=paths))
        .mark_line(point=alt.OverlayMarkDef(size=18), strokeWidth=1, opacity=0.6)
        .encode(x=x.scale(zero=False), y=y.scale(zero=False), color=colour, order="order:Q")
    )
    base = alt.Chart(alt.Data(values=marks)).encode(color=colour, tooltip=tooltip)
    layers = [
        path,
        base.mark_rule(opacity=0.5).encode(x="parameters_low:Q", x2="parameters_high:Q", y=y),
        base.mark_rule(opacity=0.5).encode(y="inputs_low:Q", y2="inputs_high:Q", x=x),
        base.mark_point(shape="diamond", size=150, filled=True, opacity=1).encode(x=x, y=y),
        base.mark_text(align="left", dx=9, dy=-9, fontSize=11).encode(x=x, y=y, text="label:N"),
    ]
    if "none" in found:
        none = alt.Chart(alt.Data(values=[_mean_row("none", found["none"])]))
        cross = {"color": "#777", "strokeDash": [4, 3]}
        layers = [none.mark_rule(**cross).encode(x=x), none.mark_rule(**cross).encode(y=y), *layers]
    return alt.layer(*layers).properties(width=470, height=370, title=problem)


def _mean_row(name, group):
    means = {sense: statistics.fmean(quoted(r)[sense] for r in group) for sense in quoted(group[0])}
    accuracy = 100 * statistics.fmean(r.final["test_accuracy"] for r in group)
    return {"label": name, "strength": group[0].learning_rate, "accuracy": accuracy} | means


def _ends(group):
    return {
        f"{sense}_{end}": pick(quoted(r)[sense] for r in group)
        for sense in quoted(group[0])
        for end, pick in (("low", min), ("high", max))
    }


def _curves(runs, problem, style):
    found = {name: group for (on, name), group in chosen(runs).items() if on == problem}
    return alt.hconcat(
        _curve(found, "pgd_accuracy", RADII, f"{problem}: radius of PGD, maximum norm", style),
        _curve(
            found, "noise_accuracy", NOISE_SCALES, f"{problem}: scale of the parameter noise", style
        ),
    )


def _curve(found, measure, xs, title, style):
    colour, dash = style
    rows = [
        {"label": name, "x": x, "y": statistics.fmean(r.final[measure][i] for r in group)}
        for name, group in found.items()
        for i, x in enumerate(xs)
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("x:Q", title=title),
            y=alt.Y("y:Q", title="test accuracy").scale(zero=False),
            color=colour,
            strokeDash=dash,
            tooltip=["label:N", "x:Q", "y:Q"],
        )
        .properties(width=figures.WIDTH, height=figures.HEIGHT)
    )
