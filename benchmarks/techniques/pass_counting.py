"""Optimizers that keep count of what they spend, and deterministic ones that share the runs of stochastic ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from benchmarks.problems.problem import Problem


class Spent(NamedTuple):
    """What one step, or all steps so far, took.

    Attributes:
      passes: over the data.
      pairs: that were offered to the memory.
      rejected: of these.
    """

    passes: chex.Numeric
    pairs: chex.Numeric = 0
    rejected: chex.Numeric = 0


class Metered(NamedTuple):
    """Where a run is measured: its parameters, and what it has spent."""

    params: Any
    spent: Spent


class MeteredState(NamedTuple):
    """The state of an optimizer, and what it has spent."""

    inner: optax.OptState
    spent: Spent


def metered(
    optimizer: optax.GradientTransformation, meter: Callable[[Any, Any], Spent]
) -> optax.GradientTransformationExtraArgs:
    """Adds up `meter(state before, state after)`."""
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return MeteredState(
            optimizer.init(params), Spent(*(jnp.zeros([], jnp.float32) for _ in Spent._fields))
        )

    def update(updates, state, params: Any = None, **extra):
        updates, inner = optimizer.update(updates, state.inner, params, **extra)
        spent = jax.tree.map(jnp.add, state.spent, Spent(*meter(state.inner, inner)))
        return updates, MeteredState(inner, jax.tree.map(jnp.float32, spent))

    return optax.GradientTransformationExtraArgs(init, update)


def with_meters(problem: Problem) -> Problem:
    """Lets the measures of a problem take what `metered` runs are measured at, and adds what they have spent."""

    def params_of(point):
        return point.params if isinstance(point, Metered) else point

    def wrapped(measures):
        found = {
            name: lambda point, train, test, fn=fn: fn(params_of(point), train, test)
            for name, fn in measures.items()
        }
        return found | {
            name: lambda point, train, test, i=i: (
                point.spent[i] if isinstance(point, Metered) else jnp.nan
            )
            for i, name in enumerate(Spent._fields)
        }

    return problem.replace(
        measures=wrapped(problem.measures), final_measures=wrapped(problem.final_measures)
    )


def on_full_batch_every(
    interval: int, optimizer: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Lets a deterministic optimizer take a step on all examples every so many steps of the others."""
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return jnp.zeros([], jnp.int32), optimizer.init(params)

    def update(updates, state, params: Any = None, *, full_value_fn: Any = None, **extra):
        del extra
        count, inner = state

        def step():
            value, grad = jax.value_and_grad(full_value_fn)(params)
            return optimizer.update(
                grad, inner, params, value=value, grad=grad, value_fn=full_value_fn
            )

        def wait():
            return jax.tree.map(jnp.zeros_like, updates), inner

        updates, inner = jax.lax.cond(count % interval == 0, step, wait)
        return updates, (count + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)
