r"""What holds the first steps of an optimizer back, and a step that is long for its parameters.

Along an update u the quadratic model has its minimiser at the scale :math:`|u^\top g| / |u^\top H u|`. Two things make
that too large. The batch that made u finds it steeper than the next one will, by the noise in g. And momentum goes on
along u for many steps. So all measurements but the first look along the way of the steps so far, from a batch that it
does not know: on this one the slope is that of the whole loss, in the mean, and what momentum adds is part of the way.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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


class Measurements(NamedTuple):
    """How many there have been, and the sums of the slopes and of the curvatures along unit directions."""

    count: jax.Array
    slope: jax.Array
    curvature: jax.Array


def no_measurements(dtype: jnp.dtype) -> Measurements:
    """Returns the measurements before the first one."""
    return Measurements(jnp.zeros([], jnp.int32), jnp.zeros([], dtype), jnp.zeros([], dtype))


def measured_log_scale(
    value_fn: Any,
    params: Any,
    updates: chex.ArrayTree,
    way: chex.ArrayTree,
    gradient: chex.ArrayTree,
    log_scale: chex.ArrayTree,
    measurements: Measurements,
) -> tuple[chex.ArrayTree, Measurements]:
    r"""Returns the logarithm of :math:`|\sum d^\top g| / (\|v\| \sum |d^\top H d|)`, and the sums so far.

    At first v is the update, then the way so far, and :math:`d = v / \|v\|`. Where the curvature is negative its size
    is still a measure of the length over which the gradient changes. Where nothing can be measured all stays.
    """
    is_first = measurements.count == 0
    along = jax.tree.map(
        lambda u, w: jnp.where(is_first, u.astype(w.dtype), w), updates, trees.widen(way)
    )
    direction, distance = trees.unit(along)
    model = cauchy.quadratic_model(value_fn, params, direction, gradient)
    # The batch of the first one made the direction too, and finds it too steep: the next one starts the sums afresh.
    is_fresh = measurements.count > 1
    slope = jnp.where(is_fresh, measurements.slope, 0) + model.slope
    curvature = jnp.where(is_fresh, measurements.curvature, 0) + jnp.abs(model.curvature)
    measured = jnp.log(jnp.abs(slope)) - jnp.log(curvature) - jnp.log(distance)
    is_measured = jnp.isfinite(measured)
    measured = jnp.clip(measured, -log_domain.LIMIT, log_domain.LIMIT)
    found = Measurements(measurements.count + 1, slope, curvature)
    return (
        jax.tree.map(
            lambda log_s: jnp.where(is_measured, measured.astype(log_s.dtype), log_s), log_scale
        ),
        jax.tree.map(
            lambda new, old: jnp.where(is_measured, new, old).astype(old.dtype), found, measurements
        ),
    )


def measured(
    measure: Callable[[chex.ArrayTree, Measurements], tuple[chex.ArrayTree, Measurements]],
    log_scale: chex.ArrayTree,
    count: jax.Array,
    measurements: Measurements,
    is_usable: jax.Array,
    warmup_steps: int,
) -> tuple[chex.ArrayTree, Measurements]:
    """Returns the log-scale and the measurements, after one more if it is time for it.

    Under vmap whether a gradient is usable differs from run to run, and its branch becomes a select; the count of
    updates does not, and spares the later steps the product.
    """

    def wait():
        return log_scale, measurements

    return jax.lax.cond(
        count < ATTEMPTS + warmup_steps,
        lambda: jax.lax.cond(
            (measurements.count < warmup_steps) & is_usable,
            lambda: measure(log_scale, measurements),
            wait,
        ),
        wait,
    )


def ramp(count: jax.Array, measured_count: jax.Array, warmup_steps: int) -> jax.Array:
    """Returns the fraction of the measured length that a step takes: it grows to one with the last measurement.

    Without it heavy ball on batches of eight is lost before the second measurement.
    """
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
