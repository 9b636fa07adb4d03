r"""What holds the first steps of an optimizer back, and a step that is long for its parameters.

Along the inner optimizer's own update u the quadratic model has its minimiser at the length
:math:`|u^\top g| / |u^\top H u|`. One batch may miss that by a factor of ten, so it can be taken as the least of
several, while the steps grow up to it.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from optax_igr._core import trees
from optax_igr.step_size import cauchy, log_domain
from optax_igr.step_size.alignment import map_scaled

# The root mean square below which weights count as this large, so that zero weights can move (as in Adafactor).
RMS_FLOOR = 1e-2

# The updates, beside those that are measured, among which one may be zero or broken before measuring ends.
ATTEMPTS = 99

# How far the length of a step may exceed the longest one before it, once the first ones have been measured.
GROWTH = 1.1


def measured_log_scale(
    value_fn: Any,
    params: Any,
    updates: chex.ArrayTree,
    gradient: chex.ArrayTree,
    log_scale: chex.ArrayTree,
    measured_count: jax.Array,
) -> tuple[chex.ArrayTree, jax.Array]:
    r"""Returns the logarithm of :math:`|u^\top g| / |u^\top H u|`, or of what was found before where that is less.

    And the number of lengths found. Where the curvature is negative its size is still a measure of the length over
    which the gradient changes.
    """
    direction, length = trees.unit(updates)
    model = cauchy.quadratic_model(value_fn, params, direction, gradient)
    scale = jnp.abs(model.slope / model.curvature) / length
    is_measured = jnp.isfinite(scale) & (scale > 0)
    measured = jnp.log(jnp.where(is_measured, scale, 1))
    measured = jnp.clip(measured, -log_domain.LIMIT, log_domain.LIMIT)

    def chosen(log_s):
        new = measured.astype(log_s.dtype)
        new = jnp.where(measured_count > 0, jnp.minimum(log_s, new), new)
        return jnp.where(is_measured, new, log_s)

    return jax.tree.map(chosen, log_scale), measured_count + is_measured.astype(jnp.int32)


def measured(
    measure: Callable[[chex.ArrayTree, jax.Array], tuple[chex.ArrayTree, jax.Array]],
    log_scale: chex.ArrayTree,
    count: jax.Array,
    measured_count: jax.Array,
    is_usable: jax.Array,
    warmup_steps: int,
) -> tuple[chex.ArrayTree, jax.Array]:
    """Returns the log-scale and the number of lengths found, after one more measurement if it is time for it.

    Under vmap whether a gradient is usable differs from run to run, and its branch becomes a select; the count of
    updates does not, and spares the later steps the product.
    """

    def wait():
        return log_scale, measured_count

    return jax.lax.cond(
        count < ATTEMPTS + warmup_steps,
        lambda: jax.lax.cond(
            (measured_count < warmup_steps) & is_usable,
            lambda: measure(log_scale, measured_count),
            wait,
        ),
        wait,
    )


def ramp(count: jax.Array, measured_count: jax.Array, warmup_steps: int) -> jax.Array:
    """Returns the fraction of the measured length that a step takes: it grows to one with the last measurement."""
    fraction = jnp.clip(measured_count / warmup_steps, 1 / warmup_steps, 1)
    return jnp.where(count < ATTEMPTS + warmup_steps, fraction, 1)


def log_length(log_scale: chex.ArrayTree, updates: chex.ArrayTree) -> jax.Array:
    r"""Returns :math:`\log \|s u\|` over the whole tree; it is minus infinity for zero updates."""
    # Relative to the largest scale, so that no square overflows.
    largest = functools.reduce(jnp.maximum, jax.tree.leaves(log_scale), -log_domain.LIMIT)
    norms = map_scaled(
        lambda log_s, u: jnp.exp(log_s - largest) * jnp.sqrt(trees.squared_norm(u)),
        log_scale,
        updates,
    )
    return jnp.log(jnp.sqrt(trees.squared_norm(norms))) + largest


def limited_log_scale(
    log_scale: chex.ArrayTree, updates: chex.ArrayTree, limit: jax.Array
) -> chex.ArrayTree:
    r"""Returns the log-scale for which :math:`\|s u\|` is at most `limit`."""
    excess = log_length(log_scale, updates) - jnp.log(limit)
    excess = jnp.where(jnp.isfinite(excess), jnp.maximum(excess, 0), 0)
    return jax.tree.map(
        lambda log_s: jnp.maximum(log_s - excess.astype(log_s.dtype), -log_domain.LIMIT), log_scale
    )


def reach(params: Any) -> jax.Array:
    r"""Returns :math:`\|\theta\|`, of which a relative update is a fraction, with its floor for small weights."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return jnp.sqrt(jnp.maximum(trees.squared_norm(params), size * RMS_FLOOR**2))
