"""What a problem is: a random start, a loss on a batch, and what to measure."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax

LossFn = Callable[[Any, Any], chex.Array]
Measure = Callable[[Any, Any, Any], chex.Array]


@dataclasses.dataclass(frozen=True)
class Target:
    """What counts as solved: a measure of the curve and the value that it must reach."""

    measure: str
    value: float
    higher_is_better: bool


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss to minimise from a random start, on batches of a data set or on no data at all.

    Attributes:
      name: what the records call it.
      init: `key -> params`.
      loss: `(params, batch) -> scalar`, the mean over the batch; `batch` is None without data.
      train: arrays with one leading axis of examples, or None.
      test: the same, held out.
      batch_size: the number of examples of a step; None takes all of them.
      num_steps: the default length of a run.
      measures: by name, `(params, train, test) -> scalar`, for the curves.
      final_measures: by name, `(params, train, test) -> array`, taken once, after the last step.
      target: what counts as solved, or None.
      outputs: `(params, batch) -> outputs`, for Gauss-Newton products.
      output_loss: `(outputs, batch) -> scalar`, with `loss` their composition.
      curvature_batch_size: the number of examples that curvature is measured on.
      overlap: the fraction of a batch that it shares with the previous one, where one asks for it.
      domain: where its parameters must stay: `real`, or `simplex` for weights that sum to one. A technique is run on
        problems of its own domain alone.
      count_measures: by name, `counts -> scalar`: final measures of what a run has counted on its way.
      shift: `(batch, step) -> batch`: what becomes of a batch at a step, where the distribution changes in mid-run.
      about: one sentence for the report.
    """

    name: str
    init: Callable[[chex.PRNGKey], chex.ArrayTree]
    loss: LossFn
    train: Any
    test: Any
    batch_size: int | None
    num_steps: int
    measures: Mapping[str, Measure]
    final_measures: Mapping[str, Measure] = dataclasses.field(default_factory=dict)
    target: Target | None = None
    outputs: Callable[[Any, Any], chex.ArrayTree] | None = None
    output_loss: LossFn | None = None
    curvature_batch_size: int | None = None
    overlap: float = 0.25
    domain: str = "real"
    count_measures: Mapping[str, Callable[[Any], chex.Array]] = dataclasses.field(
        default_factory=dict
    )
    shift: Callable[[Any, chex.Array], Any] | None = None
    about: str = ""

    @property
    def num_examples(self) -> int | None:
        """The size of the training set, or None without data."""
        return None if self.train is None else len(jax.tree.leaves(self.train)[0])

    @property
    def steps_per_epoch(self) -> int:
        """The number of whole batches in the training set; 1 where a step takes everything."""
        if self.num_examples is None or self.batch_size is None:
            return 1
        return max(1, self.num_examples // self.batch_size)

    def replace(self, **changes: Any) -> "Problem":
        """Returns the same problem with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def measuring(self, *names: str) -> "Problem":
        """Returns the problem with these of its measures alone, on the curve and at the end."""
        return self.replace(
            measures={name: m for name, m in self.measures.items() if name in names},
            final_measures={name: m for name, m in self.final_measures.items() if name in names},
        )

    def steps(self, epochs: float) -> int:
        """Returns the number of steps that make so many epochs."""
        return math.ceil(epochs * self.steps_per_epoch)
