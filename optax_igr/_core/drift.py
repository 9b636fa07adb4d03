r"""How strongly an optimizer penalises the gradient norm without being told to.

An optimizer whose update is :math:`-h \sum_k w_k g_{t-k}` follows, to second order in :math:`h`,

.. math::
  \dot\theta = -S\,\nabla\big(L + c\,\|\nabla L\|^2\big), \qquad
  c = \frac{h}{4}\,(S + 2 M), \qquad S = \sum_k w_k,\quad M = \sum_k k\,w_k,

so its implicit coefficient :math:`c` is that of gradient descent at its effective rate :math:`hS`, times one
plus twice the mean age :math:`M/S` of the gradients that it uses.

References:
  Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021
  Ghosh et al, `Implicit regularization in Heavy-ball momentum accelerated stochastic gradient descent
  <https://arxiv.org/abs/2302.00849>`_, 2023
"""

from typing import Any

import optax

from optax_igr._core import hyperparameters
from optax_igr._core.hyperparameters import Scalar


def checked_optimizer(
    name: str, learning_rate: Any, momentum: Any, nesterov: Any, averaged: Any
) -> optax.ScalarOrSchedule:
    """Returns the learning rate, a schedule of which is kept finite; checks what else describes an optimizer.

    Raises:
      ValueError: that names `name` and the argument.
    """
    if callable(momentum):
        raise ValueError(f"{name}: `momentum` must be a number, got a schedule.")
    hyperparameters.check_scalar(name, "momentum", momentum, at_least=0, below=1)
    hyperparameters.check_boolean(name, "nesterov", nesterov)
    hyperparameters.check_boolean(name, "averaged", averaged)
    return hyperparameters.checked(name, "learning_rate", learning_rate, at_least=0)


def gradient_weight_moments(
    momentum: Scalar, nesterov: bool, averaged: bool
) -> tuple[Scalar, Scalar]:
    r"""Returns :math:`S = \sum_k w_k` and :math:`M = \sum_k k w_k` for the weights of past gradients.

    Heavy ball has :math:`w_k = \beta^k`; Nesterov's form in Optax has :math:`w_0 = 1 + \beta` and
    :math:`w_k = \beta^{k+1}`; an exponential moving average divides both by :math:`1/(1-\beta)`.
    """
    total = 1 / (1 - momentum)
    first_moment = momentum * total**2
    if nesterov:
        first_moment = momentum * first_moment
    if averaged:
        total, first_moment = 1, first_moment / total
    return total, first_moment


def implicit_coefficient(
    learning_rate: Scalar, momentum: Scalar, nesterov: bool, averaged: bool
) -> Scalar:
    r"""Returns :math:`c = \frac{h}{4}(S + 2M)`, the coefficient of :math:`\|\nabla L\|^2`."""
    total, first_moment = gradient_weight_moments(momentum, nesterov, averaged)
    return learning_rate / 4 * (total + 2 * first_moment)
