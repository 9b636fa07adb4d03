"""The weight whose operator has the singular values of another, clipped."""

import jax
import jax.numpy as jnp

from optax_igr._core.hyperparameters import Scalar
from optax_igr.operators import _arrays, _spectral_clip
from optax_igr.operators.leaves import Operator


def clip_singular_values(operator: Operator, weight: jax.Array, radius: Scalar) -> jax.Array:
    """Returns the weight whose operator has its singular values clipped, in float32 or wider.

    Args:
      operator: what the weight is; one with `contains_every_clip`.
      weight: real or complex.
      radius: at least 0. At 0 the weight becomes zero.

    Returns:
      A weight, like `weight`. An operator of a stack with an entry that is not finite becomes NaN; the others of the
      stack are clipped.
    """

    def compute(weight):
        matrices, pull_back = jax.vjp(lambda w: operator.blocks(w).matrices, weight)
        blocks = operator.blocks(weight)
        multiplicity = jnp.asarray(blocks.multiplicity, matrices.real.dtype)
        multiplicity = jnp.reshape(multiplicity, (1,) * (matrices.ndim - 3) + (-1, 1, 1))
        clipped = _spectral_clip.clip_singular_values(
            matrices, jnp.asarray(radius, matrices.real.dtype)
        )
        # The map to the blocks is an isometry but for the number of places, so its adjoint inverts it.
        weighted = _arrays.multiply(multiplicity / blocks.num_places, clipped)
        return (_arrays.adjoint(pull_back, weighted),)

    return _arrays.in_auto_mode(compute, 1, _arrays.widened(weight))[0]
