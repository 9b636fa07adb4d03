"""How a path or a line of errors becomes a record."""

from collections.abc import Callable
from typing import Any

import jax

from benchmarks.engine.machine import environment
from benchmarks.engine.records import Record
from benchmarks.experiments.experiment import Measurement

Measured = tuple[dict[str, list[float]], dict[str, Any]]


def flow_measurement(
    problem: str,
    about: str,
    technique: str,
    learning_rate: float,
    num_steps: int,
    measure: Callable[[], Measured],
) -> Measurement:
    """Makes a measurement of one record.

    Args:
      problem: which figure it belongs to.
      about: the problem in words.
      technique: the line of the figure.
      learning_rate: the learning rate or the largest of several; 0 for gradient flow itself.
      num_steps: of the optimizer.
      measure: returns the curve and the final numbers: `measure` and `value`, and `theory` and `own_error` where there
        are any.
    """

    def record(curve: Any = None, measures: Any = None) -> Record:
        return Record(
            technique=technique,
            problem=problem,
            about=about,
            settings={"learning_rate": float(learning_rate)},
            num_steps=num_steps,
            # Every start is that of the first seed.
            seed=0,
            measures=measures or {},
            curve=curve or {},
            environment=environment(),
        )

    def measured() -> list[Record]:
        # Errors of high order are below the rounding of float32.
        with jax.enable_x64(True):
            return [record(*measure())]

    key = (problem, about, num_steps, technique, (float(learning_rate),), 0)
    return Measurement([key], measured)
