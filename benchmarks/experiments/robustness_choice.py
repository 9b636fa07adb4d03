"""Which strength of a technique is compared, and what is quoted of it.

A strength is chosen on a validation split: the strongest that costs at most half a point of its accuracy. One at the
end of its grid is marked: a longer grid might choose another.
"""

import pandas as pd

from benchmarks.engine.table import RUN, TECHNIQUE, Table, groups
from benchmarks.problems.classification import NOISE_SCALES

TOLERATED = 0.005

# The noise and the radius that the table quotes; the figures show them all.
QUOTED_SCALE = 0.5
RADII = (0.0, 0.05, 0.1, 0.15)
QUOTED_RADIUS = 0.1

SENSES = ("inputs", "parameters")


def quoted(runs: Table) -> Table:
    """Returns the table with the accuracy in percent in either sense, at the quoted radius and noise."""
    radius, scale = RADII.index(QUOTED_RADIUS), NOISE_SCALES.index(QUOTED_SCALE)
    return runs.assign(
        inputs=100 * runs["pgd_accuracy"].str[radius].astype(float),
        parameters=100 * runs["noise_accuracy"].str[scale].astype(float),
    )


def strengths(runs: Table, grids: dict[str, list[float]]) -> Table:
    """Returns, from the weakest on, each strength of which no seed diverged, with its validation accuracy.

    Args:
      runs: the table.
      grids: by technique the strengths in their order: the radius of a ball is stronger where it is smaller.
    """
    found = runs.groupby([*RUN, "setting"], sort=False).agg(
        diverged=("diverged", "any"), validated=("validation_accuracy", "mean")
    )
    found = found[~found["diverged"]].reset_index()
    found["place"] = [
        grids[name].index(x) if x in grids.get(name, []) else -1
        for name, x in zip(found["technique"], found["setting"], strict=True)
    ]
    # By group as the runs come; the places sort the strengths within a group.
    return found.sort_values("place", kind="stable")


def within(found: Table, margin: float) -> Table:
    """Keeps the strengths that cost at most this much of the validation accuracy of a technique."""
    best = found.groupby(TECHNIQUE)["validated"].transform("max")
    return found[found["validated"] >= best - margin]


def chosen(runs: Table, grids: dict[str, list[float]]) -> dict[tuple, Table]:
    """Returns the seeds of each problem and technique at the strongest strength that validation tolerates."""
    strongest = within(strengths(runs, grids), TOLERATED).groupby(TECHNIQUE).tail(1)
    keys = pd.MultiIndex.from_frame(strongest[RUN])
    return groups(runs[pd.MultiIndex.from_frame(runs[RUN]).isin(keys)], TECHNIQUE)


def is_at_end(group: Table, runs: Table) -> bool:
    """Says whether a chosen strength is the weakest or the strongest of several that were run."""
    problem, technique, strength = group[[*TECHNIQUE, "setting"]].iloc[0]
    tried = runs[(runs["problem"] == problem) & (runs["technique"] == technique)]["setting"]
    return tried.nunique() > 1 and strength in (tried.min(), tried.max())
