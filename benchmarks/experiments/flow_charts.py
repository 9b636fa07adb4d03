"""The four figures of the flows: paths over level sets, errors against step sizes, drift over time."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import contourpy
import numpy as np

from benchmarks.engine.records import Record
from benchmarks.experiments.experiment import Figure
from benchmarks.report.figures import COLOURS, DASHES, HEIGHT, WIDTH

LEVELS = (0.02, 0.2, 1.0, 4.0, 12.0, 30.0)
OVERVIEW = ((0.0, 3.2), (0.0, 3.8))
CLOSE_UP = ((0.27, 0.33), (1.92, 2.2))


def draw(runs: Sequence[Record]) -> list[Figure]:
    """Draws all four."""
    of = {
        problem: [r for r in runs if r.problem == problem] for problem in {r.problem for r in runs}
    }
    return [
        Figure(
            "paths",
            "Two weights: where each path ends on the line of minima",
            "E = (0.6 − ab)²/2. Grey: level sets of E; black: its minima, with a cross at the one of least norm. Dots "
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
    labels = [_label(r) for r in runs]
    rows = [
        {"label": label, "index": i, "time": t, "a": a, "b": b}
        for label, r in zip(labels, runs, strict=True)
        for i, (t, a, b) in enumerate(zip(r.curve["time"], r.curve["a"], r.curve["b"], strict=True))
    ]
    panels = [
        _plane(rows, labels, OVERVIEW, 1.35 * WIDTH, 1.6 * HEIGHT),
        _plane(rows, labels, CLOSE_UP, 1.35 * WIDTH, 1.6 * HEIGHT),
    ]
    return alt.hconcat(*panels)


def _label(record):
    if record.learning_rate == 0:
        return record.technique
    return f"{record.technique}, h = {record.learning_rate:g}"


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
            alt.Chart(alt.Data(values=values))
            .mark_line(clip=True, **mark)
            .encode(x=a, y=b, order="index:Q", detail="line:N")
        )

    paths = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(clip=True, strokeWidth=2)
        .encode(x=a, y=b, order="index:Q", color=hue, strokeDash=dash, tooltip=tooltip)
    )
    steps = [row for row in rows if row["label"] == labels[1]]
    dots = (
        alt.Chart(alt.Data(values=steps))
        .mark_circle(clip=True, size=34, opacity=1)
        .encode(x=a, y=b, color=hue, tooltip=tooltip)
    )
    least = alt.Chart(alt.Data(values=[{"a": 0.6**0.5, "b": 0.6**0.5}])).mark_point(
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


def _errors(panels: Sequence[Sequence[Record]], x_title: str) -> Any:
    labels = [r.technique for r in panels[0]]
    return alt.hconcat(*(_error_panel(runs, labels, x_title) for runs in panels))


def _error_panel(runs, labels, x_title):
    rows = [
        {"label": r.technique, "h": h, "error": e}
        for r in runs
        for h, e in zip(r.curve["step_size"], r.curve["error"], strict=True)
    ]
    ends = [
        {
            "label": r.technique,
            "h": min(r.curve["step_size"]),
            "error": min(r.curve["error"]),
            "slope": f"{r.final['value']:.2f}",
        }
        for r in runs
    ]
    hue, dash = _style(labels, None)
    sizes = sorted({row["h"] for row in rows})
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
        axis=_decades(row["error"] for row in rows),
    )
    tooltip = ["label:N", "h:Q", alt.Tooltip("error:Q", format=".3e")]
    line = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y, color=hue, tooltip=tooltip)
    text = (
        alt.Chart(alt.Data(values=ends))
        .mark_text(align="right", dx=-8, fontSize=12, fontWeight="bold")
        .encode(x=x, y=y, text="slope:N", color=hue)
    )
    return alt.layer(
        line.mark_line(strokeWidth=2).encode(strokeDash=dash),
        line.mark_circle(size=40, opacity=1),
        text,
    ).properties(width=WIDTH, height=HEIGHT, title=runs[0].problem)


def _drift(runs):
    hue, dash = _style([r.technique for r in runs], "distance to")
    rows = [
        {"label": r.technique, "time": t, "distance": d}
        for r in runs
        for t, d in zip(r.curve["time"], r.curve["distance"], strict=True)
    ]
    y = alt.Y(
        "distance:Q",
        title="distance of gradient descent",
        scale=alt.Scale(type="log"),
        axis=_decades(row["distance"] for row in rows),
    )
    x = alt.X("time:Q", title="time (learning rate × steps)")
    tooltip = ["label:N", "time:Q", alt.Tooltip("distance:Q", format=".3e")]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=2.2)
        .encode(x=x, y=y, color=hue, strokeDash=dash, tooltip=tooltip)
        .properties(width=2 * WIDTH, height=1.2 * HEIGHT)
    )


def _largest_own_error(runs):
    return max(max(r.curve["own_error"]) for r in runs)


def _style(labels, title):
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(labels))]
    dashes = [DASHES[i % len(DASHES)] for i in range(len(labels))]
    legend = {"title": title, "symbolType": "stroke", "symbolSize": 500, "symbolStrokeWidth": 2.5}
    return (
        alt.Color(
            "label:N",
            sort=labels,
            scale=alt.Scale(domain=labels, range=colours),
            legend=alt.Legend(**legend),
        ),
        alt.StrokeDash(
            "label:N",
            sort=labels,
            scale=alt.Scale(domain=labels, range=dashes),
            legend=alt.Legend(**legend),
        ),
    )


def _decades(values):
    exponents = [math.floor(math.log10(value)) for value in values]
    values = [10.0**k for k in range(min(exponents), max(exponents) + 2)]
    return alt.Axis(format="~e", values=values)
