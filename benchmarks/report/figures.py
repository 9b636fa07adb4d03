"""The charts: one Altair specification serves both the PNG and the interactive report.

Colours are those of Okabe and Ito, told apart by every common kind of colour blindness; the dashes of the lines
repeat the distinction for print in grey.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from benchmarks.engine import records
from benchmarks.engine.records import Record
from benchmarks.report import run_statistics as statistics

COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#000000", "#8C6D31", "#882255", "#999933"),
)
DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3])

WIDTH, HEIGHT = 310, 260
PIXELS_PER_POINT = 2

_DECADES = [10.0**k for k in range(-16, 7)]

# Beyond this a diverged run only flattens the others' curves.
CEILING = 1e4

Chart = Any


def labels(runs: Sequence[Record]) -> dict[tuple[str, float], str]:
    """Names every technique and rate: with the rate where a technique has several or all differ."""
    return {
        (technique, rate): f"{technique} {rate:g}" for _, technique, rate in records.groups(runs)
    }


def selection() -> alt.Parameter:
    """Returns the selection that a click in the legend makes; a figure adds it to its first panel."""
    return alt.selection_point(fields=["label"], bind="legend", name="technique")


def colour(runs: Sequence[Record], **symbol: Any) -> alt.Color:
    """Returns the colour of each technique and rate."""
    domain = list(dict.fromkeys(labels(runs).values()))
    return alt.Color(
        "label:N",
        scale=alt.Scale(
            domain=domain, range=[COLOURS[i % len(COLOURS)] for i in range(len(domain))]
        ),
        sort=domain,
        legend=alt.Legend(title="technique, learning rate", symbolOpacity=1, **symbol),
    )


def line_style(runs: Sequence[Record]) -> tuple[alt.Color, alt.StrokeDash]:
    """Returns colour and dash of each technique and rate, with one legend for both."""
    domain = list(dict.fromkeys(labels(runs).values()))
    dashes = [DASHES[(i + i // len(COLOURS)) % len(DASHES)] for i in range(len(domain))]
    symbol = {"symbolType": "stroke", "symbolSize": 700, "symbolStrokeWidth": 2.5}
    dash = alt.StrokeDash(
        "label:N",
        scale=alt.Scale(domain=domain, range=dashes),
        sort=domain,
        legend=alt.Legend(title="technique, learning rate", symbolOpacity=1, **symbol),
    )
    return colour(runs, **symbol), dash


def named_style(names: Sequence[str]) -> tuple[alt.Color, alt.StrokeDash]:
    """Returns colour and dash of techniques that differ by name alone."""
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    dashes = [DASHES[(i + i // len(COLOURS)) % len(DASHES)] for i in range(len(names))]
    legend = alt.Legend(
        title="technique",
        symbolOpacity=1,
        symbolType="stroke",
        symbolSize=700,
        symbolStrokeWidth=2.5,
    )
    domain = list(names)
    return (
        alt.Color(
            "label:N", scale=alt.Scale(domain=domain, range=colours), sort=domain, legend=legend
        ),
        alt.StrokeDash(
            "label:N", scale=alt.Scale(domain=domain, range=dashes), sort=domain, legend=legend
        ),
    )


def dimmed(chosen: alt.Parameter, opacity: float, otherwise: float) -> Any:
    """Returns an opacity that falls where another technique has been chosen in the legend."""
    return alt.condition(chosen, alt.value(opacity), alt.value(otherwise))


def curves(
    runs: Sequence[Record],
    measures: Sequence[tuple[str, str, str]],
    *,
    x: str = "step",
    x_title: str = "step",
    ceilings: Mapping[str, float] | None = None,
) -> Chart:
    """Draws measures of the curve side by side: mean over seeds, band from the lowest to the highest.

    Args:
      runs: the records.
      measures: of each panel the name of the measure, its title, and `log` or `linear`.
      x: the measure along the abscissa.
      x_title: its title.
      ceilings: by measure, the value above which points (the first steps) are left out.
    """
    chosen = selection()
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
    rows = []
    names = labels(runs)
    for (_, technique, rate), group in records.groups(runs).items():
        for i, step in enumerate(group[0].curve[x]):
            values = [curve_value(r, name, i) for r in group]
            shown = all(math.isfinite(v) and abs(v) < ceiling for v in values)
            if shown and (scale == "linear" or min(values) > 0):
                rows.append({"label": names[technique, rate], "x": step} | spread(values))
    return rows


def curve_value(record: Record, name: str, index: int) -> float:
    """Returns a measure at a point of the curve; `test_error` is one minus the accuracy."""
    if name == "test_error":
        return 1 - record.curve["test_accuracy"][index]
    return record.curve[name][index]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the mean, the lowest and the highest of the seeds."""
    return {"mean": sum(values) / len(values), "low": min(values), "high": max(values)}


def band(
    runs: Sequence[Record],
    rows: list[dict],
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
    hue, dash = line_style(runs)
    own = chosen is None
    chosen = selection() if own else chosen
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("x:Q", title=x_title, scale=_scale(x_scale), axis=_axis(x_scale)),
    )
    area = base.mark_area(opacity=0.12).encode(
        y=alt.Y("low:Q", title=y_title, scale=_scale(y_scale), axis=_axis(y_scale)),
        y2="high:Q",
        color=hue,
        opacity=dimmed(chosen, 0.12, 0.0),
    )
    line = base.mark_line(strokeWidth=1.8, clip=True).encode(
        y=alt.Y("mean:Q", title=y_title, scale=_scale(y_scale), axis=_axis(y_scale)),
        color=hue,
        strokeDash=dash,
        opacity=dimmed(chosen, 1.0, 0.08),
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
    runs: Sequence[Record],
    panels: Sequence[tuple[str, str]],
    *,
    along: str,
    along_title: str,
    levels: Sequence[float],
) -> Chart:
    """Draws measures, as ratios to the first technique's, where another measure first falls to each level.

    Args:
      runs: the records; the first technique and rate is the reference.
      panels: of each the measure and its title.
      along: the measure that falls along the path, such as the training loss.
      along_title: its title.
      levels: its values, descending.
    """
    chosen = selection()
    names = labels(runs)
    grouped = records.groups(runs)
    reference = {r.seed: r for r in next(iter(grouped.values()))}
    charts = []
    for name, title in panels:
        rows = []
        for (_, technique, rate), group in grouped.items():
            for level in levels:
                ratios = []
                for record in group:
                    if record.seed in reference:
                        mine, theirs = (
                            statistics.value_at(r.curve[along], r.curve[name], level)
                            for r in (record, reference[record.seed])
                        )
                        ratios.append(mine / theirs)
                if ratios and all(math.isfinite(x) and x > 0 for x in ratios):
                    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                    label = names[technique, rate]
                    rows.append({"label": label, "x": level} | spread(ratios) | {"mean": mean})
        charts.append(band(runs, rows, along_title, title, "log", "log", chosen=chosen))
    for chart in charts:
        for layer in chart.layer:
            layer.encoding.x.scale = alt.Scale(type="log", reverse=True, nice=False)
            layer.encoding.x.axis = alt.Axis(format=".2~g", tickCount=6)
            layer.encoding.y.axis = alt.Axis(format=".2~g", tickCount=6)
    return _row(charts, chosen)


def effects(
    runs: Sequence[Record],
    panels: Sequence[tuple[str, Mapping[tuple[str, float], Any]]],
    none: float,
) -> Chart:
    """Draws an estimate with its interval for each technique and rate, one panel a measure.

    Args:
      runs: the records.
      panels: of each a title, and by technique and rate a `statistics.Interval`.
      none: where no effect lies.
    """
    names = labels(runs)
    domain = list(dict.fromkeys(names.values()))
    charts = []
    for index, (title, intervals) in enumerate(panels):
        rows = [
            {"label": names[key], "estimate": i.estimate, "low": i.low, "high": i.high}
            for key, i in intervals.items()
            if all(math.isfinite(x) for x in i)
        ]
        y = alt.Y(
            "label:N",
            sort=domain,
            title=None,
            scale=alt.Scale(domain=domain),
            axis=alt.Axis(labels=index == 0, ticks=False, domain=False, labelLimit=300),
        )
        base = alt.Chart(alt.Data(values=rows)).encode(
            y=y,
            color=colour(runs, symbolType="circle").copy(deep=False),
            tooltip=[
                alt.Tooltip("label:N", title="technique"),
                *(alt.Tooltip(f"{k}:Q", format="+.3~f") for k in ("estimate", "low", "high")),
            ],
        )
        interval = base.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q", title=title), x2="high:Q")
        dot = base.mark_point(filled=True, size=110, opacity=1).encode(x="estimate:Q")
        zero = (
            alt.Chart(alt.Data(values=[{"none": none}]))
            .mark_rule(color="#777", strokeDash=[4, 3])
            .encode(x="none:Q")
        )
        layers = (zero + interval + dot).properties(width=WIDTH - 60, height=24 * len(domain))
        charts.append(layers)
    for chart in charts:
        for layer in chart.layer[1:]:
            layer.encoding.color.legend = None
    return alt.hconcat(*charts)


def scatter(
    runs: Sequence[Record], x: str, y: str, x_title: str, y_title: str, x_scale: str = "linear"
) -> Chart:
    """Draws a dot a seed and a large mark at the mean of the seeds, of two final measures."""
    hue, chosen = colour(runs, symbolType="circle"), selection()
    names = labels(runs)
    dots, means = [], []
    for (_, technique, rate), group in records.groups(runs).items():
        pairs = [(r.final[x], r.final[y]) for r in group if not r.diverged]
        label = names[technique, rate]
        dots += [{"label": label, "x": a, "y": b} for a, b in pairs]
        if pairs:
            xs, ys = zip(*pairs, strict=True)
            mean = sum(xs) / len(xs)
            if x_scale == "log":
                mean = math.exp(sum(map(math.log, xs)) / len(xs))
            means.append({"label": label, "x": mean, "y": sum(ys) / len(ys)})

    def layer(rows, **mark):
        return (
            alt.Chart(alt.Data(values=rows))
            .mark_point(filled=True, **mark)
            .encode(
                x=alt.X("x:Q", title=x_title, scale=_scale(x_scale), axis=_axis(x_scale)),
                y=alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=False)),
                color=hue,
                opacity=dimmed(chosen, mark.get("opacity", 1.0), 0.05),
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


def specification(chart: Chart) -> dict:
    """Returns the Vega-Lite specification of a chart, styled."""
    return (
        chart.configure(background="white")
        .configure_axis(labelFontSize=12, titleFontSize=13, gridColor="#e8e8e8", titlePadding=8)
        .configure_legend(
            labelFontSize=12,
            titleFontSize=12,
            labelLimit=400,
            symbolSize=160,
            orient="bottom",
            columns=5,
            titlePadding=8,
        )
        .configure_title(fontSize=15, anchor="start")
        .configure_view(strokeOpacity=0)
        .to_dict()
    )


def save_png(chart: Chart, path: Path) -> None:
    """Draws a chart without a browser."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(vl_convert.vegalite_to_png(specification(chart), scale=PIXELS_PER_POINT))


def _scale(kind):
    if kind == "log":
        return alt.Scale(type="log", nice=False, padding=8)
    return alt.Scale(zero=False)


def _axis(kind):
    return alt.Axis(format="~e", values=_DECADES) if kind == "log" else alt.Axis()
