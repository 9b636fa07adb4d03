r"""How a step and the gradient after it agree, and what an agreement does to the logarithm of a scale.

For one scale of the whole tree, or one for each leaf: `map_scaled` tells them apart by the tree of the logarithms.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from optax_igr._core import hyperparameters, trees
from optax_igr.step_size import log_domain

SIGNALS = ("cosine", "sign", "product")
GRANULARITIES = ("tree", "leaf")


def scale_signal(
    signal: str,
    step: chex.ArrayTree,
    gradient: chex.ArrayTree,
    scale: hyperparameters.Scalar = 1.0,
) -> jax.Array:
    r"""Returns what moves the log-scale up: how far a step :math:`s\,u` and the next gradient point apart.

    :math:`-\langle s u, g \rangle` for `product`, its sign, or :math:`-\langle u, g \rangle / (\|u\| \|g\|)` for
    `cosine`.
    """
    alignment = -trees.inner_product(step, gradient)
    if signal == "sign":
        return jnp.sign(alignment)
    if signal == "cosine":
        return divide(
            divide(alignment, jnp.sqrt(trees.squared_norm(step))),
            jnp.sqrt(trees.squared_norm(gradient)),
        )
    return scale * alignment


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns the quotient, and zero for a zero denominator; its derivative is finite there too."""
    is_zero = denominator == 0
    return jnp.where(is_zero, 0, numerator / jnp.where(is_zero, 1, denominator))


def initial_log_scale(params: chex.ArrayTree, granularity: str) -> chex.ArrayTree:
    """Returns a zero for the tree, or one for each leaf."""
    if granularity == "tree":
        return jnp.zeros([], trees.scalar_dtype(params))
    return jax.tree.map(lambda p: jnp.zeros([], trees.scalar_dtype(p)), params)


def map_scaled(function: Any, log_scale: chex.ArrayTree, *tree: Any) -> chex.ArrayTree:
    """Maps `function(log_scale, *leaves)` over trees that have one scale, or one for each leaf."""
    if isinstance(log_scale, jax.Array):
        return jax.tree.map(lambda *leaves: function(log_scale, *leaves), *tree)
    return jax.tree.map(function, log_scale, *tree)


def next_log_scale(
    signal: str,
    log_scale: chex.ArrayTree,
    step: chex.ArrayTree,
    gradient: chex.ArrayTree,
    rate: hyperparameters.Scalar,
    decay: hyperparameters.Scalar,
    bounds: log_domain.Bounds | None,
    log_centre: chex.ArrayTree | None = None,
) -> chex.ArrayTree:
    """Returns the log-scale, or that of each leaf, after the gradient that followed a step.

    It decays towards `log_centre`, a tree like `log_scale`, or towards zero.
    """

    def moved(log_s, u, g, centre=None):
        signals = scale_signal(signal, u, g, jnp.exp(log_s))
        return log_domain.step(log_s, signals, rate, decay, bounds, centre)

    centres = () if log_centre is None else (log_centre,)
    if isinstance(log_scale, jax.Array):
        return moved(log_scale, step, gradient, *centres)
    return jax.tree.map(moved, log_scale, step, gradient, *centres)


def accumulated(
    past: chex.ArrayTree, updates: chex.ArrayTree, ema: hyperparameters.Scalar
) -> chex.ArrayTree:
    r"""Returns :math:`\sum_k \beta^k u_{t-k}`, in the dtypes of the sum so far."""
    return jax.tree.map(
        lambda x, u: jnp.asarray(ema, jnp.finfo(x.dtype).dtype) * x + u.astype(x.dtype),
        past,
        updates,
    )
