"""Lines of earlier versions, read as what they are now: the committed records stay as they were measured.

A run had `learning_rate` where it now has `settings`. It called the words of its problem `settings` and its measures
`final`, with its costs beside them. A cost had its figures at the top level, and no problem.
"""

import math
from collections.abc import Mapping
from typing import Any

_OF_A_RUN = ("problem", "technique", "num_steps", "seed", "curve", "environment", "target")
_COSTS_OF_A_RUN = (
    *("gradients_per_step", "products_per_step", "seconds_per_step"),
    *("compile_seconds", "runs_in_program"),
)
STEP, SWEEP = "one step", "sweep"


def as_new(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attributes of a record: those of a line of this version as they are.

    Raises:
      ValueError: for a line of no version.
    """
    # Each version had a key that no other has.
    if "measures" in row:
        return dict(row)
    if "final" in row:
        return _run(row)
    if "name" in row:
        return _cost(row, row["name"], STEP, {})
    if "program_seconds" in row:
        return _cost(row, "sgd", SWEEP, {"runs": row["runs"]})
    raise ValueError(f"it has no measures, but {', '.join(row)}.")


def _run(row):
    missing = [name for name in (*_OF_A_RUN[:-1], "settings", "learning_rate") if name not in row]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}.")
    costs = {name: row[name] for name in _COSTS_OF_A_RUN if name in row}
    return {
        **{name: row[name] for name in _OF_A_RUN if name in row},
        "about": row["settings"],
        "settings": {"learning_rate": float(row["learning_rate"])},
        # What was no run had no number of these; that was written as one.
        "measures": row["final"] | {k: x for k, x in costs.items() if not math.isnan(x)},
    }


def _cost(row, technique, problem, settings):
    figures = {k: x for k, x in row.items() if k not in ("name", "environment")}
    return {
        "technique": technique,
        "problem": problem,
        "settings": settings,
        "measures": figures,
        "environment": row.get("environment", {}),
    }
