"""All records as one data frame: a row a record, a column a measure. Every table, chart and statistic starts here.

Beside the measures the columns are those of `Record` and
- `setting`: the value of the first setting, to search and to draw along;
- `settings`: all settings as text, to group by;
- `label`: technique and settings, to show;
- `diverged`: the training loss at the end is not a finite number.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.engine.records import Record

# A `pandas.DataFrame` and a `pandas.Series`. The annotations of pandas give every selection the union of all that it
# may return, which no checker can follow: to a checker a table is anything.
Table = Any
Series = Any

# A row of these is one run but for its seed.
RUN = ["problem", "technique", "settings"]
TECHNIQUE = ["problem", "technique"]

_COLUMNS = (
    *("technique", "problem", "about", "settings", "setting", "label", "num_steps", "seed"),
    *("diverged", "curve", "environment", "target"),
)


def table(records: Iterable[Record]) -> Table:
    """Returns the table of records: the seeds of a run stand together, ascending, in the order of the runs.

    Raises:
      ValueError: where a measure has the name of another column.
    """
    rows = [_row(record) for record in records]
    frame = pd.DataFrame(rows, columns=None if rows else list(_COLUMNS))
    if not rows:
        return frame
    # Without a seed, as costs are, a row keeps its place.
    order = frame.groupby(RUN, sort=False).ngroup()
    seeds = pd.to_numeric(frame["seed"])
    return (
        frame.assign(_order=order, seed=seeds)
        .sort_values(["_order", "seed"], kind="stable", ignore_index=True)
        .drop(columns="_order")
    )


def _row(record):
    taken = [name for name in record.measures if name in _COLUMNS]
    if taken:
        raise ValueError(f"{record.technique}: {', '.join(taken)} cannot be the name of a measure.")
    values = list(record.settings.values())
    settings = _text(record.settings)
    short = settings if len(values) > 1 else "".join(f"{x:g}" for x in values)
    return {
        "technique": record.technique,
        "problem": record.problem,
        "about": record.about,
        "settings": settings,
        "setting": values[0] if values else math.nan,
        "label": f"{record.technique} {short}".strip(),
        "num_steps": record.num_steps,
        "seed": record.seed,
        "diverged": not math.isfinite(record.measures.get("train_loss", 0.0)),
        "curve": record.curve,
        "environment": record.environment,
        "target": record.target,
        **record.measures,
    }


def _text(settings):
    if len(settings) == 1:
        return repr(next(iter(settings.values())))
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())


def setting_text(row: Any, spec: str = ".3g") -> str:
    """Returns the settings of a row: one number to so many digits, several by their names, none as nothing."""
    text = row["settings"]
    return format(row["setting"], spec) if text and " " not in text else text


def groups(runs: Table, by: Sequence[str] = RUN) -> dict[tuple, Table]:
    """Returns the groups of a table in the order of appearance, by the values of their columns."""
    # Unsorted: tables and legends follow the order in which the experiment lists its entries.
    return dict(iter(runs.groupby(list(by), sort=False)))


def at_lowest(runs: Table, *scores: Series, by: Sequence[str] = TECHNIQUE) -> Table:
    """Keeps, of each technique on each problem, the runs at the settings with the lowest score.

    Args:
      runs: the table.
      *scores: indexed by the columns of `RUN`; a later one decides where the earlier are equal. What is not finite
        comes last.
      by: of whom the best is chosen, some of the columns of `RUN`.
    """
    ranked = pd.DataFrame({i: s.where(np.isfinite(s), math.inf) for i, s in enumerate(scores)})
    # Stable, so that the first of equals is chosen: the lowest rate of a grid.
    ranked = ranked.sort_values(list(ranked), kind="stable")
    best = ranked.groupby(level=list(by), sort=False).head(1).index
    return runs[pd.MultiIndex.from_frame(runs[RUN]).isin(best)]


def is_measured(runs: Table, name: str) -> bool:
    """Says whether a measure was taken: some row has it. One that diverged may have it as NaN."""
    return name in runs and bool(runs[name].notna().any())


def curves(runs: Table, names: Sequence[str]) -> Table:
    """Returns curves as a table: a row a point of a run's curve, with the columns of `RUN`, its label and its seed."""
    # The curves alone are wanted: to repeat all measures for every point would be slow.
    kept = runs[[*RUN, "label", "seed"]]
    points = pd.DataFrame(
        [[list(curve[name]) for name in names] for curve in runs["curve"]],
        columns=list(names),
        index=runs.index,
    )
    points["point"] = [list(range(len(next(iter(curve.values()))))) for curve in runs["curve"]]
    long = kept.join(points).explode([*names, "point"], ignore_index=True)
    return long.astype(dict.fromkeys(names, float))
