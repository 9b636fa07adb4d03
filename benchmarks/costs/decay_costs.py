"""What a decay of the weights' norms costs beside a plain gradient step, a spectral normalisation and an SVD.

Every step donates its parameters and its state, as training does. A decay that is refreshed every k-th step is timed at
a refresh and between refreshes; its cost is the mean over the k steps. Times are medians over rounds in which the steps
take turns, each as a ratio to the plain step of its own round. The measures of a record, as ratios to the plain step:

- `wall`: the time, the mean over the steps from one refresh to the next; `refresh_wall`: the same at a refresh;
- `flops`: of the compiled step, the mean from one refresh to the next;
- `expected_flops`: the plain step and the matrix products of the formula, where there is one;
- `state_copies`: bytes of the state / bytes of the parameters.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import optax_igr
from benchmarks.costs.compiling import compiled, num_bytes
from benchmarks.costs.timing import Progress, interleaved, median_ratio, seconds_of, silent
from benchmarks.engine.machine import environment
from benchmarks.engine.old_lines import STEP
from benchmarks.engine.records import Record
from benchmarks.problems.network import BATCH_SIZE, WIDTHS, network

LEARNING_RATE = 0.01
COEFFICIENT = 1e-3

PLAIN, SVD = "plain step", "decay by SVD"


class _Step(NamedTuple):
    name: str
    begin: Callable[[], tuple]
    run: Callable[..., tuple]
    flops: float
    interval: int
    products: int | None
    state_bytes: int


def recommended_interval(gram_steps: int, side: int, batch_size: int) -> int:
    r"""Returns how seldom a refresh must be for its products to add a twenty-fourth of a step.

    A refresh takes 2t products of :math:`2mn^2` operations for a layer, and a step :math:`6 B m n`, so the share is
    :math:`2tn / 3Bk` with the smaller side n and the batch size B: a twenty-fourth at :math:`k = 16tn / B`.
    """
    return max(1, math.ceil(16 * gram_steps * side / batch_size))


def measure(
    *,
    widths: Sequence[int] = WIDTHS,
    batch_size: int = BATCH_SIZE,
    rounds: int = 9,
    with_svd: bool = True,
    progress: Progress = silent,
) -> list[Record]:
    """Compiles, counts and times a step with each decay, and the peers'.

    Args:
      widths: of the fully connected network.
      batch_size: examples a step.
      rounds: how often each step is timed; the one with the SVD is timed once.
      with_svd: whether to take it at all.
      progress: told what is being done.
    """
    problem = network(widths, batch_size)
    interval = recommended_interval(2, max(widths[1:-1]), batch_size)
    schatten = optax_igr.add_schatten_decay
    decays = {
        "L2 decay": (schatten(COEFFICIENT), 1, 0),
        "spectral decay": (optax_igr.add_spectral_decay(COEFFICIENT), 1, None),
        **{
            f"Schatten decay t={t}": (schatten(COEFFICIENT, gram_steps=t), 1, 2 * t)
            for t in (1, 2, 3)
        },
        f"Schatten decay t=2 every {interval}": (
            schatten(COEFFICIENT, gram_steps=2, refresh_interval=interval),
            interval,
            4,
        ),
    }
    steps = []
    for name, (decay, every, products) in {PLAIN: (optax.identity(), 1, 0), **decays}.items():
        progress(f"compiling {name}")
        steps.append(_decayed_step(name, decay, every, products, problem))
    progress("compiling the peers")
    steps.append(_normalized_step(widths, problem.train))
    if with_svd:
        decay = optax.stateless(_decay_by_svd)
        steps.append(_decayed_step(SVD, decay, 1, None, problem))
    timed = {step.name: lambda step=step: _seconds(step) for step in steps}
    seconds = interleaved(timed, rounds, once=(SVD,), progress=progress)
    plain = steps[0]
    between = next(s for s in steps if s.name == "L2 decay").flops
    parameter_bytes = num_bytes(plain.begin()[0])
    one_product = sum(2 * m * n * min(m, n) for m, n in itertools.pairwise(widths))
    bases = [first for first, _ in seconds[PLAIN]]
    found, rows = environment(), []
    for step in steps:
        due, kept = (list(times) for times in zip(*seconds[step.name], strict=True))
        means = [
            (a + (step.interval - 1) * b) / step.interval for a, b in zip(due, kept, strict=True)
        ]
        # The compiler counts both branches of the refresh; between refreshes the step is that of L2 decay.
        flops = (step.flops + (step.interval - 1) * between) / step.interval
        measures = {
            "wall": median_ratio(means, bases),
            "refresh_wall": median_ratio(due, bases),
            "flops": flops / plain.flops,
            "state_copies": step.state_bytes / parameter_bytes,
        }
        if step.products is not None:
            share = step.products * one_product / step.interval / plain.flops
            measures["expected_flops"] = 1 + share
        rows.append(Record(step.name, STEP, problem.about, measures=measures, environment=found))
    return rows


def _decayed_step(name, decay, interval, products, problem):
    optimizer = optax.chain(decay, optax.sgd(LEARNING_RATE))
    begin = jax.jit(lambda: (params := problem.init(jax.random.key(0)), optimizer.init(params)))

    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(problem.loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return _compiled(name, step, begin, interval, products, problem.train)


def _decay_by_svd(updates, params):
    def add(update, weight):
        if weight.ndim < 2:
            return update
        left, values, right = jnp.linalg.svd(weight, full_matrices=False)
        return update + COEFFICIENT * values[0] * jnp.outer(left[:, 0], right[0])

    return jax.tree.map(add, updates, params)


class _Normalized(nnx.Module):
    """The same network, every layer in `nnx.SpectralNorm`."""

    def __init__(self, widths, rngs):
        self.layers = nnx.List(
            [
                nnx.SpectralNorm(nnx.Linear(m, n, rngs=rngs), n_steps=1, rngs=rngs)
                for m, n in itertools.pairwise(widths)
            ]
        )

    def __call__(self, x):
        for index, layer in enumerate(self.layers):
            # The power iteration runs at every step, as in training.
            x = layer(nnx.relu(x) if index else x, update_stats=True)
        return x


def _normalized_step(widths, batch):
    graphdef = nnx.split(nnx.eval_shape(lambda: _Normalized(widths, nnx.Rngs(0))), nnx.Param, ...)[
        0
    ]
    begin = jax.jit(lambda: nnx.split(_Normalized(widths, nnx.Rngs(0)), nnx.Param, ...)[1:])

    def step(params, rest, batch):
        def loss(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            logits = model(batch["x"])
            value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()
            return value, nnx.split(model, nnx.Param, ...)[2]

        gradient, rest = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient), rest

    return _compiled("nnx.SpectralNorm", step, begin, 1, None, batch)


def _compiled(name, step, begin, interval, products, batch):
    # Compiled from shapes: the arrays are made at every timing, as they are donated.
    params, state = jax.eval_shape(begin)
    program = compiled(step, params, state, batch, donate_argnums=(0, 1))

    def timed(params, state):
        return program.call(params, state, batch)

    return _Step(name, begin, timed, program.flops, interval, products, num_bytes(state))


def _seconds(step):
    """Returns the seconds of the first and of the second step from a fresh state: a refresh, and none."""
    # From a fresh state the first step is due for a refresh, and the second is not.
    carry = jax.block_until_ready(step.begin())
    times = []

    def advance():
        nonlocal carry
        carry = step.run(*carry)
        return carry

    for _ in range(1 if step.interval == 1 else 2):
        times.append(seconds_of(advance))
    return times[0], times[-1]
