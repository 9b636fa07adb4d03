"""Costs are measurements that are no runs: how each kind is shown, stored and told."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.costs import decay_costs, elementwise, sweep_speed
from benchmarks.costs import step_costs as steps
from benchmarks.engine import records


class Costs(NamedTuple):
    """A kind of cost.

    Attributes:
      row: the dataclass of one measurement.
      cells: the head and the rows of the table.
      headline: of the table on the terminal.
      title: of the section in the results.
      text: below it.
    """

    row: type
    cells: Callable[[Any], tuple[list[str], list[list[str]]]]
    headline: Callable[[Any], str]
    title: str
    text: Callable[[Any], str]


def write(name: str, found: Sequence[Any], folder: Path) -> Path:
    """Writes one JSON line a measurement, with the machine; returns the path."""
    return records.write_costs(folder / f"{name}.jsonl", map(dataclasses.asdict, found))


def read(path: Path, name: str) -> list[Any]:
    """Reads the measurements of a file, whatever else a later version has put there.

    Raises:
      ValueError: naming the line, for one that is no such measurement.
    """
    row = COSTS[name].row
    names = [field.name for field in dataclasses.fields(row)]
    found = []
    for number, line in enumerate(records.rows(path), start=1):
        try:
            found.append(row(**{key: x for key, x in line.items() if key in names}))
        except TypeError as error:
            raise ValueError(f"{path}, line {number}, is no cost of {name}: {error}") from error
    return found


COSTS: dict[str, Costs] = {
    "steps": Costs(
        steps.StepCost,
        steps.cells,
        lambda costs: "One step beside plain gradient descent",
        "What does a step cost?",
        lambda costs: (
            "Beside a plain gradient step: time is the median ratio over rounds in which the steps take turns; FLOPs "
            "and memory are the compiler's own figures (≥: a loop, counted for one turn); gradients and "
            "Hessian-vector products are counted."
        ),
    ),
    "elementwise": Costs(
        elementwise.ElementwiseCost,
        elementwise.cells,
        lambda costs: f"One step on {costs[0].size:,} parameters",
        "What does a step cost where memory traffic is the limit?",
        lambda costs: (
            f"{costs[0].size:,} parameters in float32 with donated buffers and a given gradient: time is the median "
            "ratio to Adam, or to a softmax of the same array, over rounds in which the steps take turns; passes are "
            "the bytes that the kernels read and write, temporaries and state copies the bytes they take, all / those "
            "of the parameters."
        ),
    ),
    "decay_costs": Costs(
        decay_costs.DecayCost,
        decay_costs.cells,
        lambda costs: "One step beside plain gradient descent",
        "What does a decay of the norms cost?",
        lambda costs: (
            "Beside a plain step of a fully connected network: time is the median ratio over rounds in which the "
            "steps take turns, the mean from one refresh to the next; FLOPs are the compiler's own figures, and the "
            "formula's are those of the step and of 2t products of 2mn² for each layer."
        ),
    ),
    "sweep_speed": Costs(
        sweep_speed.SweepSpeed,
        sweep_speed.cells,
        lambda costs: "A sweep as one program, and as a loop",
        "How fast is a sweep?",
        lambda costs: (
            f"The same runs as one compiled program and as a Python loop over one jitted step, {costs[0].steps} steps "
            f"each; their final losses differ by at most {max(c.largest_difference for c in costs):.0e} relatively."
        ),
    ),
}
