"""What the demands of the contract share: the steps of an entry, its first three, and how closely two must agree."""

import dataclasses
import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from tests import problems, registry

X64 = jax.config.read("jax_enable_x64")
WIDEST = jnp.float64 if X64 else jnp.float32
DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32, *((jnp.float64,) if X64 else ()))
SHAPES = {"w": (2, 8), "b": (8,), "s": ()}
SHAPES_WITHOUT_SCALAR = {"w": (2, 8), "b": (8,)}

every_entry = pytest.mark.parametrize("entry", registry.ENTRIES, ids=str)
# For the demands that a second code path of the same transform cannot break.
every_transform = pytest.mark.parametrize(
    "entry", [entry for entry in registry.ENTRIES if not entry.variant], ids=str
)

every_wrapper = pytest.mark.parametrize(
    "entry", [e for e in registry.ENTRIES if e.place is registry.wrapper], ids=str
)


def params_of(entry, shapes=None, dtype=jnp.float32, seed=0):
    if shapes is None:
        shapes = SHAPES_WITHOUT_SCALAR if "scalar leaf" in entry.refuses else SHAPES
    return problems.parameters(entry.domain, shapes, dtype, seed)


def training_step(entry, optimizer, problem, **unknown):
    """Returns the step of a training loop that hands `update` what the entry needs."""

    def step(params, state):
        arguments = problem.extra_arguments(entry.needs) | unknown
        updates, state = optimizer.update(problem.gradient(params), state, params, **arguments)
        return optax.apply_updates(params, updates), state

    return step


def train(step, optimizer, params, num_steps):
    state = optimizer.init(params)
    for _ in range(num_steps):
        params, state = step(params, state)
    return params, state


def poisoned_step(entry, optimizer, problem, **unknown):
    """Returns a step whose loss is multiplied by a number, and which skips a non-finite update."""

    def step(params, state, factor):
        poisoned = dataclasses.replace(
            problem,
            outputs_fn=lambda p: jax.tree.map(lambda x: x * factor, problem.outputs_fn(p)),
        )
        arguments = poisoned.extra_arguments(entry.needs) | unknown
        updates, state = optimizer.update(poisoned.gradient(params), state, params, **arguments)
        finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(updates)]).all()
        skipped = jax.tree.map(lambda x: jnp.where(finite, x, 0), updates)
        return optax.apply_updates(params, skipped), state, finite

    return step


@dataclasses.dataclass(frozen=True)
class Run:
    """What the demands on one entry share, as every further program costs a compilation.

    Attributes:
      problem: the coupled waves of the entry's parameters.
      step: `(params, state, factor) -> (params, state, finite)`: a `poisoned_step`, compiled once and
        for all, with donated parameters and state and with unknown arguments of `update`.
      after: (params, state) after 0, 1, 2 and 3 steps.
    """

    problem: problems.Problem
    step: Callable
    after: list


@functools.cache
def plain_run(entry):
    optimizer = entry.optimizer()
    params = params_of(entry)
    problem = problems.coupled(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def donated(params, state, factor, key):
        step = poisoned_step(entry, optimizer, problem, key=key, unheard_of="anything")
        return step(params, state, factor)

    key = jax.random.key(0)
    after = [(params, optimizer.init(params))]
    compiled = donated.lower(*after[0], jnp.float32(1), key).compile()

    def step(params, state, factor=1):
        copies = jax.tree.map(jnp.copy, (params, state))
        return compiled(*copies, jnp.float32(factor), key)

    for _ in range(3):
        *stepped, finite = step(*after[-1])
        assert finite, "a good gradient gives a non-finite update"
        after.append(tuple(stepped))
    return Run(problem, step, after)


@functools.cache
def injected_step(entry):
    """Returns the optimizer under `inject_hyperparams`, and its step on the problem of `plain_run`."""
    inject = optax.inject_hyperparams(entry.transform, static_args=entry.static_args)
    optimizer = entry.optimizer(constructor=inject)
    return optimizer, jax.jit(training_step(entry, optimizer, plain_run(entry).problem))


def types(tree):
    """Shape, dtype, weak type and sharding of every leaf."""
    return jax.tree.map(jax.typeof, tree)


def assert_finite(tree):
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            assert jnp.isfinite(leaf).all(), tree


def assert_close_of(entry, found, expected):
    """To the rounding of another program for the same steps."""
    # Weights that sum to 40 are rounded like it, and a parameter is the difference of two.
    rounding = 1e-5 if "total" in entry.hyperparameters else 1e-6
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=rounding)


def assert_no_nan(tree):
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            assert not jnp.isnan(leaf).any(), tree
