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

# The damping stays within these multiples of where it started: it must not underflow to zero for ever.
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


def adapted_damping(
    damping: jax.Array,
    first_damping: Scalar,
    value: jax.Array,
    stepped_value: jax.Array,
    predicted: jax.Array,
    met_negative_curvature: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    r"""Returns the damping of the next solve, and the ratio :math:`\rho`.

    Args:
      damping: :math:`\lambda` of this solve.
      first_damping: where it started.
      value: :math:`L(\theta)`.
      stepped_value: :math:`L(\theta - d)`.
      predicted: the decrease that the model predicts.
      met_negative_curvature: whether it is no model of a minimum; then :math:`\lambda` does not fall.
    """
    actual = value - stepped_value
    ratio = actual / jnp.where(predicted == 0, 1, predicted)
    # Below this the two losses differ by rounding alone, and the ratio says nothing.
    rounding = 10 * jnp.finfo(predicted.dtype).eps * jnp.abs(value)
    grow = jnp.where(ratio >= 0.25, 1.0, 1.5)
    factor = jnp.where((ratio > 0.75) & ~met_negative_curvature, 2 / 3, grow)
    adapted = damping * jnp.where(jnp.abs(predicted) <= rounding, 1.0, factor)
    least, largest = (bound * first_damping for bound in DAMPING_RANGE)
    return jnp.clip(adapted, least, largest).astype(jnp.float32), ratio
