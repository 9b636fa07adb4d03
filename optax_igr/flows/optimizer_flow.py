r"""The flow of gradient descent with momentum, to first order in the learning rate.

An optimizer whose update is :math:`-h \sum_k w_k g_{t-k}` follows

.. math::
  \dot\theta = -S\,(g + 2 c\,H g) = -S\,\nabla\big(L + c\,\|\nabla L\|^2\big), \qquad
  c = \frac{h}{4}\,(S + 2 M),\quad S = \sum_k w_k,\quad M = \sum_k k\,w_k,

up to :math:`O(h^2)`: gradient descent's own penalty :math:`hS/4` at its effective rate
:math:`hS`, times one plus twice the mean age :math:`M/S` of the gradients in use. Heavy ball has
:math:`\dot\theta = -\frac{g}{1-\beta} - \frac{h(1+\beta)}{2(1-\beta)^3} H g`; Nesterov's form in
Optax has :math:`\frac{h(2\beta^2 + 1 - \beta)}{2(1-\beta)^3}` as its coefficient.

References:
  Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021
  Ghosh et al, `Implicit regularization in Heavy-ball momentum accelerated stochastic gradient
  descent <https://arxiv.org/abs/2302.00849>`_, 2023
"""

import chex

from optax_igr._core import derivatives, drift, hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.flows import _leaves


def optimizer_flow(
    value_fn: derivatives.ValueFn,
    learning_rate: Scalar,
    *,
    momentum: Scalar = 0.0,
    nesterov: bool = False,
    averaged: bool = False,
    order: int = 1,
    hvp: derivatives.Mode = "auto",
) -> _leaves.Field:
    r"""The flow that gradient descent, heavy ball, Nesterov or averaged momentum follows.

    .. math::
      \dot\theta = -S\,\nabla\big(L + c\,\|\nabla L\|^2\big)

    with the weights of `optax.sgd(learning_rate, momentum, nesterov)`, or, with `averaged`,
    of `optax.ema(momentum)` before `optax.sgd(learning_rate)`. The optimizer joins the flow after a
    few times :math:`1/(1-\beta)` steps, when its momentum has forgotten its start.

    Args:
      value_fn: `params -> scalar`.
      learning_rate: the number `h`; time is the number of steps times `h`.
      momentum: :math:`\beta`, at least 0 and below 1.
      nesterov: whether the momentum is Nesterov's.
      averaged: whether momentum is an exponential moving average, with weights that sum to one.
      order: 1, or 0 for the flow :math:`-S g` without the correction. For higher orders see
        `modified_flow` (gradient descent) and `flow_from_step` (any optimizer).
      hvp: the mode of the Hessian-vector product: "auto", an exact one, or a difference.

    Returns:
      A field. An integer or boolean leaf has velocity zero.

    Raises:
      ValueError: if an argument is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_igr import flows
      >>> value_fn = lambda x: jnp.sum(x**2) / 2
      >>> field = flows.optimizer_flow(value_fn, learning_rate=0.01, momentum=0.5)
      >>> print(f"{field(1.0):.2f}")
      -2.06

    References:
      Ghosh et al, `Implicit regularization in Heavy-ball momentum accelerated stochastic gradient
      descent <https://arxiv.org/abs/2302.00849>`_, 2023
    """
    hyperparameters.check_scalar("optimizer_flow", "learning_rate", learning_rate)
    hyperparameters.check_scalar("optimizer_flow", "momentum", momentum, at_least=0, below=1)
    hyperparameters.check_choice("optimizer_flow", "order", order, (0, 1))
    derivatives.check_mode("optimizer_flow", hvp)
    rate, _ = drift.gradient_weight_moments(momentum, nesterov, averaged)
    coefficient = drift.implicit_coefficient(learning_rate, momentum, nesterov, averaged)

    def velocity(params, fill):
        def value(p):
            return value_fn(fill(p))

        gradient = derivatives.gradient(value, params)
        if order == 1:
            gradient = penalized("optimizer_flow", value, params, gradient, coefficient, hvp)
        return trees.scale(-1, trees.scale(rate, gradient))

    return _leaves.on_whole_tree("optimizer_flow", velocity)


def penalized(
    name: str,
    value_fn: derivatives.ValueFn,
    params: chex.ArrayTree,
    gradient: chex.ArrayTree,
    coefficient: Scalar,
    hvp: derivatives.Mode,
) -> chex.ArrayTree:
    r"""Returns :math:`g + 2 c H g`, the gradient of :math:`L + c \|\nabla L\|^2`."""
    product = derivatives.hessian_vector_product(
        value_fn, params, gradient, mode=hvp, gradient_at_params=gradient, name=name
    )
    return trees.add(gradient, trees.scale(2 * coefficient, product))
