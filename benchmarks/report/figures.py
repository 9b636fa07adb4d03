"""The style of all charts: colors, dashes, legends, scales. One Altair specification serves the PNG and the page.

Colors are those of Okabe and Ito, told apart by every common kind of color blindness; the dashes of the lines repeat
the distinction for print in gray.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from benchmarks.engine.table import Table

COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#000000", "#8C6D31", "#882255", "#999933"),
)
# Dashes differ in length, not only in number, to be told apart in short pieces.
DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3])

WIDTH, HEIGHT = 310, 260
PIXELS_PER_POINT = 2

_DECADES = [10.0**k for k in range(-16, 7)]
_STROKE = {"symbolType": "stroke", "symbolSize": 700, "symbolStrokeWidth": 2.5}

Chart = Any


def data(rows: Table | Sequence[dict]) -> alt.Data:
    """Returns rows as the data of a chart; what a row lacks is left out of it."""
    if isinstance(rows, pd.DataFrame):
        rows = [{k: x for k, x in row.items() if not _is_missing(x)} for row in _records(rows)]
    return alt.Data(values=list(rows))


def _records(frame):
    return frame.to_dict("records")


def _is_missing(value):
    return isinstance(value, float) and value != value


def labels(runs: Table) -> list[str]:
    """Returns the names of all techniques and settings, in the order of appearance."""
    return list(dict.fromkeys(runs["label"]))


def selection() -> alt.Parameter:
    """Returns the selection that a click in the legend makes; a figure adds it to its first panel."""
    return alt.selection_point(fields=["label"], bind="legend", name="technique")


def color_of(names: Sequence[str], title: str | None, **symbol: Any) -> alt.Color:
    """Returns the color of each label."""
    return alt.Color(
        "label:N",
        scale=alt.Scale(
            domain=list(names), range=[COLORS[i % len(COLORS)] for i in range(len(names))]
        ),
        sort=list(names),
        legend=alt.Legend(title=title, symbolOpacity=1, **symbol),
    )


def color(runs: Table, **symbol: Any) -> alt.Color:
    """Returns the color of each technique and setting."""
    return color_of(labels(runs), "technique, learning rate", **symbol)


def style_of(
    names: Sequence[str], title: str | None = "technique", **symbol: Any
) -> tuple[alt.Color, alt.StrokeDash]:
    """Returns color and dash of each label, with one legend for both."""
    symbol = _STROKE | symbol
    # With the colors used up the dashes shift by one: no two lines look alike before forty.
    dashes = [DASHES[(i + i // len(COLORS)) % len(DASHES)] for i in range(len(names))]
    dash = alt.StrokeDash(
        "label:N",
        scale=alt.Scale(domain=list(names), range=dashes),
        sort=list(names),
        legend=alt.Legend(title=title, symbolOpacity=1, **symbol),
    )
    return color_of(names, title, **symbol), dash


def line_style(runs: Table) -> tuple[alt.Color, alt.StrokeDash]:
    """Returns color and dash of each technique and setting."""
    return style_of(labels(runs), "technique, learning rate")


def dimmed(chosen: alt.Parameter, opacity: float, otherwise: float) -> Any:
    """Returns an opacity that falls where another technique has been chosen in the legend."""
    return alt.condition(chosen, alt.value(opacity), alt.value(otherwise))


def scale(kind: str) -> alt.Scale:
    """Returns a scale, `log` or `linear`."""
    if kind == "log":
        return alt.Scale(type="log", nice=False, padding=8)
    return alt.Scale(zero=False)


def axis(kind: str) -> alt.Axis:
    """Returns the axis of a scale: decades alone where it is logarithmic."""
    return alt.Axis(format="~e", values=_DECADES) if kind == "log" else alt.Axis()


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
