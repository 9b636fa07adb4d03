r"""Elementwise operations that one kind of processor compiles badly, each in a form that suits it.

Every function here has a plain form, which is what it means, and a form for XLA on CPU, which gives the same result
faster. `jax.lax.platform_dependent` chooses when the program is lowered: on a GPU or a TPU the plain form is all that
is left.

Measured on four million float32 weights with a donated state, two cores, JAX 0.10.2, as the median of interleaved
ratios of a whole step, plain form to CPU form. Copies are arrays of the size of the weights.

================= ====================================== ===== ==================
function          step                                   ratio copies it saves
================= ====================================== ===== ==================
`expm1`           `exponentiate`                         1.7   0
`expm1`           `exponentiate_hypentropy`              1.3   0
`expm1`           `exponentiate_signed`                  1.1   0
`bounded`         `exponentiate(log_state=True)`         1.9   1
`bounded`         `eg_plus_minus`                        1.3   1
`bounded`         `exponentiate_simplex(log_state=True)` 1.2   1
`written_once`,   `scale_by_gain`                        3.0   2
`after`
`written_once`,   `egdd`                                 2.6   3
`after`
================= ====================================== ===== ==================

A fast `exp` brought 9 to 14 % in the geometries and nothing in `scale_by_gain` and `egdd`. It is not kept.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# Beyond these 2**k is no normal number in float32.
LOWEST, HIGHEST = -87.0, 88.3

# log 2 in two parts. The first of them times a small integer is exact in float32.
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

# Adding 1.5 * 2**23 rounds a small number to an integer and leaves it in the low bits of the sum. A float32 stores the
# exponent of 2**k as k + 127.
_ROUNDING = 1.5 * 2.0**23 + 127
_ROUNDING_BITS = 0x4B400000 + 127


def _on_cpu(plain: Callable) -> Callable:
    """Decorates the form of `plain` for CPU, so that every other processor runs `plain` itself."""

    def decorate(for_cpu: Callable) -> Callable:
        # `jit` keeps the two traces: a model has many leaves of one shape. `inline` leaves no call in the program.
        @functools.partial(jax.jit, inline=True)
        @functools.wraps(for_cpu)
        def chosen(*arguments):
            return jax.lax.platform_dependent(*arguments, cpu=for_cpu, default=plain)

        return chosen

    return decorate


def expm1(x: jax.Array) -> jax.Array:
    r"""Returns :math:`e^x - 1` without cancellation; in float32 to 2e-7 of it, for x in [LOWEST, HIGHEST] or NaN.

    On CPU it is taken with :math:`x = k \log 2 + r`, :math:`|r| \le \log(2) / 2`, and an integer k, as

    .. math:: e^x - 1 = 2^k (e^r - 1) + (2^k - 1)

    in some fifteen instructions on a vector, where `jnp.expm1` takes three times as long as adding two arrays.
    """
    return jnp.expm1(x) if x.dtype != jnp.float32 else _expm1(x)


# A derivative cannot be taken through the bits of a number.
@jax.custom_jvp
@_on_cpu(jnp.expm1)
def _expm1(x):
    bits = jax.lax.bitcast_convert_type(x * (1 / math.log(2)) + _ROUNDING, jnp.int32)
    # Not the sum less the constant: XLA would cancel the two, and the rounding with them.
    k = (bits - _ROUNDING_BITS).astype(jnp.float32)
    r = x - k * _LOG_TWO[0] - k * _LOG_TWO[1]
    series = _SERIES[0] * r + _SERIES[1]
    for coefficient in _SERIES[2:]:
        series = series * r + coefficient
    power = jax.lax.bitcast_convert_type(bits << 23, jnp.float32)
    return power * (series * r) + (power - 1)


@_expm1.defjvp
def _(primals, tangents):
    y = expm1(*primals)
    return y, (y + 1) * tangents[0]


def within_range(x: jax.Array) -> jax.Array:
    """Clips a float32 to where its exponential is a finite and normal number."""
    return bounded(x, LOWEST, HIGHEST) if x.dtype == jnp.float32 else x


def bounded(x: jax.Array, lowest: ArrayLike, highest: ArrayLike) -> jax.Array:
    """Returns `jnp.clip(x, lowest, highest)` in the dtype of `x`; NaN stays NaN.

    XLA on CPU computes a `clip` that both the new state and the update need twice, and copies the donated state to do
    so. Selections are computed once.
    """
    return _bounded(x, jnp.asarray(lowest, x.dtype), jnp.asarray(highest, x.dtype))


@_on_cpu(jnp.clip)
def _bounded(x, lowest, highest):
    x = jnp.where(x < lowest, lowest, x)
    return jnp.where(x > highest, highest, x)


def unprovable_false(count: ArrayLike) -> jax.Array:
    """Returns False for a number of updates, in a way that the compiler cannot prove.

    `where(unprovable_false(count), y, x)` is x. The compiler must compute y before it, and so everything that y reads
    may be overwritten by the result.
    """
    return jnp.asarray(count) < 0


def written_once(x: jax.Array, false: jax.Array, *computed: jax.Array) -> jax.Array:
    """Returns x, computed in one place, and after the real `computed` scalars or arrays.

    On CPU XLA repeats cheap operations in every kernel that needs their result. When x is a new leaf of the state and
    others are computed from it, two kernels then read the old leaf, and XLA copies the whole of it: a step on ten
    million parameters took four times as long. XLA does not repeat a division, so x is divided by one. An
    `optimization_barrier` would not help: it is gone before the kernels are formed.

    Args:
      x: a new leaf of the state.
      false: :func:`unprovable_false`.
      *computed: what must be computed before, scalars or arrays like x.
    """
    return _written_once(x, false, *computed)


@_on_cpu(lambda x, false, *computed: x)
def _written_once(x, false, *computed):
    unknown = jnp.real(x)
    for other in computed:
        unknown = unknown * other.astype(unknown.dtype)
    one = jnp.where(false, unknown, 1)
    if jnp.iscomplexobj(x):
        # The division of two complex numbers overflows for large ones, and would change x.
        return jax.lax.complex(jnp.real(x) / one, jnp.imag(x) / one)
    return x / one


def after(x: jax.Array, false: jax.Array, computed: jax.Array) -> jax.Array:
    """Returns x, written when `computed`, an array like it, has been: what that has read may then be overwritten."""
    return _after(x, false, computed)


@_on_cpu(lambda x, false, computed: x)
def _after(x, false, computed):
    return jnp.where(false, computed.astype(x.dtype), x)
