r"""What an additive update must be for `params + update`, as it rounds, to land where it should.

`optax.apply_updates` adds in the parameter's dtype. Three things go wrong there for a weight that must
stay positive: :math:`e^u - 1` rounds to -1 and the weight dies; :math:`e^u` overflows and the weight
becomes infinite, then NaN at its next step down; and a sum of rounded weights is not the rounded sum.

An update :math:`u` near :math:`-w` has the spacing of :math:`w`, so from :math:`w` the smallest positive
weight within reach is about :math:`\epsilon w`: one step divides a weight by at most :math:`1/\epsilon`,
and the step after it carries on.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.processors import bounded


def smallest(dtype: Any) -> float:
    """Returns the smallest positive weight that is kept: one that no device flushes to zero, nor its rounding."""
    info = jnp.finfo(dtype)
    # Arithmetic in float16 happens in float32, where its subnormal numbers are normal.
    return 2 * float(info.smallest_subnormal if dtype == jnp.float16 else info.tiny)


def largest(dtype: Any) -> float:
    """Returns the weight at which an overflow saturates; half the limit, so that no sum rounds up to inf."""
    return float(jnp.finfo(dtype).max) / 2


def representable_log(log_weight: jax.Array, dtype: Any, floor: Scalar = 0.0) -> jax.Array:
    """Keeps the logarithm of a weight where the weight in `dtype` is positive, finite and above `floor`."""
    lowest = jnp.log(jnp.maximum(jnp.asarray(floor, log_weight.dtype), smallest(dtype)))
    return bounded(log_weight, lowest, math.log(largest(dtype)))


def rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """Casts to `dtype`, and means it.

    XLA may drop the rounding of a value that it widens again within one program, and a sum of weights
    that counts on it would be wrong.
    """
    if dtype == jnp.bfloat16:
        info = jnp.finfo(dtype)
        x = jax.lax.reduce_precision(x, exponent_bits=info.nexp, mantissa_bits=info.nmant)
    return x.astype(dtype)


def lowest_step(weight: jax.Array, dtype: Any) -> jax.Array:
    """Returns the lowest update in `dtype` that leaves a wide positive `weight` positive; zero for a zero."""
    kept = jnp.minimum(weight, smallest(dtype))
    return kept - weight * (1 - float(jnp.finfo(dtype).eps))


def land(weight: jax.Array, step: jax.Array, floor: Scalar = 0.0) -> jax.Array:
    """Returns `step` as an update in the dtype of `weight` that keeps it positive, finite and above `floor`.

    Args:
      weight: non-negative, in the parameter's dtype; a zero stays zero unless `floor` is positive.
      step: the change of the weight, in float32 or wider.
      floor: the smallest weight allowed.
    """
    dtype = weight.dtype
    weight = weight.astype(step.dtype)
    step = bounded(step, lowest_step(weight, dtype), largest(dtype) - weight)
    if isinstance(floor, float) and floor == 0:
        return rounded(step, dtype)
    update = rounded(jnp.maximum(step, floor - weight), dtype)
    # The difference `floor - weight` may have rounded down: one unit in its last place more.
    wide = update.astype(step.dtype)
    unit = jnp.maximum(jnp.abs(wide) * float(jnp.finfo(dtype).eps), smallest(dtype))
    higher = rounded(wide + unit, dtype)
    return jnp.where(weight + wide < floor, higher, update)


def land_at(param: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the update in the dtype of `param` whose addition gives `target` in that dtype.

    Where the target is less than half of the parameter, only multiples of the parameter's own unit in the
    last place are within reach, and the nearest of them is taken.
    """
    target = rounded(target, param.dtype).astype(target.dtype)
    return rounded(target - param.astype(target.dtype), param.dtype)
