r"""Implicit gradient regularisation: add it, cancel it, or hold it while the learning rate decays.

Backward error analysis of gradient descent with step h gives the flow that its steps follow to second order,

.. math::
  \dot\theta = -g - \frac{h}{2} H g = -\nabla \Big( L + \frac{h}{4} \|\nabla L\|^2 \Big),

and for an optimizer with momentum the same with a larger coefficient (see :func:`optax_igr.igr_coefficient`).
Explicit and implicit coefficients of :math:`\|\nabla L\|^2` add up, so a budget can be moved from one to the other.

References:
  Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021
  Ghosh et al, `Implicit regularization in Heavy-ball momentum accelerated stochastic gradient descent
  <https://arxiv.org/abs/2302.00849>`_, 2023
"""

from typing import Any

import optax

from optax_igr._core import derivatives, drift, hyperparameters
from optax_igr._core.hyperparameters import Scalar
from optax_igr.penalties.gradient_norm import PenaltyOptions, gradient_penalty


def add_igr(
    step_size: optax.ScalarOrSchedule,
    *,
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
    mask: Any = None,
    safeguard: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the regularisation that gradient descent with a given step would apply implicitly.

    .. math:: u \leftarrow u + \frac{h}{2} H g = u + \nabla \Big( \frac{h}{4} \|\nabla L\|^2 \Big)

    A small learning rate with `add_igr(h)` descends as a learning rate h does, where the series holds. It is
    :func:`optax_igr.add_gradient_penalty` with the coefficient h/4; its notes hold here too.

    Args:
      step_size: h, at least 0; a number or a schedule.
      hvp: as in :func:`optax_igr.add_gradient_penalty`, and so are the others.
      radius: the length of a difference's perturbation.
      mask: where it is False the parameter is a constant.
      safeguard: drop the term where it would turn the update into a direction of ascent.

    Returns:
      A transform whose `update` needs `params` and `value_fn` and uses `grad` if it is given.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, optax_igr
      >>> value_fn = lambda p: (0.6 - p[0] * p[1]) ** 2 / 2
      >>> params = jnp.array([2.8, 3.5])
      >>> transform = optax_igr.add_igr(0.025)
      >>> updates, _ = transform.update(
      ...     jax.grad(value_fn)(params), transform.init(params), params, value_fn=value_fn)
      >>> print([f"{u:.4f}" for u in updates])
      ['43.2486', '35.9320']

    References:
      Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021, theorem 3.1
    """
    step_size = hyperparameters.checked("add_igr", "step_size", step_size, at_least=0)

    def coefficient(count):
        return hyperparameters.value_at(step_size, count) / 4

    options = PenaltyOptions(hvp=hvp, radius=radius, mask=mask, safeguard=safeguard)
    return gradient_penalty("add_igr", coefficient, options)


def cancel_igr(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Scalar = 0.0,
    nesterov: bool = False,
    averaged: bool = False,
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
    mask: Any = None,
    safeguard: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Subtracts the optimizer's own implicit regularisation, so that its steps follow gradient flow.

    .. math:: u \leftarrow u - \nabla \big( c \|\nabla L\|^2 \big) = u - 2 c H g

    with c from :func:`optax_igr.igr_coefficient`. The steps are then an integrator of gradient flow of second order
    in h, where plain descent is of first order: what remains of a difference between two learning rates is not implicit
    regularisation. Beyond :math:`h\lambda_{max} = 1` the correction turns the direction round; see `safeguard`.

    Args:
      learning_rate: h of the optimizer in the same chain, a number or its schedule.
      momentum: :math:`\beta` of that optimizer, in [0, 1).
      nesterov: whether its momentum is Nesterov's.
      averaged: whether its momentum is an exponential moving average.
      hvp: as in :func:`optax_igr.add_gradient_penalty`, and so are the others.
      radius: the length of a difference's perturbation.
      mask: where it is False the parameter is a constant.
      safeguard: drop the term where it would turn the update into a direction of ascent.

    Returns:
      A transform whose `update` needs `params` and `value_fn` and uses `grad` if it is given.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, math, optax, optax_igr
      >>> value_fn = lambda x: x**2 / 2
      >>> optimizer = optax.chain(optax_igr.cancel_igr(0.1), optax.sgd(0.1))
      >>> x = jnp.array(1.0)
      >>> state = optimizer.init(x)
      >>> for _ in range(10):
      ...     updates, state = optimizer.update(jax.grad(value_fn)(x), state, x, value_fn=value_fn)
      ...     x = optax.apply_updates(x, updates)
      >>> print(f"{x:.4f} descent without: {0.9**10:.4f} flow: {math.exp(-1):.4f}")
      0.3685 descent without: 0.3487 flow: 0.3679

    References:
      Miyagawa, `Toward Equation of Motion for Deep Neural Networks: Continuous-time Gradient Descent and
      Discretization Error Analysis <https://arxiv.org/abs/2210.15898>`_, 2022
    """
    learning_rate = drift.checked_optimizer(
        "cancel_igr", learning_rate, momentum, nesterov, averaged
    )

    def coefficient(count):
        rate = hyperparameters.value_at(learning_rate, count)
        return -drift.implicit_coefficient(rate, momentum, nesterov, averaged)

    options = PenaltyOptions(hvp=hvp, radius=radius, mask=mask, safeguard=safeguard)
    return gradient_penalty("cancel_igr", coefficient, options)


def hold_igr(
    reference_learning_rate: optax.ScalarOrSchedule,
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Scalar = 0.0,
    nesterov: bool = False,
    averaged: bool = False,
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
    mask: Any = None,
    safeguard: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Holds implicit plus explicit regularisation at the level of a reference learning rate.

    .. math:: u \leftarrow u + \nabla \Big( \big(c(h_{ref}) - c(h_t)\big) \|\nabla L\|^2 \Big)

    with c from :func:`optax_igr.igr_coefficient`. A decaying learning rate takes its implicit regularisation with it;
    this puts back what is lost, step by step. Give it the schedule that the optimizer uses. Where the learning rate
    is above the reference, the term is negative.

    Args:
      reference_learning_rate: :math:`h_{ref}`, at least 0; a number or a schedule.
      learning_rate: :math:`h_t` of the optimizer in the same chain, a number or its schedule.
      momentum: :math:`\beta` of that optimizer, in [0, 1).
      nesterov: whether its momentum is Nesterov's.
      averaged: whether its momentum is an exponential moving average.
      hvp: as in :func:`optax_igr.add_gradient_penalty`, and so are the others.
      radius: the length of a difference's perturbation.
      mask: where it is False the parameter is a constant.
      safeguard: drop the term where it would turn the update into a direction of ascent.

    Returns:
      A transform whose `update` needs `params` and `value_fn` and uses `grad` if it is given.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda x: x**2 / 2
      >>> schedule = optax.linear_schedule(0.1, 0.0, transition_steps=2)
      >>> hold = optax_igr.hold_igr(0.1, schedule)
      >>> x = jnp.array(1.0)
      >>> state = hold.init(x)
      >>> for _ in range(3):
      ...     updates, state = hold.update(jax.grad(value_fn)(x), state, x, value_fn=value_fn)
      ...     print(f"{updates:.3f}")
      1.000
      1.025
      1.050

    References:
      Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021, theorem 3.1
    """
    name = "hold_igr"
    learning_rate = drift.checked_optimizer(name, learning_rate, momentum, nesterov, averaged)
    reference_learning_rate = hyperparameters.checked(
        name, "reference_learning_rate", reference_learning_rate, at_least=0
    )

    def coefficient(count):
        reference = hyperparameters.value_at(reference_learning_rate, count)
        missing = reference - hyperparameters.value_at(learning_rate, count)
        return drift.implicit_coefficient(missing, momentum, nesterov, averaged)

    options = PenaltyOptions(hvp=hvp, radius=radius, mask=mask, safeguard=safeguard)
    return gradient_penalty(name, coefficient, options)
