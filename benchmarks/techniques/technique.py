"""What a technique is: an optimizer by name, as data, with the grid that its rate is searched on."""

import dataclasses
from collections.abc import Callable, Sequence

import chex
import jax
import optax

Scalar = float | jax.Array
Factory = Callable[[Scalar, int], optax.GradientTransformation]

BASIC = ("value", "grad", "value_fn")

SGD_RATES = tuple(0.005 * 2.5**k for k in range(8))
# The parts of a batch that techniques on micro-batches see.
NUM_MICROBATCHES = 4

ADAM_RATES = tuple(3e-4 * 3.0**k for k in range(8))


@dataclasses.dataclass(frozen=True)
class Technique:
    """An optimizer by name.

    Attributes:
      name: the name on the command line and in the records.
      make: `(learning_rate, num_steps) -> transform`.
      learning_rates: the grid of the sweeps.
      about: a few words for the list of techniques.
      eval_params: `(state, params) -> params` at which the run is measured.
      extra_arguments: what the runner passes to `update`; peers refuse what they do not know.
      period: the number of steps, or a function of that of the run, after which the cost of a step repeats, where not
        every step costs the same: gradients are counted over a whole period.
      deterministic: it compares losses of different steps, and is left out where these see different batches.
    """

    name: str
    make: Factory
    learning_rates: Sequence[float]
    about: str
    eval_params: Callable[[optax.OptState, chex.ArrayTree], chex.ArrayTree] = lambda state, params: (
        params
    )
    extra_arguments: Sequence[str] = BASIC
    period: int | Callable[[int], int] = 1
    deterministic: bool = False

    def period_of(self, num_steps: int) -> int:
        """Returns the period in a run of this length."""
        return self.period(num_steps) if callable(self.period) else self.period


def decayed(learning_rate: Scalar, num_steps: int) -> optax.Schedule:
    """Returns the schedule of the decayed techniques: a half cosine from the rate down to zero."""
    return optax.cosine_decay_schedule(learning_rate, num_steps)
