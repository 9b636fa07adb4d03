r"""How a step and the gradient after it agree, and what an agreement does to the logarithm of a scale.

There is one scale for the whole tree, or one for each leaf. `map_scaled` tells them apart by the tree of the
logarithms.
"""

from typing import Any, Literal, get_args

import chex
import jax
import jax.numpy as jnp

from optax_igr._core import hyperparameters, paths, trees
from optax_igr.step_size import _log_domain
from optax_igr.step_size._quadratic_model import divide

Signal = Literal["cosine", "sign", "product"]
Granularity = Literal["tree", "leaf"]
SIGNALS: tuple[str, ...] = get_args(Signal)
GRANULARITIES: tuple[str, ...] = get_args(Granularity)


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
        # One norm after the other: the product of both may overflow.
        return divide(
            divide(alignment, trees.norm(step)),
            trees.norm(gradient),
        )
    return scale * alignment


def initial_log_scale(params: chex.ArrayTree, granularity: str) -> chex.ArrayTree:
    """Returns a zero for the tree, or one for each leaf."""
    if granularity == "tree":
        return jnp.zeros([], trees.scalar_dtype(params))
    # Without boxes, which say how an array is laid out over devices: that does not fit a number.
    return jax.tree.map(lambda p: jnp.zeros([], trees.scalar_dtype(p)), paths.unboxed(params))


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
    bounds: _log_domain.Bounds | None,
    log_center: chex.ArrayTree | None = None,
) -> chex.ArrayTree:
    """Returns the log-scale, or that of each leaf, after the gradient that followed a step.

    It decays towards `log_center`, a tree like `log_scale`, or towards zero.
    """

    def moved(log_s, u, g, center=None):
        signals = scale_signal(signal, u, g, jnp.exp(log_s))
        return _log_domain.step(log_s, signals, rate, decay, bounds, center)

    centers = () if log_center is None else (log_center,)
    if isinstance(log_scale, jax.Array):
        return moved(log_scale, step, gradient, *centers)
    return jax.tree.map(moved, log_scale, step, gradient, *centers)


def accumulated(
    past: chex.ArrayTree, updates: chex.ArrayTree, ema: hyperparameters.Scalar
) -> chex.ArrayTree:
    r"""Returns :math:`\sum_k \beta^k u_{t-k}`, in the dtypes of the sum so far."""
    return jax.tree.map(
        lambda x, u: jnp.asarray(ema, jnp.finfo(x.dtype).dtype) * x + u.astype(x.dtype),
        past,
        updates,
    )
