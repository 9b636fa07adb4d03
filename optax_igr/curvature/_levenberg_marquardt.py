r"""Damping that follows how well a quadratic model foretold the loss, after Levenberg and Marquardt.

With the decrease that the model of curvature C predicts for the step d,

.. math::
  \rho = \frac{L(\theta) - L(\theta - d)}{g^\top d - \frac12 d^\top C d}, \qquad
  \lambda \leftarrow \tfrac32 \lambda \text{ if } \rho < \tfrac14, \qquad
  \lambda \leftarrow \tfrac23 \lambda \text{ if } \rho > \tfrac34 .

References:
  Moré, `The Levenberg-Marquardt algorithm: Implementation and theory <https://doi.org/10.1007/BFb0067700>`_, 1978
  Martens, `Deep learning via Hessian-free optimization <https://icml.cc/Conferences/2010/papers/458.pdf>`_, 2010
"""

import chex
import jax
import jax.numpy as jnp

from optax_igr._core import trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.curvature._conjugate_gradient import Solution

# Multiples of the first damping. Without them many good steps would make it zero, and no factor brings zero back.
DAMPING_RANGE = (1e-8, 1e8)


def predicted_decrease(
    solution: Solution, b: chex.ArrayTree, damping: jax.Array, norm: jax.Array
) -> jax.Array:
    r"""Returns :math:`g^\top d - \frac12 d^\top C d` of the solution of :math:`(C + \lambda I) x = b`.

    Args:
      solution: x, with its residual, from which the product with C follows.
      b: the gradient in units of its norm.
      damping: :math:`\lambda`.
      norm: of the gradient, so that g = norm b and d = norm x.
    """
    curved = trees.inner_product(solution.x, trees.subtract(b, solution.residual))
    undamped = curved - damping * trees.squared_norm(solution.x)
    return norm**2 * (trees.inner_product(b, solution.x) - undamped / 2)


def reduction_ratio(value: jax.Array, unit_value: jax.Array, predicted: jax.Array) -> jax.Array:
    r"""Returns the ratio :math:`\rho` of actual to predicted decrease; minus infinity where it is undefined.

    Args:
      value: :math:`L(\theta)`.
      unit_value: :math:`L(\theta - d)`.
      predicted: the decrease that the model predicts.
    """
    ratio = (value - unit_value) / jnp.where(predicted == 0, 1, predicted)
    # A state must not hold a NaN: it would end a run under `jax_debug_nans`.
    return jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)


def adapted_damping(
    damping: jax.Array,
    first_damping: Scalar,
    ratio: jax.Array,
    is_rounding: jax.Array,
    met_negative_curvature: jax.Array,
) -> jax.Array:
    r"""Returns the damping of the next solve.

    Args:
      damping: :math:`\lambda` of this solve.
      first_damping: where it started.
      ratio: :math:`\rho` of this solve.
      is_rounding: whether the two losses differ by rounding alone, so that the ratio says nothing.
      met_negative_curvature: whether the model has no minimum; then :math:`\lambda` does not fall.
    """
    grow = jnp.where(ratio >= 0.25, 1.0, 1.5)
    factor = jnp.where((ratio > 0.75) & ~met_negative_curvature, 2 / 3, grow)
    adapted = damping * jnp.where(is_rounding, 1.0, factor).astype(damping.dtype)
    least, largest = (jnp.asarray(bound * first_damping, damping.dtype) for bound in DAMPING_RANGE)
    return jnp.clip(adapted, least, largest)
