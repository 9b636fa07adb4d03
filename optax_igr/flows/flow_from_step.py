r"""The flow that any one-step method follows, from its successive iterates alone.

Let :math:`z_0, z_1, \dots` be iterates of the map and :math:`\Delta z_k = z_{k+1} - z_k`. The flow
:math:`\tilde f` whose time-:math:`h` map is one step has
:math:`e^{h\,d/dt} = 1 + \Delta`, hence

.. math::
  h \tilde f(z_0) = \log(1 + \Delta)\, z_0 = \Delta z_0 - \frac{\Delta^2 z_0}{2} + \frac{\Delta^3
  z_0}{3} - \dots

The first :math:`n + 1` terms, which :math:`n + 1` steps give, are right up to :math:`O(h^{n+1})`.

References:
  Hairer, Lubich, Wanner, `Geometric Numerical Integration
  <https://doi.org/10.1007/3-540-30666-8>`_, chapter IX, 2006
"""

import functools
import math
from collections.abc import Callable

import chex

from optax_igr._core import hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.flows import _leaves


def flow_from_step(
    step: Callable[[chex.ArrayTree], chex.ArrayTree], step_size: Scalar, order: int
) -> _leaves.Field:
    r"""The field whose flow over the time `step_size` is one step, from `order + 1` of the steps.

    Right to the same order as `modified_flow`, for any map that is near the identity and smooth:
    the parameters together with the state of their optimizer, too. It costs `order + 1` steps and
    no derivative. It is not the truncated polynomial in the step size: the terms above `order`
    are there, and wrong. The differences lose digits to rounding: with errors
    :math:`\epsilon\|z\|` in the iterates the velocity has errors of :math:`2^{n+1}\epsilon\|z\| /
    h`, so float32 is good for low orders only.

    An optimizer with momentum has a fast direction in its state (the mean of past gradients
    forgets at the rate :math:`1 - \beta` a step, however small the learning rate). There the map
    is not near the identity, and the series converges when the state has settled along the path.

    Args:
      step: the map `z -> z` of one step. `z` is any tree, for example `(params, opt_state)`.
      step_size: the time that one step takes.
      order: how many powers of the step size beyond the first are right; 0 is the difference
        :math:`(z_1 - z_0)/h` itself.

    Returns:
      A field on trees like `z`. A leaf that is not a real or complex number (a step count, a
      random key) has velocity zero and is held at its value over the `order + 1` steps: the flow
      is that of the map at this count.

    Raises:
      ValueError: if `step_size` is not a positive number or `order` not an integer >= 0, and,
        when the field is called, if `step` returns another structure, shape or dtype.

    Examples:
      The flow of `x -> x - 0.1 x` is :math:`\dot x = \log(0.9)/0.1\; x`:

      >>> import math
      >>> from optax_igr import flows
      >>> field = flows.flow_from_step(lambda x: x - 0.1 * x, step_size=0.1, order=3)
      >>> print(f"{field(1.0):.4f}, {math.log(0.9) / 0.1:.4f}")
      -1.0536, -1.0536

    References:
      Hairer, Lubich, Wanner, `Geometric Numerical Integration
      <https://doi.org/10.1007/3-540-30666-8>`_, chapter IX, 2006
    """
    hyperparameters.check_scalar("flow_from_step", "step_size", step_size, above=0)
    hyperparameters.check_integer("flow_from_step", "order", order, at_least=0)
    order = int(order)
    weights = difference_weights(order)

    def velocity(z, fill):
        changes = []
        for weight in weights:
            following, _ = trees.select("flow_from_step", step(fill(z)))
            trees.check_like("flow_from_step", z, step=following)
            changes.append(trees.scale(weight, trees.subtract(following, z)))
            z = following
        return trees.scale(1 / step_size, functools.reduce(trees.add, changes))

    return _leaves.on_whole_tree("flow_from_step", velocity)


def difference_weights(order: int) -> list[float]:
    r"""Returns the weights :math:`w_i` of :math:`h\tilde f = \sum_i w_i (z_{i+1} - z_i)`.

    .. math::
      \log(1 + \Delta) = \sum_{k=0}^{n} \frac{(-1)^k}{k+1} \Delta^k \, \Delta, \qquad
      w_i = (-1)^i \sum_{k=i}^{n} \frac{1}{k+1} \binom{k}{i}
    """
    return [
        (-1) ** i * sum(math.comb(k, i) / (k + 1) for k in range(i, order + 1))
        for i in range(order + 1)
    ]
