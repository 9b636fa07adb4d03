"""What one record of the flows holds."""

import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks.engine.records import Key


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one record holds.

    Attributes:
      problem: which figure it belongs to.
      settings: the problem in words.
      technique: the line of the figure.
      learning_rate: the learning rate or the largest of several; 0 for gradient flow itself.
      num_steps: of the optimizer.
      measure: returns the curve and the final numbers: `measure` and `value`, and `theory` and
        `own_error` where there are any.
    """

    problem: str
    settings: str
    technique: str
    learning_rate: float
    num_steps: int
    measure: Callable[[], tuple[dict[str, list[float]], dict[str, Any]]]

    @property
    def key(self) -> Key:
        """The key of its record."""
        return (self.problem, self.settings, self.num_steps, self.technique, self.learning_rate, 0)
