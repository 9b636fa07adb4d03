r"""The regularisation that an optimizer with a finite step applies without being told to, measured.

References:
  Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_igr._core import derivatives, drift, trees
from optax_igr._core.derivatives import ValueFn
from optax_igr._core.hyperparameters import Scalar

_NAME = "implicit_regularization"


class ImplicitRegularization(NamedTuple):
    r"""What :func:`implicit_regularization` measures, in the notation of Barrett and Dherin.

    Attributes:
      regularization_rate: :math:`\lambda = c m`, for m parameters.
      mean_squared_gradient: :math:`R_{IG} = \|g\|^2 / m`, so that :math:`\lambda R_{IG} = c \|g\|^2`.
      slope: :math:`\|g\|`, the tangent of the steepest angle of the loss surface.
      implicit_coefficient: c of :func:`optax_igr.igr_coefficient`.
      modified_loss: :math:`L + c \|g\|^2`.
      directional_curvature: :math:`g^\top H g / g^\top g`; zero where the gradient is.
      series_is_valid: whether the learning rate times the directional curvature lies within the radius of
        convergence of the series in the step whose first term this is; False says that the steps oscillate or that
        higher orders matter as much. Along other directions the curvature may be larger:
        :func:`optax_igr.diagnostics.monitor_sharpness_ratio` watches the largest one, and says when a run has come to
        the edge of stability, where `optax_igr.flows.central_flow` takes over.
    """

    regularization_rate: jax.Array
    mean_squared_gradient: jax.Array
    slope: jax.Array
    implicit_coefficient: jax.Array
    modified_loss: jax.Array
    directional_curvature: jax.Array
    series_is_valid: jax.Array


def implicit_regularization(
    value_fn: ValueFn,
    params: Any,
    learning_rate: Scalar,
    *,
    momentum: Scalar = 0.0,
    nesterov: bool = False,
    hvp: derivatives.Mode = "auto",
    radius: Scalar | None = None,
) -> ImplicitRegularization:
    r"""Measures the implicit regularisation of gradient descent, or of momentum, at the parameters.

    .. math:: \tilde L = L + c \|\nabla L\|^2 = L + \lambda R_{IG}, \qquad c = h/4 \text{ for gradient descent}

    It costs one Hessian-vector product beside the gradient. The modified loss is the first term of a series in
    :math:`h \kappa`, with the curvature :math:`\kappa` along the gradient. On a quadratic that series converges for

    .. math::
      |h\kappa| < 1, \qquad |h\kappa| < (1 - \sqrt\beta)^2, \qquad
      |h\kappa| < \Big(\frac{1 - \beta}{1 + \beta}\Big)^2

    for gradient descent, heavy ball and Nesterov's momentum: up to where the steps begin to oscillate.

    Args:
      value_fn: `params -> scalar`, L.
      params: a pytree; only real and complex leaves count.
      learning_rate: h, a number.
      momentum: :math:`\beta` in [0, 1).
      nesterov: whether the momentum is Nesterov's, as in `optax.sgd`.
      hvp: how the Hessian-vector product is computed, as in :func:`optax_igr.add_gradient_penalty`.
      radius: the length of a difference's perturbation.

    Returns:
      An :class:`ImplicitRegularization` of scalars.

    Raises:
      ValueError: for an argument out of range.

    Examples:
      >>> import jax.numpy as jnp, optax_igr.diagnostics
      >>> value_fn = lambda p: (0.6 - p[0] * p[1]) ** 2 / 2
      >>> report = optax_igr.diagnostics.implicit_regularization(value_fn, jnp.array([2.8, 3.5]), 0.025)
      >>> for name, number in report._asdict().items():
      ...     print(f"{name} {number:.4f}")
      regularization_rate 0.0125
      mean_squared_gradient 850.2088
      slope 41.2361
      implicit_coefficient 0.0063
      modified_loss 52.9476
      directional_curvature 29.0656
      series_is_valid 1.0000

    References:
      Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021, theorem 3.1
    """
    for name, number in (("learning_rate", learning_rate), ("radius", radius)):
        if callable(number):
            raise ValueError(f"{_NAME}: `{name}` must be a number, got a schedule.")
    drift.checked_optimizer(_NAME, learning_rate, momentum, nesterov, averaged=False)
    derivatives.check_mode(_NAME, hvp, radius)

    # The derivatives of narrow parameters are taken in float32.
    differentiable, fill = trees.select(_NAME, trees.widen(trees.as_arrays(params)))

    def value_of_differentiable(differentiable):
        return value_fn(fill(differentiable))

    size = sum(x.size * (2 if jnp.iscomplexobj(x) else 1) for x in jax.tree.leaves(differentiable))
    value = value_of_differentiable(differentiable)
    gradient = derivatives.gradient(value_of_differentiable, differentiable)
    product = derivatives.hessian_vector_product(
        value_of_differentiable,
        differentiable,
        gradient,
        mode=hvp,
        radius=radius,
        gradient_at_params=gradient,
        name=_NAME,
    )
    squared = jnp.asarray(trees.squared_norm(gradient))
    coefficient = drift.implicit_coefficient(learning_rate, momentum, nesterov, averaged=False)
    curvature = jnp.asarray(trees.inner_product(gradient, product)) / jnp.where(
        squared > 0, squared, 1
    )
    root = (1 - momentum) / (1 + momentum) if nesterov else 1 - jnp.sqrt(momentum)
    return ImplicitRegularization(
        regularization_rate=jnp.asarray(coefficient * size, squared.dtype),
        mean_squared_gradient=squared / max(size, 1),
        slope=jnp.sqrt(squared),
        implicit_coefficient=jnp.asarray(coefficient, squared.dtype),
        modified_loss=jnp.asarray(value + coefficient * squared),
        directional_curvature=curvature,
        series_is_valid=jnp.abs(learning_rate * curvature) < root**2,
    )
