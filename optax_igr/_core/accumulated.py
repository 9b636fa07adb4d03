r"""The gradient of all micro-batches, for an optimizer inside `optax.MultiSteps`.

`optax.MultiSteps` hands the mean of the gradients to what it wraps as the incoming updates, and the extra arguments
of the last micro-batch as they came. A transform that reads `grad` would then learn from one micro-batch of k.
"""

from typing import Any

import optax

_NAME = "accumulated"


def accumulated(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimizer inside `optax.MultiSteps` so that its `grad` is the accumulated gradient.

    .. math:: \bar g = \frac{1}{k} \sum_{b=1}^{k} g_b

    The extra argument `grad` becomes the incoming updates, which are :math:`\bar g` there, and `value`, the loss of
    the last micro-batch alone, is left out. Without it everything that reads `grad` (`extrapolated_gradient_penalty`,
    `adapt_scale`, `egdd`, `scale_by_gain`, `limit_by_curvature`) sees one micro-batch.

    .. note::
      `value_fn` still is the loss of the last micro-batch, and a transform that evaluates it does so k times for one
      step. The way to accumulate that suits every transform is :func:`optax_igr.microbatched`: one update with the
      whole batch, in the memory of one micro-batch. It is the only one for what requires `value`: a line search.

    Args:
      optimizer: the optimizer that `optax.MultiSteps` wraps.

    Returns:
      The same optimizer, with the same state.

    Raises:
      ValueError: for an argument that is no transformation.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> inner = optax_igr.extrapolated_gradient_penalty(optax.sgd(0.1), coefficient=0.01)
      >>> optimizer = optax.MultiSteps(optax_igr.accumulated(inner), every_k_schedule=2)
      >>> w = jnp.ones(1)
      >>> state = optimizer.init(w)
      >>> for gradient in (jnp.array([1.0]), jnp.array([4.0])):
      ...     updates, state = optimizer.update(gradient, state, w, grad=gradient)
      >>> print(f"{optax.tree.get(state, 'displacement')[0]:.2f}")  # 2 · 0.01 · 2.5
      0.05

    References:
      `optax.MultiSteps <https://optax.readthedocs.io/en/latest/api/optimizer_wrappers.html>`_
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            f"{_NAME}: `optimizer` must be an optax.GradientTransformation, got {optimizer!r}; put it inside "
            f"`optax.MultiSteps(accumulated(optimizer), k)`."
        )
    optimizer = optax.with_extra_args_support(optimizer)

    def update(updates, state, params=None, **extra: Any):
        # A value that `value_fn` does not belong to would mislead a comparison of the two.
        given = {name: x for name, x in extra.items() if name != "value"}
        return optimizer.update(updates, state, params, **given | {"grad": updates})

    return optax.GradientTransformationExtraArgs(optimizer.init, update)
