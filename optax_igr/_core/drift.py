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

from optax_igr._core.hyperparameters import Scalar


def gradient_weight_moments(momentum: Scalar, nesterov: bool, ema: bool) -> tuple[Scalar, Scalar]:
    r"""Returns :math:`S = \sum_k w_k` and :math:`M = \sum_k k w_k` for the weights of past gradients.

    Heavy ball has :math:`w_k = \beta^k`; Nesterov's form in Optax has :math:`w_0 = 1 + \beta` and
    :math:`w_k = \beta^{k+1}`; an exponential moving average divides both by :math:`1/(1-\beta)`.
    """
    total = 1 / (1 - momentum)
    first_moment = momentum * total**2
    if nesterov:
        first_moment = momentum * first_moment
    if ema:
        total, first_moment = 1, first_moment / total
    return total, first_moment


def implicit_coefficient(
    learning_rate: Scalar, momentum: Scalar, nesterov: bool, ema: bool
) -> Scalar:
    r"""Returns :math:`c = \frac{h}{4}(S + 2M)`, the coefficient of :math:`\|\nabla L\|^2`."""
    total, first_moment = gradient_weight_moments(momentum, nesterov, ema)
    return learning_rate / 4 * (total + 2 * first_moment)
