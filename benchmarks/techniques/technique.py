"""What a technique is: an optimizer by name, as data, with the grid that its settings are searched on."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import optax

from benchmarks.problems.problem import Problem

Scalar = float | jax.Array
Settings = Mapping[str, Any]

# What every step has at no cost: its gradient is taken anyway.
BASIC = ("value", "grad", "value_fn")

SGD_RATES = tuple(0.005 * 2.5**k for k in range(8))
ADAM_RATES = tuple(3e-4 * 3.0**k for k in range(8))

# The parts of a batch that techniques on micro-batches see.
NUM_MICROBATCHES = 4


class Plan(NamedTuple):
    """The length of a run: what schedules and intervals are made from.

    Attributes:
      num_steps: of the run.
      steps_per_epoch: of one pass over the training set.
    """

    num_steps: int
    steps_per_epoch: int = 1

    @classmethod
    def of(cls, problem: Problem, num_steps: int | None = None) -> "Plan":
        """Returns the plan of a run on a problem; None takes the problem's own length."""
        return cls(num_steps or problem.num_steps, problem.steps_per_epoch)


class Spent(NamedTuple):
    """What a step took of the data, for comparisons at equal passes.

    Attributes:
      passes: gradients on every example. A Hessian-vector product counts as two, a Gauss-Newton-vector product as 4/3
        and a loss alone as 1/3: their multiplications of matrices.
      pairs: that were offered to a quasi-Newton memory.
      rejected: of these.
    """

    passes: chex.Numeric
    pairs: chex.Numeric = 0
    rejected: chex.Numeric = 0


def _last_params(state: optax.OptState, params: chex.ArrayTree) -> chex.ArrayTree:
    del state
    return params


@dataclasses.dataclass(frozen=True)
class Technique:
    """An optimizer by name.

    Attributes:
      name: on the command line and in the records.
      make: `(*settings, plan) -> transform`; with one setting, `(learning_rate, plan) -> transform`.
      grid: the values of the setting that sweeps try; tuples of values where there are several settings.
      about: a few words for the list of techniques.
      settings: the names of what `make` takes before the plan.
      eval_params: `(state, params) -> params` at which the run is measured.
      extra_arguments: what the runner passes to `update`; peers refuse what they do not know.
      period: the number of steps, or a function of the plan, after which the cost of a step repeats, where not every
        step costs the same: gradients are counted over a whole period.
      deterministic: it compares losses of different steps, and is left out where these see different batches.
      domain: of the parameters: `real`, or `simplex`; see `Problem.domain`.
      spent: `(state before, state after, plan) -> Spent` of one step. Without it the passes are counted by
        `engine.gradient_counts`, which sees the first steps alone.
    """

    name: str
    make: Callable[..., optax.GradientTransformation]
    grid: Sequence[Any]
    about: str
    settings: Sequence[str] = ("learning_rate",)
    eval_params: Callable[[optax.OptState, chex.ArrayTree], Any] = _last_params
    extra_arguments: Sequence[str] = BASIC
    period: int | Callable[[Plan], int] = 1
    deterministic: bool = False
    domain: str = "real"
    spent: Callable[[Any, Any, Plan], Spent] | None = None

    def transform(self, settings: Settings, plan: Plan) -> optax.GradientTransformationExtraArgs:
        """Makes the transform of one run."""
        values = [settings[name] for name in self.settings]
        return optax.with_extra_args_support(self.make(*values, plan))

    def named_settings(self, value: Any) -> dict[str, Any]:
        """Returns a value of the grid by the names of the settings.

        Raises:
          ValueError: where the grid has another number of values than there are settings.
        """
        values = tuple(value) if isinstance(value, tuple | list) else (value,)
        if len(values) != len(self.settings):
            raise ValueError(
                f"{self.name} has the settings {', '.join(self.settings)}; {value!r} is not a value of each."
            )
        return dict(zip(self.settings, map(float, values), strict=True))

    def at_rates(self, rates: Sequence[float]) -> list[Any]:
        """Returns the grid with other learning rates; other settings keep their values.

        Raises:
          ValueError: where there are several settings and none is a learning rate.
        """
        if len(self.settings) == 1:
            # The one setting is searched like a rate, whatever it means: a strength, a multiple.
            return list(rates)
        if "learning_rate" not in self.settings:
            raise ValueError(f"{self.name} has no learning rate, but {', '.join(self.settings)}.")
        place = list(self.settings).index("learning_rate")
        others = dict.fromkeys((v[:place], v[place + 1 :]) for v in map(tuple, self.grid))
        return [(*before, rate, *after) for rate in rates for before, after in others]

    def period_in(self, plan: Plan) -> int:
        """Returns the period in a run of this plan."""
        return self.period(plan) if callable(self.period) else self.period


def decayed(learning_rate: Scalar, plan: Plan) -> optax.Schedule:
    """Returns the schedule of the decayed techniques: a half cosine from the rate down to zero."""
    return optax.cosine_decay_schedule(learning_rate, plan.num_steps)
