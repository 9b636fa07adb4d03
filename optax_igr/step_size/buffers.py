"""Orders elementwise work so that XLA overwrites donated state in place.

On a CPU XLA repeats a cheap producer in each of its consumers. Two kernels then read the old leaf that a third
overwrites, nothing orders them, and XLA copies the whole tree to be safe: a step on ten million parameters
took four times as long. An `optimization_barrier` is dropped there before the kernels are formed.
"""

import jax
import jax.numpy as jnp


def written_once(x: jax.Array, *computed: jax.Array) -> jax.Array:
    """Returns x, a new leaf of the state from which others are computed, written when the finite `computed` have been.

    It stands behind a division, which XLA does not repeat in each consumer, by a one that XLA cannot know. That is made
    of `computed`, of which one must have the shape of x, or of x itself, which must then be finite.
    """
    one = jnp.ones([], jnp.finfo(x.dtype).dtype)
    for other in computed or (jnp.real(x),):
        one = one + (0 * other).astype(one.dtype)
    return x / one


def after(x: jax.Array, computed: jax.Array) -> jax.Array:
    """Returns x, written when the finite `computed` has been: whatever that read may be overwritten."""
    return x + (0 * computed).astype(x.dtype)
