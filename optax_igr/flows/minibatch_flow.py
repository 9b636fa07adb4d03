r"""The flow of minibatch gradient descent: one modified loss for each way of drawing the batches.

With :math:`L = \frac{1}{M} \sum_k L_k` over the :math:`M` batches, the mean over the draws follows
:math:`\dot\theta = -\nabla \tilde L` up to :math:`O(h^2)`, where

.. math::
  \text{shuffled epochs:} \quad \tilde L = L + \frac{h}{4M} \sum_k \|\nabla L_k\|^2, \qquad
  \text{with replacement:} \quad \tilde L = L + \frac{h}{4} \|\nabla L\|^2.

Without replacement the gradients of an epoch sum to a constant, so each is correlated with the
point that the others have led to; independent draws are not. Each formula is wrong by
:math:`O(h)` for the other sampler.

References:
  Smith et al, `On the Origin of Implicit Regularization in Stochastic Gradient Descent
  <https://arxiv.org/abs/2101.12176>`_, 2021
"""

from collections.abc import Sequence
from typing import Literal, get_args

from optax_igr._core import derivatives, hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.flows import _leaves
from optax_igr.flows.optimizer_flow import penalized

Sampling = Literal["shuffled", "with_replacement"]


def minibatch_flow(
    value_fns: Sequence[derivatives.ValueFn],
    learning_rate: Scalar,
    *,
    sampling: Sampling = "shuffled",
    hvp: derivatives.Mode = "auto",
) -> _leaves.Field:
    r"""The flow that minibatch gradient descent follows in the mean over the order of its batches.

    Args:
      value_fns: the losses of the `M` batches, each `params -> scalar`; the loss is their mean.
      learning_rate: the number `h`; time is the number of steps times `h`, an epoch takes `h * M`.
      sampling: "shuffled" where each epoch visits every batch once in random order (the statement
        holds at the ends of epochs), "with_replacement" where each step draws a batch
        independently.
      hvp: the mode of the Hessian-vector products: "auto", an exact one, or a difference.

    Returns:
      A field. An integer or boolean leaf has velocity zero.

    Raises:
      ValueError: if `value_fns` is empty or another argument out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_igr import flows
      >>> value_fns = [lambda x: (x - 1) ** 2 / 2, lambda x: (x + 1) ** 2 / 2]
      >>> for sampling in ("shuffled", "with_replacement"):
      ...   print(f"{flows.minibatch_flow(value_fns, 0.1, sampling=sampling)(2.0):.3f}")
      -2.100
      -2.100

      The batches here differ by a linear term alone. With unequal curvature the two samplings part:

      >>> value_fns = [lambda x: x**2, lambda x: 0 * x]
      >>> for sampling in ("shuffled", "with_replacement"):
      ...   print(f"{flows.minibatch_flow(value_fns, 0.1, sampling=sampling)(2.0):.3f}")
      -2.200
      -2.100

    References:
      Smith et al, `On the Origin of Implicit Regularization in Stochastic Gradient Descent
      <https://arxiv.org/abs/2101.12176>`_, 2021
    """
    value_fns = tuple(value_fns)
    if not value_fns:
        raise ValueError("minibatch_flow: `value_fns` must hold at least one loss, got none.")
    hyperparameters.check_scalar("minibatch_flow", "learning_rate", learning_rate)
    hyperparameters.check_choice("minibatch_flow", "sampling", sampling, get_args(Sampling))
    derivatives.check_mode("minibatch_flow", hvp)

    def mean_value(params):
        return sum(value_fn(params) for value_fn in value_fns) / len(value_fns)

    def velocity(params, fill):
        def descent(value_fn):
            def value(p):
                return value_fn(fill(p))

            gradient = derivatives.gradient(value, params)
            return penalized("minibatch_flow", value, params, gradient, learning_rate / 4, hvp)

        if sampling == "with_replacement":
            return trees.scale(-1, descent(mean_value))
        total = descent(value_fns[0])
        for value_fn in value_fns[1:]:
            total = trees.add(total, descent(value_fn))
        return trees.scale(-1 / len(value_fns), total)

    return _leaves.on_whole_tree("minibatch_flow", velocity)
