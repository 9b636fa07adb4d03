"""Runs that count something on their way: where they are measured, and how measures read the counts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks.problems.problem import Measure, Problem


class Counted(NamedTuple):
    """Where a counting run is measured: its parameters, and what it has counted so far."""

    params: Any
    counts: Mapping[str, jax.Array]


def with_counts(problem: Problem, names: Sequence[str]) -> Problem:
    """Returns the problem for runs that are measured at a `Counted`.

    The measures of parameters are taken of its parameters. The counts of these names become measures, on the curve and
    at the end, beside the problem's own `count_measures`.
    """
    counts = {name: _count(name) for name in names}
    at_the_end = {
        name: lambda point, train, test, fn=fn: fn(point.counts)
        for name, fn in problem.count_measures.items()
    }
    return problem.replace(
        measures=_of_params(problem.measures) | counts,
        final_measures=_of_params(problem.final_measures) | counts | at_the_end,
    )


def _count(name: str) -> Measure:
    return lambda point, train, test: point.counts[name]


def _of_params(measures: Mapping[str, Measure]) -> dict[str, Measure]:
    return {
        name: lambda point, train, test, fn=fn: fn(point.params, train, test)
        for name, fn in measures.items()
    }
