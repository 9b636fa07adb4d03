"""A field given on the floating and complex leaves of a tree, as a field of the whole tree."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from optax_igr._core import trees

Field = Callable[[chex.ArrayTree], chex.ArrayTree]


def on_whole_tree(
    name: str,
    velocity_fn: Callable[
        [chex.ArrayTree, Callable[[chex.ArrayTree], chex.ArrayTree]], chex.ArrayTree
    ],
) -> Field:
    """Makes a field in which every leaf that is not a real or complex number stands still.

    Args:
      name: the public name of the field, for errors.
      velocity_fn: takes the parameters with `None` in the place of the other leaves, and the
        function that puts them back; returns the velocity of the leaves that are left.

    Returns:
      A function from the whole tree to its velocity.
    """

    def field(params):
        params = jax.tree.map(jnp.asarray, params)
        selected, fill = trees.select(name, params)
        return still_elsewhere(velocity_fn(selected, fill), params)

    return field


def still_elsewhere(velocity: chex.ArrayTree, params: chex.ArrayTree) -> chex.ArrayTree:
    """Puts zeros, of each leaf's own dtype, in the place of every `None` of `velocity`."""
    return jax.tree.map(
        lambda v, p: jnp.zeros_like(p) if v is None and p is not None else v,
        velocity,
        params,
        is_leaf=lambda x: x is None,
    )
