r"""Power iteration for the top singular triple of a weight as an operator.

.. math::
  u \leftarrow \frac{W v}{\|W v\|}, \qquad v \leftarrow \frac{W^* u}{\|W^* u\|}, \qquad \sigma = \|W^* u\|

References:
  Yoshida, Miyato, `Spectral Norm Regularization for Improving the Generalizability of Deep Learning
  <https://arxiv.org/abs/1705.10941>`_, 2017
"""

import jax
import jax.numpy as jnp

from optax_igr._core import trees
from optax_igr.operators import _arrays
from optax_igr.operators.leaves import Operator


def initial_vector(operator: Operator, weight: jax.Array) -> jax.Array:
    """Returns unit vectors of fixed pseudo-random direction, of shape `[*stack, *domain]`."""
    num_stacked = len(operator.stack_shape(weight.shape))
    shape = operator.stack_shape(weight.shape) + operator.domain_shape(weight.shape)
    vector = jax.random.normal(jax.random.key(0), shape, trees.widened(weight.dtype))
    return _arrays.unit(vector, num_stacked)[0]


def iterate(
    operator: Operator, weight: jax.Array, vector: jax.Array, num_steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Returns the gradient :math:`\sigma u v^*` of half the squared spectral norm, :math:`\sigma` and v.

    Args:
      operator: what the weight is.
      weight: real or complex.
      vector: v, of shape `[*stack, *domain]`; it stays where the weight is zero or not finite.
      num_steps: at least 1.

    Returns:
      The gradient, like `weight` and exact for the present u and v; :math:`\sigma`, at most the norm, for each
      operator of the stack; and v. All in float32 or wider.
    """

    def compute(weight, vector):
        num_stacked = len(operator.stack_shape(weight.shape))
        axes = tuple(range(num_stacked, vector.ndim))

        def step(_, carry):
            vector, *_ = carry
            image, pull_back = jax.vjp(lambda v: operator.apply(weight, v), vector)
            left, _ = _arrays.unit(image, num_stacked)
            right, norm = _arrays.unit(_arrays.adjoint(pull_back, left), num_stacked)
            # Without this, one broken weight would leave the vector NaN for ever.
            is_sound = jnp.isfinite(norm) & (norm > 0)
            return jnp.where(is_sound, right, vector), left, norm

        first = step(0, (vector,))
        vector, left, norm = (
            jax.lax.fori_loop(1, num_steps, step, first) if num_steps > 1 else first
        )
        _, pull_back = jax.vjp(lambda w: operator.apply(w, vector), weight)
        norm = jnp.squeeze(norm, axes)
        per_operator = jnp.reshape(norm, norm.shape + (1,) * (left.ndim - num_stacked))
        return _arrays.adjoint(pull_back, _arrays.multiply(per_operator, left)), norm, vector

    return _arrays.in_auto_mode(compute, 3, _arrays.widened(weight), vector)


def converged_norm(
    operator: Operator, weight: jax.Array, tolerance: float, max_steps: int
) -> jax.Array:
    r"""Returns the spectral norm once :math:`\|W^* W v - \sigma^2 v\| \le \epsilon \sigma^2`, or after `max_steps`."""
    weight = _arrays.widened(weight)
    vector = initial_vector(operator, weight)

    def unconverged(carry):
        step, _, change, _ = carry
        return (step < max_steps) & jnp.any(change > tolerance)

    def once_more(carry):
        step, vector, _, _ = carry
        _, norm, moved = iterate(operator, weight, vector, 1)
        # For unit vectors, the residual over σ² is the distance that one step moves v.
        num_stacked = norm.ndim
        _, change = _arrays.unit(moved - vector, num_stacked)
        return step + 1, moved, jnp.reshape(change, norm.shape), norm

    stack = operator.stack_shape(weight.shape)
    start = jnp.full(stack, jnp.inf, vector.real.dtype)
    return jax.lax.while_loop(unconverged, once_more, (0, vector, start, start))[3]
