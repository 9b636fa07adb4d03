"""Optimistix's minimisers as transforms: one of their steps an update, so that the engine can drive them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix


def minimiser_step(solver: optimistix.AbstractMinimiser) -> optax.GradientTransformationExtraArgs:
    """Makes a transform of one `step` of an Optimistix minimiser: one evaluation, whether it is accepted or not.

    It starts and steps as `optimistix.minimise` does, but never terminates: the runs are of a given length. Its state
    is a list of arrays: the tree around them names functions and meshes, which no loop can carry.
    """
    tags = frozenset()

    def begin(fn, params):
        # Of the loss, which the solver wants before it has seen one.
        dtype = jnp.result_type(float, *jax.tree.leaves(params))
        return solver.init(fn, params, None, {}, jax.ShapeDtypeStruct((), dtype), None, tags)

    def init(params):
        arrays = eqx.filter(begin(lambda p, args: (jnp.zeros([]), None), params), eqx.is_array)
        return jax.tree.leaves(arrays)

    def update(updates, state, params: Any = None, *, value_fn: Any = None, **extra):
        del updates, extra

        def fn(p, args):
            return value_fn(p), None

        # The arrays are carried; functions and meshes come from a fresh start, which is the same at every step.
        arrays, static = eqx.partition(begin(fn, params), eqx.is_array)
        state = eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), state), static)
        moved, state, _ = solver.step(fn, params, None, {}, state, tags)
        leaves = jax.tree.leaves(eqx.filter(state, eqx.is_array))
        return jax.tree.map(jnp.subtract, moved, params), leaves

    return optax.GradientTransformationExtraArgs(init, update)
