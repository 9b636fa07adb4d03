r"""The judgement of a step by the loss itself, and the search for a shorter one.

A step d for the updates u is good if the loss falls by a part of what its slope promises (Armijo):

.. math:: F(\theta - \alpha d) \le F(\theta) - 10^{-4}\, \alpha\, u^\top d

A step that is not good is shortened: the next :math:`\alpha` is the minimizer of the parabola through the value and
slope at 0 and the value at :math:`\alpha`, within :math:`[\alpha/10, \alpha/2]`.

The updates may be the gradient of more than the loss L, for example of a penalty that comes first in the chain. The
rest is known to first order: :math:`F(\theta - \alpha d) = L(\theta - \alpha d) - \alpha\,(u - \nabla L)^\top d`.

References:
  Armijo, `Minimization of functions having Lipschitz continuous first partial derivatives
  <https://doi.org/10.2140/pjm.1966.16.1>`_, 1966
  Nocedal, Wright, `Numerical Optimization <https://doi.org/10.1007/978-0-387-40065-5>`_, 2006, section 3.5
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_igr._core import control_flow

SUFFICIENT_DECREASE = 1e-4
SHRINKAGE = (0.1, 0.5)


def rounding_of(value: jax.Array, dtype: Any) -> jax.Array:
    """Returns the difference of two losses that may be rounding alone, for a loss computed in `dtype`."""
    return 10 * float(jnp.finfo(dtype).eps) * jnp.abs(value)


def good_fraction(
    value_along: Callable[[jax.Array], jax.Array],
    value: jax.Array,
    unit_value: jax.Array,
    slope: jax.Array,
    slack: jax.Array,
    loss_slope: Callable[[], jax.Array],
    max_steps: int | jax.Array,
) -> jax.Array:
    r"""Returns the first :math:`\alpha` whose step is good, or 0.

    Args:
      value_along: :math:`\alpha \mapsto L(\theta - \alpha d)`.
      value: :math:`L(\theta)`. Where it is not finite nothing is judged, and :math:`\alpha` is 1.
      unit_value: :math:`L(\theta - d)`.
      slope: :math:`u^\top d`.
      slack: a rise of the loss that is no sign of a bad step, as rounding hides the decrease.
      loss_slope: returns :math:`\nabla L^\top d`; called for a step that is not good without it.
      max_steps: the largest number of further values; 0 judges nothing.
    """

    def is_good(alpha, stepped, rest):
        return stepped - alpha * rest <= value - SUFFICIENT_DECREASE * alpha * slope + slack

    one, nothing = jnp.ones_like(slope), jnp.zeros_like(slope)
    is_doubtful = jnp.isfinite(value) & ~is_good(one, unit_value, nothing)
    is_doubtful &= max_steps > 0
    # Most updates are the gradient of the loss, and most steps are good: the gradient of the loss is rarely needed.
    rest = control_flow.cond(is_doubtful, lambda: slope - loss_slope(), lambda: nothing)

    def is_bad(carry):
        alpha, stepped, steps = carry
        return is_doubtful & ~is_good(alpha, stepped, rest) & (steps < max_steps)

    def shorten(carry):
        alpha, stepped, steps = carry
        above = stepped - alpha * rest - value + alpha * slope
        minimizer = slope * alpha**2 / (2 * jnp.where(above > 0, above, 1))
        least, most = (factor * alpha for factor in SHRINKAGE)
        # A loss that is not finite says nothing but that the step is far too long.
        alpha = jnp.where(jnp.isfinite(above), jnp.clip(minimizer, least, most), least)
        return alpha, value_along(alpha), steps + 1

    carry = (one, unit_value, jnp.zeros([], jnp.int32))
    alpha, stepped, _ = control_flow.while_loop(is_bad, shorten, carry)
    return jnp.where(is_doubtful & ~is_good(alpha, stepped, rest), 0, alpha)
