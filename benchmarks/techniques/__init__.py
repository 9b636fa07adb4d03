"""Every technique and peer by its one name, as data; any experiment that can measure one takes it by that name.

A user's own technique enters by `register`, or as a `Technique` that is given to `benchmarks.experiments.sweep.run`.
"""

from collections.abc import Sequence

from benchmarks.techniques import curvature, geometry, peers, penalties, step_size, weight_decay
from benchmarks.techniques.technique import Plan as Plan
from benchmarks.techniques.technique import Spent as Spent
from benchmarks.techniques.technique import Technique as Technique

TECHNIQUES: dict[str, Technique] = {}


def register(technique: Technique) -> None:
    """Adds a technique to those that `--techniques` knows.

    Raises:
      ValueError: where the name is taken.
    """
    # Records know a technique by its name alone: two of one name could not be told apart.
    if technique.name in TECHNIQUES:
        raise ValueError(f"a technique {technique.name!r} is there already; choose another name.")
    TECHNIQUES[technique.name] = technique


for _room in (penalties, step_size, curvature, geometry, weight_decay, peers):
    for _technique in _room.TECHNIQUES:
        register(_technique)


def named(names: Sequence[str]) -> list[Technique]:
    """Returns the techniques of these names; an unknown one is a `ValueError` that lists all."""
    unknown = [name for name in names if name not in TECHNIQUES]
    if unknown:
        raise ValueError(
            f"unknown technique {', '.join(map(repr, unknown))}; choose from {', '.join(TECHNIQUES)}."
        )
    return [TECHNIQUES[name] for name in names]
