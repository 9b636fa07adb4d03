"""Orders elementwise work so that XLA overwrites donated state in place.

On a CPU XLA repeats a cheap producer in each of its consumers. Two kernels then read the old leaf that a third
overwrites, nothing orders them, and XLA copies the whole tree to be safe: a step on ten million parameters
took four times as long. An `optimization_barrier` is dropped there before the kernels are formed.

Both functions make a result depend on what it must wait for by a selection that is never taken. XLA cannot know that;
LLVM takes the scalar `never` out of the loop, and what would have been selected is not even read.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def never(count: ArrayLike) -> jax.Array:
    """Returns False, which XLA cannot know of a number of updates that it is given."""
    return jnp.asarray(count) < 0


def written_once(x: jax.Array, never: jax.Array, *computed: jax.Array) -> jax.Array:
    """Returns x, a new leaf of the state from which others are computed, written when the real `computed` have been.

    It stands behind a division, which XLA does not repeat in each consumer.
    """
    unknown = jnp.real(x)
    for other in computed:
        unknown = unknown * other.astype(unknown.dtype)
    return x / jnp.where(never, unknown, 1)


def after(x: jax.Array, never: jax.Array, computed: jax.Array) -> jax.Array:
    """Returns x, written when `computed` of its shape has been: whatever that read may be overwritten."""
    return jnp.where(never, computed.astype(x.dtype), x)
