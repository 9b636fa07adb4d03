"""The charts that several experiments share: curves, paths at equal loss, effects with intervals, scatter plots."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from benchmarks.engine import table
from benchmarks.engine.table import Table
from benchmarks.report import figures, run_statistics
from benchmarks.report.figures import HEIGHT, WIDTH, Chart

# Beyond this a diverged run only flattens the others' curves.
CEILING = 1e4


def spread(rows: Table, by: Sequence[str], name: str) -> Table:
    """Returns by group the mean, the lowest and the highest of a measure over the seeds, as a table."""
    grouped = rows.groupby(list(by), sort=False)[name]
    return grouped.agg(mean="mean", low="min", high="max").reset_index()


def curves(
    runs: Table,
    measures: Sequence[tuple[str, str, str]],
    *,
    x: str = "step",
    x_title: str = "step",
    ceilings: Mapping[str, float] | None = None,
) -> Chart:
    """Draws measures of the curve side by side: mean over seeds, band from the lowest to the highest.

    Args:
      runs: the table.
      measures: of each panel the name of the measure, its title, and `log` or `linear`.
      x: the measure along the abscissa, of which the mean over the seeds is taken.
      x_title: its title.
      ceilings: by measure, the value above which points (the first steps) are left out.
    """
    chosen = figures.selection()
    panels = [
        band(
            runs,
            _curve_rows(runs, name, scale, x, (ceilings or {}).get(name, CEILING)),
            x_title,
            title,
            scale,
            chosen=chosen,
        )
        for name, title, scale in measures
    ]
    return _row(panels, chosen)


def _row(panels, chosen):
    return alt.hconcat(panels[0].add_params(chosen), *panels[1:])


def _curve_rows(runs, name, scale, x, ceiling):
    source = "test_accuracy" if name == "test_error" else name
    points = table.curves(runs, [x, source])
    points["y"] = 1 - points[source] if name == "test_error" else points[source]
    # A point of which one seed cannot be shown is left out: the mean of the others would be of luck.
    points["shown"] = np.isfinite(points["y"]) & (points["y"].abs() < ceiling)
    if scale == "log":
        points["shown"] &= points["y"] > 0
    by = [*table.RUN, "label", "point"]
    rows = points.groupby(by, sort=False).agg(
        x=(x, "mean"),
        mean=("y", "mean"),
        low=("y", "min"),
        high=("y", "max"),
        shown=("shown", "all"),
    )
    return rows[rows["shown"]].reset_index()[["label", "x", "mean", "low", "high"]]


def band(
    runs: Table,
    rows: Table,
    x_title: str,
    y_title: str,
    y_scale: str = "linear",
    x_scale: str = "linear",
    *,
    chosen: alt.Parameter | None = None,
) -> Chart:
    """Draws lines with bands from rows of `label`, `x`, `mean`, `low` and `high`.

    `chosen` is the selection of the figure that this is a panel of; None makes one of its own.
    """
    # Of all runs, not of those with rows: a technique keeps its color in every panel.
    hue, dash = figures.line_style(runs)
    own = chosen is None
    chosen = figures.selection() if own else chosen
    y_options = {
        "title": y_title,
        "scale": figures.scale(y_scale),
        "axis": figures.axis(y_scale),
    }
    base = alt.Chart(figures.data(rows)).encode(
        x=alt.X("x:Q", title=x_title, scale=figures.scale(x_scale), axis=figures.axis(x_scale)),
    )
    area = base.mark_area(opacity=0.12).encode(
        y=alt.Y("low:Q", **y_options),
        y2="high:Q",
        color=hue,
        opacity=figures.dimmed(chosen, 0.12, 0.0),
    )
    line = base.mark_line(strokeWidth=1.8, clip=True).encode(
        y=alt.Y("mean:Q", **y_options),
        color=hue,
        strokeDash=dash,
        opacity=figures.dimmed(chosen, 1.0, 0.08),
        tooltip=[
            alt.Tooltip("label:N", title="technique"),
            alt.Tooltip("x:Q", title=x_title, format=".4~g"),
            alt.Tooltip("mean:Q", title=y_title, format=".4~g"),
            alt.Tooltip("low:Q", title="lowest seed", format=".4~g"),
            alt.Tooltip("high:Q", title="highest seed", format=".4~g"),
        ],
    )
    chart = (area + line).properties(width=WIDTH, height=HEIGHT)
    return chart.add_params(chosen) if own else chart


def relative_paths(
    runs: Table,
    panels: Sequence[tuple[str, str]],
    *,
    along: str,
    along_title: str,
    levels: Sequence[float],
) -> Chart:
    """Draws measures, as ratios to the first technique's, where another measure first falls to each level.

    Args:
      runs: the table; the first technique and setting is the reference.
      panels: of each the measure and its title.
      along: the measure that falls along the path, such as the training loss.
      along_title: its title.
      levels: its values, descending.
    """
    chosen = figures.selection()
    charts = []
    for name, title in panels:
        rows = _relative_rows(runs, name, along, levels)
        charts.append(band(runs, rows, along_title, title, "log", "log", chosen=chosen))
    for chart in charts:
        for layer in chart.layer:
            layer.encoding.x.scale = alt.Scale(type="log", reverse=True, nice=False)
            layer.encoding.x.axis = alt.Axis(format=".2~g", tickCount=6)
            layer.encoding.y.axis = alt.Axis(format=".2~g", tickCount=6)
    return _row(charts, chosen)


def _relative_rows(runs, name, along, levels):
    columns = [*table.RUN, "label", "seed", "x", "y"]
    at_levels: table.Table = pd.DataFrame(
        [
            [*run[:-1], level, run_statistics.value_at(run[-1][along], run[-1][name], level)]
            for run in runs[[*columns[:-2], "curve"]].itertuples(index=False, name=None)
            for level in levels
        ],
        columns=columns,
    )
    if at_levels.empty:
        return at_levels
    # The reference is paired by seed: the same start and the same batches.
    first = (at_levels[table.RUN] == at_levels[table.RUN].iloc[0]).all(axis=1)
    paired = at_levels.merge(at_levels[first][["seed", "x", "y"]], on=["seed", "x"])
    ratio = paired["y_x"] / paired["y_y"]
    shown = np.isfinite(ratio) & (ratio > 0)
    paired = paired.assign(ratio=ratio, log=np.log(ratio.where(shown)), shown=shown)
    grouped = paired.groupby([*table.RUN, "label", "x"], sort=False)
    rows = grouped.agg(
        mean=("log", "mean"), low=("ratio", "min"), high=("ratio", "max"), shown=("shown", "all")
    )
    # The mean of ratios is geometric: a half and a double are no change.
    rows["mean"] = np.exp(rows["mean"])
    return rows[rows["shown"]].reset_index()[["label", "x", "low", "high", "mean"]]


def effects(
    runs: Table,
    panels: Sequence[tuple[str, Mapping[str, run_statistics.Interval]]],
    none: float,
) -> Chart:
    """Draws an estimate with its interval for each technique and setting, one panel a measure.

    Args:
      runs: the table.
      panels: of each a title, and the interval by label.
      none: where no effect lies.
    """
    domain = figures.labels(runs)
    charts = []
    for index, (title, intervals) in enumerate(panels):
        rows = [
            {"label": label, "estimate": i.estimate, "low": i.low, "high": i.high}
            for label, i in intervals.items()
            if all(math.isfinite(x) for x in i)
        ]
        y = alt.Y(
            "label:N",
            sort=domain,
            title=None,
            scale=alt.Scale(domain=domain),
            axis=alt.Axis(labels=index == 0, ticks=False, domain=False, labelLimit=300),
        )
        base = alt.Chart(figures.data(rows)).encode(
            y=y,
            color=figures.color(runs, symbolType="circle").copy(deep=False),
            tooltip=[
                alt.Tooltip("label:N", title="technique"),
                *(alt.Tooltip(f"{k}:Q", format="+.3~f") for k in ("estimate", "low", "high")),
            ],
        )
        interval = base.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q", title=title), x2="high:Q")
        dot = base.mark_point(filled=True, size=110, opacity=1).encode(x="estimate:Q")
        zero = (
            alt.Chart(figures.data([{"none": none}]))
            .mark_rule(color="#777", strokeDash=[4, 3])
            .encode(x="none:Q")
        )
        layers = (zero + interval + dot).properties(width=WIDTH - 60, height=24 * len(domain))
        charts.append(layers)
    # The labels on the left name the techniques: a legend would only repeat them.
    for chart in charts:
        for layer in chart.layer[1:]:
            layer.encoding.color.legend = None
    return alt.hconcat(*charts)


def scatter(
    runs: Table, x: str, y: str, x_title: str, y_title: str, x_scale: str = "linear"
) -> Chart:
    """Draws a dot a seed and a large mark at the mean of the seeds, of two final measures."""
    hue, chosen = figures.color(runs, symbolType="circle"), figures.selection()
    dots = runs[~runs["diverged"]].assign(x=runs[x], y=runs[y])[[*table.RUN, "label", "x", "y"]]
    to, back = (np.log, np.exp) if x_scale == "log" else (np.asarray, np.asarray)
    means = (
        dots.assign(x=to(dots["x"]))
        .groupby([*table.RUN, "label"], sort=False)[["x", "y"]]
        .mean()
        .reset_index()
    )
    means["x"] = back(means["x"])

    def layer(rows: Table, **mark: Any):
        return (
            alt.Chart(figures.data(rows[["label", "x", "y"]]))
            .mark_point(filled=True, **mark)
            .encode(
                x=alt.X(
                    "x:Q", title=x_title, scale=figures.scale(x_scale), axis=figures.axis(x_scale)
                ),
                y=alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=False)),
                color=hue,
                opacity=figures.dimmed(chosen, mark.get("opacity", 1.0), 0.05),
                tooltip=[
                    alt.Tooltip("label:N", title="technique"),
                    alt.Tooltip("x:Q", title=x_title, format=".3~g"),
                    alt.Tooltip("y:Q", title=y_title, format=".4~g"),
                ],
            )
        )

    small = layer(dots, size=28, opacity=0.45)
    large = layer(means, size=170, shape="diamond", stroke="white", strokeWidth=1)
    return (small + large).properties(width=2 * WIDTH, height=HEIGHT).add_params(chosen)
