"""What an elementwise step costs where memory traffic is the limit: large, donated, and without a model.

The gradient is given, parameters and state are donated, and a step is the optimizer and the addition of its updates.
Passes are the bytes that the compiled kernels read and write / those of the parameters: a kernel that needs an array
again reads it again, and one that only waits for an array (`step_size/buffers.py`) counts as reading it. Times are
medians over rounds in which the steps take turns, each as a ratio to its baseline in the same round.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_igr

SIZE = 10_000_000
ROW = 1000
LEARNING_RATE = 1e-3
ADAM, SOFTMAX = "adam", "softmax"


class Step(NamedTuple):
    """An optimizer, or None for a softmax of the weights; what it is compared with; where its weights start."""

    make: Callable[[], optax.GradientTransformation] | None
    baseline: str = ADAM
    weight: float = 1 / ROW


@dataclasses.dataclass(frozen=True)
class ElementwiseCost:
    """The cost of one step.

    Attributes:
      name: the optimizer.
      baseline: what its time is compared with.
      ratio: median over rounds of the ratio of the times.
      milliseconds: median time of a step.
      passes: bytes that the kernels read and write / bytes of the parameters.
      temporaries: bytes of temporary memory / bytes of the parameters.
      state_copies: bytes of the state / bytes of the parameters.
      size: the number of parameters.
    """

    name: str
    baseline: str
    ratio: float
    milliseconds: float
    passes: float
    temporaries: float
    state_copies: float
    size: int


def _ending(*links: optax.GradientTransformation) -> Callable[[], optax.GradientTransformation]:
    *before, last = links
    return lambda: optax.chain(*before, optax.scale_by_learning_rate(LEARNING_RATE), last)


STEPS = {
    ADAM: Step(lambda: optax.adam(LEARNING_RATE)),
    "sgd": Step(lambda: optax.sgd(LEARNING_RATE)),
    "exponentiate": Step(_ending(optax_igr.exponentiate())),
    "exponentiate, log_state": Step(_ending(optax_igr.exponentiate(log_state=True))),
    "exponentiate_hypentropy": Step(_ending(optax_igr.exponentiate_hypentropy())),
    "exponentiate_signed": Step(_ending(optax_igr.exponentiate_signed())),
    "multiplicative adam": Step(_ending(optax.scale_by_adam(), optax_igr.exponentiate())),
    "eg_plus_minus": Step(
        lambda: optax_igr.eg_plus_minus(LEARNING_RATE, total=2.0, axis=-1), weight=0.0
    ),
    "scale_by_gain": Step(
        lambda: optax.chain(optax_igr.scale_by_gain(1e-3), optax.sgd(LEARNING_RATE))
    ),
    "egdd": Step(lambda: optax_igr.egdd(LEARNING_RATE)),
    "adapt_scale(adam)": Step(lambda: optax_igr.adapt_scale(optax.adam(LEARNING_RATE), 1e-2)),
    SOFTMAX: Step(None, SOFTMAX),
    "exponentiate_simplex": Step(_ending(optax_igr.exponentiate_simplex()), SOFTMAX),
    "exponentiate_simplex, log_state": Step(
        _ending(optax_igr.exponentiate_simplex(log_state=True)), SOFTMAX
    ),
}


def measure(
    names: Sequence[str] = tuple(STEPS),
    *,
    size: int = SIZE,
    rounds: int = 9,
    progress: Callable[[str], None] = lambda message: None,
) -> list[ElementwiseCost]:
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
    needed = {*names, *(STEPS[name].baseline for name in names)}
    gradient = jax.random.normal(jax.random.key(0), (-(-size // ROW), ROW), jnp.float32)
    running = {}
    for name in (name for name in STEPS if name in needed):
        progress(f"compiling {name}")
        running[name] = _Running(STEPS[name], gradient)
    for index in range(rounds):
        progress(f"timing, round {index + 1} of {rounds}")
        for step in running.values():
            step.run()
    return [step.cost(name, running[STEPS[name].baseline]) for name, step in running.items()]


def cells(costs: Sequence[ElementwiseCost]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the table."""
    head = ["step", "time ×", "of", "ms", "passes", "temporaries", "state copies"]
    rows = [
        [
            c.name,
            f"{c.ratio:.2f}",
            c.baseline,
            f"{c.milliseconds:.1f}",
            f"{c.passes:.1f}",
            f"{c.temporaries:.2f}",
            f"{c.state_copies:.1f}",
        ]
        for c in costs
    ]
    return head, rows


class _Running:
    """A compiled step, with the parameters and the state that it overwrites."""

    def __init__(self, step: Step, gradient: jax.Array):
        self.params: Any = jnp.full_like(gradient, step.weight)
        self.state: Any = ()
        self.gradient = gradient
        self.seconds: list[float] = []
        optimizer = step.make() if step.make else None
        if optimizer:
            self.state = optimizer.init(self.params)

        def train(params: Any, state: Any, gradient: jax.Array) -> tuple[Any, Any]:
            if optimizer is None:
                return jax.nn.softmax(params), state
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        arguments = self.params, self.state, gradient
        self.compiled = jax.jit(train, donate_argnums=(0, 1)).lower(*arguments).compile()

    def run(self) -> None:
        """Times the second of two steps: the first finds the caches and the pages that another step left."""
        began = 0.0
        for _ in range(2):
            began = time.perf_counter()
            self.params, self.state = self.compiled(self.params, self.state, self.gradient)
            jax.block_until_ready((self.params, self.state))
        self.seconds.append(time.perf_counter() - began)

    def cost(self, name: str, baseline: "_Running") -> ElementwiseCost:
        memory, analysis = self.compiled.memory_analysis(), self.compiled.cost_analysis()
        if memory is None or analysis is None:
            raise ValueError(f"the {jax.default_backend()} compiler gives no cost analysis.")
        pairs = list(zip(self.seconds, baseline.seconds, strict=True))
        num_bytes = self.gradient.nbytes
        return ElementwiseCost(
            name=name,
            baseline=STEPS[name].baseline,
            ratio=statistics.median(own / other for own, other in pairs),
            milliseconds=1e3 * statistics.median(own for own, _ in pairs),
            passes=analysis["bytes accessed"] / num_bytes,
            temporaries=memory.temp_size_in_bytes / num_bytes,
            state_copies=sum(x.nbytes for x in jax.tree.leaves(self.state)) / num_bytes,
            size=self.gradient.size,
        )
