r"""Exponentials that cost a CPU less than the memory traffic of an elementwise step.

With :math:`x = k \log 2 + r`, :math:`|r| \le \log(2) / 2`, and k an integer

.. math:: e^x = 2^k e^r, \qquad e^x - 1 = 2^k (e^r - 1) + (2^k - 1)

`jnp.exp` alone takes a CPU as long as an addition of two trees, `jnp.expm1` three times as long, and `jnp.round` would
be as slow; here the whole is some fifteen instructions on a vector.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# Beyond these 2**k is no normal number in float32.
LOWEST, HIGHEST = -87.0, 88.3

# log 2 in two parts, the first of which times a small integer is exact in float32.
_LOG_TWO = (0.693145751953125, 1.428606765330187e-06)

# (e^r - 1) / r = 1 + c_1 r + ... + c_5 r^5 with a relative error of at most 1.4e-8, a quarter of the rounding.
_SERIES = (
    0.0013882516409631296,
    0.008366547153715853,
    0.04166720071316503,
    0.16666543424097677,
    0.49999998149613756,
    1.0,
)

# A small number added to 1.5 * 2**23 is rounded to an integer, which is found in the low bits of the sum. The exponent
# of 2**k is stored in a float32 as k + 127.
_ROUNDING = 1.5 * 2.0**23 + 127
_ROUNDING_BITS = 0x4B400000 + 127


@jax.custom_jvp
def exp(x: jax.Array) -> jax.Array:
    """Returns the exponential of x; in float32 to 1e-7 of it, for x within [LOWEST, HIGHEST] or NaN."""
    if x.dtype != jnp.float32:
        return jnp.exp(x)
    power, excess = _power_and_excess(x)
    return power * (excess + 1)


@jax.custom_jvp
def expm1(x: jax.Array) -> jax.Array:
    """Returns the exponential less one without cancellation; in float32 to 2e-7 of it, for the same x."""
    if x.dtype != jnp.float32:
        return jnp.expm1(x)
    power, excess = _power_and_excess(x)
    return power * excess + (power - 1)


@exp.defjvp
def _(primals, tangents):
    y = exp(*primals)
    return y, y * tangents[0]


@expm1.defjvp
def _(primals, tangents):
    y = expm1(*primals)
    return y, (y + 1) * tangents[0]


def within_range(x: jax.Array) -> jax.Array:
    """Clips a float32 to where the two are defined; elsewhere they saturate or overflow by themselves."""
    return bounded(x, LOWEST, HIGHEST) if x.dtype == jnp.float32 else x


def bounded(x: jax.Array, lowest: ArrayLike, highest: ArrayLike) -> jax.Array:
    """Returns `jnp.clip(x, lowest, highest)` by selections, in the dtype of `x`.

    They are cheaper than a minimum that passes NaN on; and XLA computes a `clip` that both the new state and the
    update need twice, with a copy of the donated state.
    """
    lowest, highest = (jnp.asarray(bound, x.dtype) for bound in (lowest, highest))
    x = jnp.where(x < lowest, lowest, x)
    return jnp.where(x > highest, highest, x)


def _power_and_excess(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns :math:`2^k` and :math:`e^r - 1`; the latter is NaN where x is."""
    bits = jax.lax.bitcast_convert_type(x * (1 / math.log(2)) + _ROUNDING, jnp.int32)
    # Not the sum less the constant, from which XLA would cancel the rounding.
    k = (bits - _ROUNDING_BITS).astype(jnp.float32)
    r = x - k * _LOG_TWO[0] - k * _LOG_TWO[1]
    series = _SERIES[0] * r + _SERIES[1]
    for coefficient in _SERIES[2:]:
        series = series * r + coefficient
    return jax.lax.bitcast_convert_type(bits << 23, jnp.float32), series * r
