"""What an elementwise step costs where memory traffic is the limit: large, donated, and without a model.

The gradient is given, parameters and state are donated, and a step is the optimizer and the addition of its updates.
Passes are the bytes that the compiled kernels read and write / those of the parameters: a kernel that needs an array
again reads it again, and one that only waits for an array counts as reading it. Times are medians over rounds in which
the steps take turns, each as a ratio to its baseline in the same round. The measures of a record:

- `baseline`: what its time is compared with; `ratio`: the ratio of the times; `milliseconds`: the time of a step;
- `passes`, `temporaries`, `state_copies`: bytes that the kernels access, bytes of temporary memory and bytes of the
  state / bytes of the parameters;
- `size`: the number of parameters.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_igr
from benchmarks.costs.compiling import compiled, num_bytes
from benchmarks.costs.timing import Progress, interleaved, median_ratio, seconds_of, silent
from benchmarks.engine.machine import environment
from benchmarks.engine.old_lines import STEP
from benchmarks.engine.records import Record

SIZE = 10_000_000
ROW = 1000
LEARNING_RATE = 1e-3
ADAM, SOFTMAX = "adam", "softmax"


class ElementwiseStep(NamedTuple):
    """An optimizer, or None for a softmax of the weights; what it is compared with; where its weights start."""

    make: Callable[[], optax.GradientTransformation] | None
    baseline: str = ADAM
    weight: float = 1 / ROW


def _ending(*links: optax.GradientTransformation) -> Callable[[], optax.GradientTransformation]:
    *before, last = links
    return lambda: optax.chain(*before, optax.scale_by_learning_rate(LEARNING_RATE), last)


STEPS = {
    ADAM: ElementwiseStep(lambda: optax.adam(LEARNING_RATE)),
    "sgd": ElementwiseStep(lambda: optax.sgd(LEARNING_RATE)),
    "exponentiate": ElementwiseStep(_ending(optax_igr.exponentiate())),
    "exponentiate, log_state": ElementwiseStep(_ending(optax_igr.exponentiate(log_state=True))),
    "exponentiate_hypentropy": ElementwiseStep(_ending(optax_igr.exponentiate_hypentropy())),
    "exponentiate_signed": ElementwiseStep(_ending(optax_igr.exponentiate_signed())),
    "multiplicative adam": ElementwiseStep(
        _ending(optax.scale_by_adam(), optax_igr.exponentiate())
    ),
    "eg_plus_minus": ElementwiseStep(
        lambda: optax_igr.eg_plus_minus(LEARNING_RATE, total=2.0, axis=-1), weight=0.0
    ),
    "scale_by_gain": ElementwiseStep(
        lambda: optax.chain(optax_igr.scale_by_gain(1e-3), optax.sgd(LEARNING_RATE))
    ),
    "egdd": ElementwiseStep(lambda: optax_igr.egdd(LEARNING_RATE)),
    "adapt_scale(adam)": ElementwiseStep(
        lambda: optax_igr.adapt_scale(optax.adam(LEARNING_RATE), 1e-2)
    ),
    SOFTMAX: ElementwiseStep(None, SOFTMAX),
    "exponentiate_simplex": ElementwiseStep(_ending(optax_igr.exponentiate_simplex()), SOFTMAX),
    "exponentiate_simplex, log_state": ElementwiseStep(
        _ending(optax_igr.exponentiate_simplex(log_state=True)), SOFTMAX
    ),
}


def measure(
    names: Sequence[str] = tuple(STEPS),
    *,
    size: int = SIZE,
    rounds: int = 9,
    progress: Progress = silent,
) -> list[Record]:
    """Compiles and times one step of each optimizer, and of the baselines.

    Args:
      names: keys of `STEPS`.
      size: the number of parameters, in float32; rounded up to rows of a thousand.
      rounds: how often each step is timed.
      progress: told what is being done.

    Raises:
      ValueError: for a name that is not there.
    """
    unknown = sorted(set(names) - STEPS.keys())
    if unknown:
        raise ValueError(f"no elementwise step {unknown[0]!r}; there are {', '.join(STEPS)}.")
    # A ratio needs its baseline in the same rounds.
    needed = {*names, *(STEPS[name].baseline for name in names)}
    # Rows, so that a simplex has an axis to sum along.
    gradient = jax.random.normal(jax.random.key(0), (-(-size // ROW), ROW), jnp.float32)
    running = {}
    for name in (name for name in STEPS if name in needed):
        progress(f"compiling {name}")
        running[name] = _Running(STEPS[name], gradient)
    seconds = interleaved(
        {name: step.seconds for name, step in running.items()}, rounds, progress=progress
    )
    found = environment()
    rows = []
    for name, step in running.items():
        base = STEPS[name].baseline
        measures = {
            "baseline": base,
            "ratio": median_ratio(seconds[name], seconds[base]),
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            **step.figures(),
        }
        rows.append(Record(name, STEP, measures=measures, environment=found))
    return rows


class _Running:
    """A compiled step, with the parameters and the state that it overwrites."""

    def __init__(self, step: ElementwiseStep, gradient: jax.Array):
        self.params: Any = jnp.full_like(gradient, step.weight)
        self.state: Any = ()
        self.gradient = gradient
        optimizer = step.make() if step.make else None
        if optimizer:
            self.state = optimizer.init(self.params)

        def train(params: Any, state: Any, gradient: jax.Array) -> tuple[Any, Any]:
            if optimizer is None:
                return jax.nn.softmax(params), state
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        self.program = compiled(train, self.params, self.state, gradient, donate_argnums=(0, 1))

    def _step(self) -> Any:
        self.params, self.state = self.program.call(self.params, self.state, self.gradient)
        return self.params, self.state

    def seconds(self) -> float:
        """Times the second of two steps: the first finds the caches and the pages that another step left."""
        jax.block_until_ready(self._step())
        return seconds_of(self._step)

    def figures(self) -> dict[str, float]:
        """Returns what is known without a clock."""
        of_parameters = num_bytes(self.gradient)
        return {
            "passes": self.program.accessed / of_parameters,
            "temporaries": self.program.temporaries / of_parameters,
            "state_copies": num_bytes(self.state) / of_parameters,
            "size": self.gradient.size,
        }
