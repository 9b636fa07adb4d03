r"""The loss that gradient descent with a finite step descends, for differentiation or for display.

.. math:: \tilde L(\theta) = L(\theta) + \frac{h}{4} \|\nabla L(\theta)\|^2

References:
  Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021
"""

from collections.abc import Callable

import chex
import jax

from optax_igr._core import hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar


def modified_loss(
    value_fn: Callable[..., chex.Array], step_size: Scalar
) -> Callable[..., chex.Array]:
    r"""Returns the function that gradient descent with a finite step minimises, to first order in the step.

    .. math:: \tilde L(\theta) = L(\theta) + \frac{h}{4} \|\nabla L(\theta)\|^2

    Under `jax.jit` its gradient costs 2.8 gradients of L, as :func:`add_igr` does, which works in any chain.

    Args:
      value_fn: `(params, *args, **kwargs) -> scalar`, differentiated in `params`.
      step_size: h, a number.

    Returns:
      A function with the arguments of `value_fn`.

    Raises:
      ValueError: for a step size that is no number.

    Examples:
      >>> import jax, optax_igr
      >>> value_fn = lambda p: (0.6 - p[0] * p[1]) ** 2 / 2
      >>> penalised = optax_igr.modified_loss(value_fn, step_size=0.025)
      >>> print(f"{penalised((2.8, 3.5)):.4f}")
      52.9476

    References:
      Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021, equation 3
    """
    if callable(step_size):
        raise ValueError("modified_loss: `step_size` must be a number, got a schedule.")
    hyperparameters.check_scalar_or_schedule("modified_loss", "step_size", step_size)

    def penalised(params, *args, **kwargs):
        value, gradient = jax.value_and_grad(value_fn)(params, *args, **kwargs)
        return value + step_size / 4 * trees.squared_norm(gradient).astype(value.dtype)

    return penalised
