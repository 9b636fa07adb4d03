"""The four figures of the flows: paths over level sets, errors against step sizes, drift over time."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import contourpy
import numpy as np

from benchmarks.engine.table import Table, curves, groups
from benchmarks.experiments.experiment import Figure
from benchmarks.report import figures
from benchmarks.report.figures import HEIGHT, WIDTH

LEVELS = (0.02, 0.2, 1.0, 4.0, 12.0, 30.0)
OVERVIEW = ((0.0, 3.2), (0.0, 3.8))
CLOSE_UP = ((0.27, 0.33), (1.92, 2.2))


def draw(runs: Table) -> list[Figure]:
    """Draws all four."""
    of = {problem: own for (problem,), own in groups(runs, ["problem"]).items()}
    return [
        Figure(
            "paths",
            "Two weights: where each path ends on the line of minima",
            "E = (0.6 − ab)²/2. Gray: level sets of E; black: its minima, with a cross at the one of least norm. Dots "
            "are single steps. At the large rate gradient descent ends nearer the cross than gradient flow does; the "
            "flows of order 1 and 2 end where it ends, to their order (right: the end, enlarged).",
            _paths(of["two weights"]),
        ),
        Figure(
            "one_step",
            "One step of gradient descent against the modified flows",
            "Distance after one step, against its size. The numbers are least-squares slopes; theory says n + 2 for "
            "order n.",
            _errors([of["one step, two weights"], of["one step, tanh network"]], "step size h"),
        ),
        Figure(
            "optimizers",
            "Momentum and Adam against their flows, with and without the first-order correction",
            "Distance after a fixed time, against the learning rate. Theory says slope 1 without the correction and 2 "
            "with it.",
            _errors([of[name] for name in ("heavy ball", "Nesterov", "Adam")], "learning rate h"),
        ),
        Figure(
            "drift",
            "Digits: how far gradient descent drifts from each flow",
            "Distance of the parameters of a small tanh network from each flow, after the same time from the same "
            f"start. The integrator's own error is below {_largest_own_error(of['digits']):.0e}.",
            _drift(of["digits"]),
        ),
    ]


def _paths(runs):
    # Gradient flow has no rate, or the rate zero.
    names = runs["technique"] + [f", h = {h:g}" if h else "" for h in runs["setting"]]
    labels = list(names)
    rows = curves(runs.assign(label=names), ["time", "a", "b"])
    rows = rows.rename(columns={"point": "index"})[["label", "index", "time", "a", "b"]]
    panels = [
        _plane(rows, labels, OVERVIEW, 1.35 * WIDTH, 1.6 * HEIGHT),
        _plane(rows, labels, CLOSE_UP, 1.35 * WIDTH, 1.6 * HEIGHT),
    ]
    return alt.hconcat(*panels)


def _plane(rows, labels, domain, width, height):
    (a_low, a_high), (b_low, b_high) = domain
    a = alt.X(
        "a:Q",
        title="a",
        scale=alt.Scale(domain=[a_low, a_high], nice=False),
        axis=alt.Axis(tickCount=6),
    )
    b = alt.Y("b:Q", title="b", scale=alt.Scale(domain=[b_low, b_high], nice=False))
    hue, dash = _style(labels, None)
    tooltip = ["label:N", alt.Tooltip("time:Q", format=".4~g"), "a:Q", "b:Q"]

    def lines(values, **mark):
        return (
            alt.Chart(figures.data(values))
            .mark_line(clip=True, **mark)
            .encode(x=a, y=b, order="index:Q", detail="line:N")
        )

    paths = (
        alt.Chart(figures.data(rows))
        .mark_line(clip=True, strokeWidth=2)
        .encode(x=a, y=b, order="index:Q", color=hue, strokeDash=dash, tooltip=tooltip)
    )
    # Gradient descent at the large rate, whose steps can be seen.
    steps = rows[rows["label"] == labels[1]]
    dots = (
        alt.Chart(figures.data(steps))
        .mark_circle(clip=True, size=34, opacity=1)
        .encode(x=a, y=b, color=hue, tooltip=tooltip)
    )
    least = alt.Chart(figures.data([{"a": 0.6**0.5, "b": 0.6**0.5}])).mark_point(
        shape="cross", angle=45, size=180, filled=True, color="black", opacity=1, clip=True
    )
    return alt.layer(
        lines(_level_sets(domain), color="#bbb", strokeWidth=0.8),
        lines(_minima(domain), color="black", strokeWidth=1.4),
        paths,
        dots,
        least.encode(x=a, y=b),
    ).properties(width=width, height=height)


def _level_sets(domain):
    (a_low, a_high), (b_low, b_high) = domain
    # Fine enough for a level set to look smooth in the close-up.
    a, b = np.linspace(a_low, a_high, 161), np.linspace(b_low, b_high, 161)
    loss = (0.6 - a[None] * b[:, None]) ** 2 / 2
    contours = contourpy.contour_generator(a, b, loss)
    pieces = [line for level in LEVELS for line in contours.lines(level)]
    return [
        {"line": i, "index": j, "a": float(x), "b": float(y)}
        for i, line in enumerate(pieces)
        for j, (x, y) in enumerate(np.asarray(line))
    ]


def _minima(domain):
    (a_low, a_high), _ = domain
    points = np.linspace(max(a_low, 0.1), a_high, 160)
    return [
        {"line": 0, "index": i, "a": float(a), "b": float(0.6 / a)} for i, a in enumerate(points)
    ]


def _errors(panels: Sequence[Table], x_title: str) -> Any:
    labels = list(panels[0]["technique"])
    return alt.hconcat(*(_error_panel(runs, labels, x_title) for runs in panels))


def _error_panel(runs, labels, x_title):
    points = curves(runs, ["step_size", "error"])
    rows = points.assign(label=points["technique"], h=points["step_size"])
    lowest = points.groupby("technique", sort=False)[["step_size", "error"]].min()
    ends = runs.set_index("technique")[["value"]].join(lowest).reset_index()
    ends = ends.rename(columns={"technique": "label", "step_size": "h"})
    ends["slope"] = [f"{value:.2f}" for value in ends["value"]]
    hue, dash = _style(labels, None)
    sizes = sorted(rows["h"].unique())
    x = alt.X(
        "h:Q",
        title=x_title,
        scale=alt.Scale(type="log", domain=[sizes[0] / 1.55, sizes[-1] * 1.1], nice=False),
        axis=alt.Axis(values=sizes, format="~g"),
    )
    y = alt.Y(
        "error:Q",
        title="distance from the flow",
        scale=alt.Scale(type="log"),
        axis=_decades(rows["error"]),
    )
    tooltip = ["label:N", "h:Q", alt.Tooltip("error:Q", format=".3e")]
    line = alt.Chart(figures.data(rows[["label", "h", "error"]])).encode(
        x=x, y=y, color=hue, tooltip=tooltip
    )
    text = (
        alt.Chart(figures.data(ends[["label", "h", "error", "slope"]]))
        .mark_text(align="right", dx=-8, fontSize=12, fontWeight="bold")
        .encode(x=x, y=y, text="slope:N", color=hue)
    )
    return alt.layer(
        line.mark_line(strokeWidth=2).encode(strokeDash=dash),
        line.mark_circle(size=40, opacity=1),
        text,
    ).properties(width=WIDTH, height=HEIGHT, title=runs["problem"].iloc[0])


def _drift(runs):
    hue, dash = _style(list(runs["technique"]), "distance to")
    rows = curves(runs.assign(label=runs["technique"]), ["time", "distance"])
    rows = rows[["label", "time", "distance"]]
    y = alt.Y(
        "distance:Q",
        title="distance of gradient descent",
        scale=alt.Scale(type="log"),
        axis=_decades(rows["distance"]),
    )
    x = alt.X("time:Q", title="time (learning rate × steps)")
    tooltip = ["label:N", "time:Q", alt.Tooltip("distance:Q", format=".3e")]
    return (
        alt.Chart(figures.data(rows))
        .mark_line(strokeWidth=2.2)
        .encode(x=x, y=y, color=hue, strokeDash=dash, tooltip=tooltip)
        .properties(width=2 * WIDTH, height=1.2 * HEIGHT)
    )


def _largest_own_error(runs):
    return max(max(curve["own_error"]) for curve in runs["curve"])


def _style(labels, title):
    return figures.style_of(labels, title, symbolSize=500)


def _decades(values):
    exponents = [math.floor(math.log10(value)) for value in values]
    values = [10.0**k for k in range(min(exponents), max(exponents) + 2)]
    return alt.Axis(format="~e", values=values)
