"""What an experiment is: a presentation, and the runs and measurements that it shows."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.engine.records import Key, Record
from benchmarks.problems.problem import Problem
from benchmarks.report.presentation import Column as Column
from benchmarks.report.presentation import Figure as Figure
from benchmarks.report.presentation import Presentation
from benchmarks.techniques.technique import Technique


class Entry(NamedTuple):
    """A technique in an experiment.

    Attributes:
      technique: what runs.
      grid: the values of its setting; None takes the technique's own.
      problems: the names of those that it runs on; None is all of them.
    """

    technique: Technique
    grid: Sequence[Any] | None = None
    problems: Sequence[str] | None = None


class Measurement(NamedTuple):
    """Records that no training run gives, such as the cost of an operation or the path of a flow.

    Attributes:
      keys: of the records; those on record already are not measured again.
      measure: makes them.
    """

    keys: Sequence[Key]
    measure: Callable[[], list[Record]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Presentation):
    """A question, the runs that answer it, and how the answer is shown.

    Attributes:
      problems: `data_dir -> problems`.
      entries: what is compared.
      curve_measures: those that its figures need; None takes all of a problem's. Between 25 points the others may
        cost more than the steps.
      measurements: what is measured beside the runs, where neither techniques nor problems are chosen.
      adapt_technique: what makes a technique measurable here, on a problem: one that counts its passes, for example.
      adapt_problem: the same for a problem; its measures must be of what the adapted techniques hand over.
    """

    problems: Callable[[Path | None], Sequence[Problem]] = lambda data_dir: []
    entries: Sequence[Entry] = ()
    curve_measures: Sequence[str] | None = None
    measurements: Sequence[Measurement] = ()
    adapt_technique: Callable[[Technique, Problem], Technique] = lambda technique, problem: (
        technique
    )
    adapt_problem: Callable[[Problem], Problem] = lambda problem: problem
