r"""A penalty on the mean gradient norm of the micro-batches, which is larger where they disagree.

.. math::
  \frac{1}{k} \sum_b \|\nabla L_b\|^2
  = \|\nabla L\|^2 + \frac{1}{k} \sum_b \|\nabla L_b - \nabla L\|^2

References:
  Smith et al, `On the Origin of Implicit Regularization in Stochastic Gradient Descent
  <https://arxiv.org/abs/2101.12176>`_, 2021
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_igr._core import control_flow, derivatives, hyperparameters, transform, trees
from optax_igr.penalties import gradient_norm


def add_microbatch_gradient_penalty(
    coefficient: optax.ScalarOrSchedule,
    num_microbatches: int,
    *,
    norm: str = "squared",
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
    mask: Any = None,
    safeguard: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of a penalty on the mean gradient norm of the micro-batches.

    .. math:: u \leftarrow u + \nabla \Big( \frac{\mu}{k} \sum_{b=1}^{k} \|\nabla L_b(\theta)\|^2 \Big)

    Shuffled minibatch descent applies this form implicitly, with :math:`\mu = h/4` for k batches an epoch (Smith et
    al), and full-batch training with it reaches the accuracy of small batches (Geiping et al, Novack et al). The
    micro-batches are visited one after the other, in the memory of one.

    Args:
      coefficient: :math:`\mu`, a number or a schedule.
      num_microbatches: k; a Python integer (under `optax.inject_hyperparams`, name it in `static_args`).
      norm: `squared` or `plain`, as in :func:`add_gradient_penalty`.
      hvp: as in :func:`add_gradient_penalty`.
      radius: as in :func:`add_gradient_penalty`.
      mask: as in :func:`add_gradient_penalty`.
      safeguard: as in :func:`add_gradient_penalty`.

    Returns:
      A transform whose `update` needs `params` and `microbatch_value_fn`, `(params, index) -> scalar` with index in
      0..k-1; :func:`optax_igr.microbatched` makes one from a batch.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    .. note::
      A line search of Optax in the same chain refuses every keyword that its `value_fn` does not name. There, define
      `value_fn(params, *, microbatch_value_fn=None)`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> loss_fn = lambda w, x: jnp.mean((w - x) ** 2)
      >>> value_fn, microbatch_value_fn = optax_igr.microbatched(loss_fn, jnp.arange(4.0), 2)
      >>> penalty = optax_igr.add_microbatch_gradient_penalty(0.125, 2)
      >>> w = jnp.array(0.5)
      >>> updates, _ = penalty.update(
      ...     jax.grad(value_fn)(w), penalty.init(w), w, microbatch_value_fn=microbatch_value_fn)
      >>> print(updates)
      -3.0

    References:
      Smith et al, `On the Origin of Implicit Regularization in Stochastic Gradient Descent
      <https://arxiv.org/abs/2101.12176>`_, 2021, equation 1
      Geiping et al, `Stochastic Training is Not Necessary for Generalization <https://arxiv.org/abs/2109.14119>`_, 2022
      Novack et al, `Disentangling the Mechanisms Behind Implicit Regularization in SGD
      <https://arxiv.org/abs/2211.15853>`_, 2023
    """
    name = "add_microbatch_gradient_penalty"
    coefficient = hyperparameters.checked(name, "coefficient", coefficient)
    hyperparameters.check_positive_integer(name, "num_microbatches", num_microbatches)
    options = gradient_norm.PenaltyOptions(norm, hvp, radius, mask, safeguard)
    options.check(name)

    def update(updates, state, params, *, microbatch_value_fn, gradient, **unused):
        del unused
        penalized, fill = trees.select(name, params, options.mask)
        radius_now = hyperparameters.optional_value_at(options.radius, state.count)

        def accumulate(total, index):
            def microbatch_loss(p):
                return microbatch_value_fn(fill(p), index)

            direction = gradient_norm.gradient_of_norm(
                microbatch_loss,
                penalized,
                derivatives.gradient(microbatch_loss, penalized),
                norm=options.norm,
                hvp=options.hvp,
                radius=radius_now,
                name=name,
            )
            return trees.add(total, direction), None

        zero = jax.tree.map(jnp.zeros_like, trees.widen(penalized))
        indices = jnp.arange(num_microbatches, dtype=jnp.int32)
        total, _ = control_flow.scan(accumulate, zero, indices)
        coefficient_now = hyperparameters.value_at(coefficient, state.count)
        penalty = trees.scale(coefficient_now / num_microbatches, total)
        return gradient_norm.add_penalty(updates, gradient, penalty, state, options.safeguard)

    return transform.transform(
        name, gradient_norm.init, update, needs=("params", "microbatch_value_fn")
    )
