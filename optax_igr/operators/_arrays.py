"""Unit vectors, adjoints and shardings for the norms of operators, at every scale of floating point."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optax_igr._core import trees


def widened(weight: jax.Array) -> jax.Array:
    """Casts bfloat16 and float16 to float32: their squares and sums need its range."""
    weight = jnp.asarray(weight)
    return weight.astype(trees.widened(weight.dtype))


def magnitude(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Returns a number to divide by, so that squares neither overflow nor vanish: the largest modulus.

    It is 1 where all entries are zero, and keeps the dimensions of the axes. It has no derivative: whoever divides by
    it multiplies the result by it.
    """
    largest = jnp.max(jnp.abs(x), tuple(axes), keepdims=True)
    # A compiler turns a division by a broadcast number into a product with its reciprocal, and a processor may flush
    # a reciprocal below the normal numbers to zero.
    limit = 0.25 / jnp.finfo(largest.dtype).tiny
    bounded = jnp.minimum(largest, jnp.asarray(limit, largest.dtype))
    return jax.lax.stop_gradient(jnp.where(largest == 0, 1, bounded))


def unit(vectors: jax.Array, num_stacked: int) -> tuple[jax.Array, jax.Array]:
    """Returns unit vectors and their norms, which keep the dimensions; a zero vector stays zero."""
    axes = tuple(range(num_stacked, vectors.ndim))
    scale = magnitude(vectors, axes)
    scaled = divide(vectors, scale)
    norm = root(jnp.sum(squared_modulus(scaled), axes, keepdims=True))
    return divide(scaled, nonzero(norm)), scale * norm


def multiply(factor: jax.Array, x: jax.Array) -> jax.Array:
    """Multiplies real or complex numbers by real ones of their precision.

    Strict type promotion forbids the plain product of the two kinds.
    """
    if jnp.iscomplexobj(x):
        return jax.lax.complex(factor * x.real, factor * x.imag)
    return factor * x


def divide(x: jax.Array, divisor: jax.Array) -> jax.Array:
    """Divides real or complex numbers by real ones of their precision.

    A division of complex numbers would square the divisor, which may overflow.
    """
    if jnp.iscomplexobj(x):
        return jax.lax.complex(x.real / divisor, x.imag / divisor)
    return x / divisor


def squared_modulus(x: jax.Array) -> jax.Array:
    """Returns the squared modulus, whose derivative is zero at zero, where that of the modulus is NaN."""
    return jnp.real(x.conj() * x)


def root(squared: jax.Array) -> jax.Array:
    """Returns the square root, with the derivative zero at zero, and NaN where the argument is NaN."""
    return jnp.where(squared == 0, 0, jnp.sqrt(jnp.where(squared == 0, 1, squared)))


def nonzero(x: jax.Array) -> jax.Array:
    """Replaces zeros by ones, to divide by."""
    return jnp.where(x == 0, 1, x)


def adjoint(pull_back: Callable, cotangent: jax.Array) -> jax.Array:
    """Applies the adjoint of a linear map, of which JAX returns the transpose."""
    (pulled,) = pull_back(cotangent.conj())
    return pulled.conj()


def in_auto_mode(compute: Callable, num_results: int, weight: jax.Array, *vectors: Any) -> Any:
    """Calls `compute` with the sharding of its products left to the compiler, where a mesh is explicit.

    The first result is sharded as the weight is; the others are replicated.
    """
    sharding = jax.typeof(weight).sharding
    if not any(sharding.spec):
        return compute(weight, *vectors)
    out_sharding = (sharding, *[PartitionSpec()] * (num_results - 1))
    return jax.sharding.auto_axes(compute, out_sharding=out_sharding)(weight, *vectors)
