r"""How strongly an optimizer regularizes the gradient norm without being told to, as a number or a schedule.

Backward error analysis gives the loss that the steps of an optimizer descend, to first order in their length:
:math:`L + c \|\nabla L\|^2`. This file computes c; `_core.drift` derives it.

References:
  Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021
  Ghosh et al, `Implicit regularization in Heavy-ball momentum accelerated stochastic gradient descent
  <https://arxiv.org/abs/2302.00849>`_, 2023
"""

import optax

from optax_igr._core import drift, hyperparameters
from optax_igr._core.hyperparameters import Scalar


def igr_coefficient(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Scalar = 0.0,
    nesterov: bool = False,
    averaged: bool = False,
) -> optax.ScalarOrSchedule:
    r"""Returns the coefficient of :math:`\|\nabla L\|^2` that an optimizer applies without being told to.

    .. math::
      c = \frac{h}{4}, \qquad
      c = \frac{h}{4} \frac{1 + \beta}{(1 - \beta)^2}, \qquad
      c = \frac{h}{4} \frac{1 - \beta + 2 \beta^2}{(1 - \beta)^2}

    for gradient descent, heavy ball and Nesterov's momentum as in `optax.sgd`. The steps follow the flow of
    :math:`L + c \|\nabla L\|^2` at the optimizer's effective rate. In Barrett and Dherin's notation
    :math:`\lambda = c\,m` for m parameters, because their :math:`R_{IG} = \|\nabla L\|^2 / m`.

    Args:
      learning_rate: h, a number or a schedule.
      momentum: :math:`\beta` in [0, 1).
      nesterov: whether the momentum is Nesterov's.
      averaged: whether the momentum is an exponential moving average, whose weights sum to one; c is then
        :math:`\frac{h}{4} \frac{1+\beta}{1-\beta}`.

    Returns:
      c for a number, or a schedule of c for a schedule.

    Raises:
      ValueError: for an argument out of range. A schedule's value that is not finite, or below 0, counts as 0.

    Examples:
      >>> import optax_igr
      >>> print(f"{optax_igr.igr_coefficient(0.1):.4f}")
      0.0250
      >>> print(f"{optax_igr.igr_coefficient(0.1, momentum=0.9):.4f}")
      4.7500

    References:
      Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021, theorem 3.1
      Ghosh et al, `Implicit regularization in Heavy-ball momentum accelerated stochastic gradient descent
      <https://arxiv.org/abs/2302.00849>`_, 2023
    """
    learning_rate = drift.checked_optimizer(
        "igr_coefficient", learning_rate, momentum, nesterov, averaged
    )

    def coefficient(count):
        rate = hyperparameters.value_at(learning_rate, count)
        return drift.implicit_coefficient(rate, momentum, nesterov, averaged)

    return coefficient if callable(learning_rate) else coefficient(0)
