r"""Gradient flow: the path of steepest descent, the limit of gradient descent for small steps.

.. math::
  \dot\theta = -\nabla L(\theta)
"""

from optax_igr._core import derivatives, trees
from optax_igr.flows import _leaves


def gradient_flow(value_fn: derivatives.ValueFn) -> _leaves.Field:
    r"""The field :math:`-\nabla L`.

    Args:
      value_fn: `params -> scalar`.

    Returns:
      A field: a function from the parameters to their velocity, a tree of the same structure and
      dtypes. An integer or boolean leaf has velocity zero. Time is the learning rate times the
      number of steps.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_igr import flows
      >>> field = flows.gradient_flow(lambda x: jnp.sum(x**2) / 2)
      >>> print(field(jnp.array([1.0, -2.0])))
      [-1.  2.]

    References:
      Elkabetz, Cohen, `Continuous vs. Discrete Optimization of Deep Neural Networks
      <https://arxiv.org/abs/2107.06608>`_, 2021
    """

    def velocity(params, fill):
        return trees.scale(-1, derivatives.gradient(lambda p: value_fn(fill(p)), params))

    return _leaves.on_whole_tree("gradient_flow", velocity)
