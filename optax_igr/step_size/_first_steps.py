r"""How long the first steps of an optimizer may be, and a step that is long for its parameters.

Along a direction v the quadratic model has its minimizer at the scale :math:`|v^\top g| / |v^\top H v|`. Measured along
the update of one batch, that is too large for two reasons:

- The batch that made the update finds it steeper than the next batch will, by the noise in g.
- Momentum goes on along an update for many steps.

So the first measurement alone looks along the update. The later ones look along the displacement of the steps so far,
from a batch that has not made it. There the slope is that of the whole loss in the mean, and what momentum adds is part
of the displacement.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from optax_igr._core import control_flow, derivatives, hyperparameters, trees
from optax_igr.step_size import _log_domain
from optax_igr.step_size._alignment import map_scaled
from optax_igr.step_size._quadratic_model import quadratic_model

# Weights whose root mean square is below this count as this large, so that zero weights can move (as in Adafactor).
RMS_FLOOR = 1e-2

# How many of the first updates may be zero or broken before the search for something to measure ends.
ATTEMPTS = 99

# How far a step may exceed the longest one before it once the first ones have been measured. Momentum amplifies a step
# tenfold before the first cosine can tell that it is too long.
GROWTH = 1.1


class Measurements(NamedTuple):
    """How many there have been, and the sums of the slopes and of the curvatures along unit directions."""

    count: jax.Array
    slope: jax.Array
    curvature: jax.Array


def no_measurements(dtype: jnp.dtype) -> Measurements:
    """Returns the measurements before the first one."""
    return Measurements(jnp.zeros([], jnp.int32), jnp.zeros([], dtype), jnp.zeros([], dtype))


def minimizing_log_scale(
    value_fn: Any,
    params: Any,
    updates: chex.ArrayTree,
    displacement: chex.ArrayTree,
    gradient: chex.ArrayTree,
    log_scale: chex.ArrayTree,
    measurements: Measurements,
    *,
    hvp: derivatives.Mode = "auto",
    radius: hyperparameters.Scalar | None = None,
    name: str,
) -> tuple[chex.ArrayTree, Measurements]:
    r"""Returns the logarithm of :math:`|\sum d^\top g| / (\|v\| \sum |d^\top H d|)`, and the sums so far.

    At first v is the update, then the displacement so far, and :math:`d = v / \|v\|`. Where the curvature is negative
    its size still tells over which length the gradient changes. Where nothing can be measured all stays.
    """
    is_first = measurements.count == 0
    along = jax.tree.map(
        lambda u, w: jnp.where(is_first, u.astype(w.dtype), w), updates, trees.widen(displacement)
    )
    direction, distance = trees.unit(along)
    model = quadratic_model(
        value_fn, params, direction, gradient, hvp=hvp, radius=radius, name=name
    )
    # The first measurement is biased: the same batch chose the direction. Later sums leave it out.
    has_unbiased = measurements.count > 1
    slope = jnp.where(has_unbiased, measurements.slope, 0) + model.slope
    curvature = jnp.where(has_unbiased, measurements.curvature, 0) + jnp.abs(model.curvature)
    # One logarithm for each factor: their quotient may overflow.
    log_minimizer = _log(jnp.abs(slope)) - _log(curvature) - _log(distance)
    is_measured = jnp.isfinite(log_minimizer)
    log_minimizer = jnp.clip(log_minimizer, -_log_domain.LIMIT, _log_domain.LIMIT)
    sums = Measurements(measurements.count + 1, slope, curvature)
    return (
        jax.tree.map(
            lambda log_s: jnp.where(is_measured, log_minimizer.astype(log_s.dtype), log_s),
            log_scale,
        ),
        jax.tree.map(
            lambda new, old: jnp.where(is_measured, new, old).astype(old.dtype), sums, measurements
        ),
    )


def measure_if_due(
    measure: Callable[[chex.ArrayTree, Measurements], tuple[chex.ArrayTree, Measurements]],
    log_scale: chex.ArrayTree,
    count: jax.Array,
    measurements: Measurements,
    is_usable: jax.Array,
    num_measured: int,
) -> tuple[chex.ArrayTree, Measurements]:
    """Returns the log-scale and the measurements, after one more if it is time for it.

    Under `vmap` each run has its own answer to whether a gradient is usable, and a branch on that becomes a selection
    of two computed results. The count of updates is the same in all runs. The branch on it stays one and spares the
    later steps the product.
    """

    def wait():
        return log_scale, measurements

    return control_flow.cond(
        count < ATTEMPTS + num_measured,
        lambda: control_flow.cond(
            (measurements.count < num_measured) & is_usable,
            lambda: measure(log_scale, measurements),
            wait,
        ),
        wait,
    )


def ramp(count: jax.Array, measured_count: jax.Array, num_measured: int) -> jax.Array:
    """Returns the fraction of the measured length that a step takes: it grows to one with the last measurement.

    Without it heavy ball on batches of eight is lost before the second measurement.
    """
    fraction = jnp.clip(measured_count / num_measured, 1 / num_measured, 1)
    return jnp.where(count < ATTEMPTS + num_measured, fraction, 1)


def log_length(log_scale: chex.ArrayTree, updates: chex.ArrayTree) -> jax.Array:
    r"""Returns :math:`\log \|s u\|` over the whole tree; it is minus infinity for zero updates."""
    # Relative to the largest scale, so that no square overflows.
    largest = functools.reduce(jnp.maximum, jax.tree.leaves(log_scale), -_log_domain.LIMIT)
    norms = map_scaled(
        lambda log_s, u: jnp.exp(log_s - largest) * trees.norm(u),
        log_scale,
        updates,
    )
    return _log(trees.norm(norms)) + largest


def limited_log_scale(
    log_scale: chex.ArrayTree, updates: chex.ArrayTree, limit: jax.Array
) -> chex.ArrayTree:
    r"""Returns the log-scale for which :math:`\|s u\|` is at most `limit`."""
    excess = log_length(log_scale, updates) - jnp.log(limit)
    excess = jnp.where(jnp.isfinite(excess), jnp.maximum(excess, 0), 0)
    return jax.tree.map(
        lambda log_s: jnp.maximum(log_s - excess.astype(log_s.dtype), -_log_domain.LIMIT), log_scale
    )


def grown_length_limit(longest_step: jax.Array) -> jax.Array:
    """Returns how long a step may be after the longest one so far; without one there is no limit."""
    return jnp.where(longest_step > 0, GROWTH * longest_step, jnp.inf)


def remembered(
    center: chex.ArrayTree,
    longest_step: jax.Array,
    log_scale: chex.ArrayTree,
    updates: chex.ArrayTree,
    is_measured_now: jax.Array,
    is_measured_in_full: jax.Array,
) -> tuple[chex.ArrayTree, jax.Array]:
    """Returns the log-scale after the last measurement, and the length of the longest step since all were made."""
    center = jax.tree.map(lambda new, old: jnp.where(is_measured_now, new, old), log_scale, center)
    length = jnp.exp(log_length(log_scale, updates))
    longest = jnp.where(is_measured_in_full, jnp.maximum(longest_step, length), 0)
    return center, longest.astype(longest_step.dtype)


def reach(params: Any) -> jax.Array:
    r"""Returns :math:`\|\theta\|`, of which a relative update is a fraction, with its floor for small weights."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return jnp.sqrt(jnp.maximum(trees.squared_norm(params), size * RMS_FLOOR**2))


def _log(x):
    """Returns the logarithm, minus infinity at zero, where its derivative is zero and not infinite."""
    is_zero = x == 0
    return jnp.where(is_zero, -jnp.inf, jnp.log(jnp.where(is_zero, 1, x)))
