"""What is shown of records: a question, its answer in a sentence, a table and figures."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import altair as alt
import pandas as pd

from benchmarks.engine.table import Table

Cell = Callable[[Table, Table], str]


class Column(NamedTuple):
    """A column of the table.

    Attributes:
      title: its head.
      about: one sentence for the reader.
      cell: the text for the records of one row, given all records too.
    """

    title: str
    about: str
    cell: Cell


class Figure(NamedTuple):
    """A figure: one chart serves the PNG and the page."""

    name: str
    title: str
    caption: str
    chart: (
        alt.Chart
        | alt.LayerChart
        | alt.ConcatChart
        | alt.HConcatChart
        | alt.VConcatChart
        | alt.FacetChart
    )


def no_figures(runs: Table) -> list[Figure]:
    """Returns none."""
    del runs
    return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Presentation:
    """A question, and how records answer it.

    Attributes:
      name: the sub-command, and the name of its file of records.
      question: the title.
      about: a paragraph below it.
      columns: of the table.
      headline: the answer in a sentence or two, computed from the records.
      figures: computed from the records.
      row_per_setting: a row of the table for the settings of a technique; else one for all of them.
      technique_title: the head of the techniques' names; None leaves them out.
      setting_title: the head of the settings, where each has a row; None leaves them out.
      needs: measures that the table and the figures read: records without them are refused.
    """

    name: str
    question: str
    about: str = ""
    columns: Sequence[Column]
    headline: Callable[[Table], str]
    figures: Callable[[Table], list[Figure]] = no_figures
    row_per_setting: bool = True
    technique_title: str | None = "technique"
    setting_title: str | None = "rate"
    needs: Sequence[str] = ()


def mean_column(title: str, about: str, name: str, spec: str, scale: float = 1.0) -> Column:
    """Makes a column of the mean of a measure over the seeds."""
    return Column(title, about, lambda group, runs: format(scale * group[name].mean(), spec))


def value_column(title: str, about: str, name: str, spec: str) -> Column:
    """Makes a column of a measure of one record; empty where it has none."""

    def cell(group: Table, runs: Table) -> str:
        del runs
        value: Any = group[name].iloc[0] if name in group else None
        # A measure that other rows have is missing here as NaN.
        return "" if pd.isna(value) else format(value, spec)

    return Column(title, about, cell)
