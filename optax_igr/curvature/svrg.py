r"""Stochastic variance-reduced gradients.

An anchor :math:`\tilde\theta`, with its gradient over the whole data set, corrects the gradient of every batch:

.. math:: v = \nabla L_S(\theta) - \nabla L_S(\tilde\theta) + \nabla L(\tilde\theta)

The estimate v is unbiased, and exact at the anchor. Its variance vanishes as iterate and anchor approach the same
point, so a constant rate converges. A step costs two gradients of a batch, and a full one whenever the anchor moves.
The state is two copies of the parameters.

References:
  Johnson, Zhang, `Accelerating Stochastic Gradient Descent using Predictive Variance Reduction
  <https://papers.nips.cc/paper/2013/hash/ac1dd209cbcc5e5d1c6e28598e8cbbe8-Abstract.html>`_, 2013
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import control_flow, derivatives, hyperparameters, trees
from optax_igr._core.transform import transform


class SVRGState(NamedTuple):
    """The anchor.

    Attributes:
      count: the number of updates.
      anchor: the parameters at the anchor.
      anchor_gradient: their gradient over the whole data set.
      has_anchor: False until a full gradient was finite; the updates then pass as they are.
    """

    count: ArrayLike
    anchor: chex.ArrayTree
    anchor_gradient: chex.ArrayTree
    has_anchor: ArrayLike


def svrg(*, anchor_interval: int | None) -> optax.GradientTransformationExtraArgs:
    r"""Reduces the variance of a minibatch gradient by the full gradient at an anchor.

    .. math:: u \leftarrow u - \nabla L_S(\tilde\theta) + \nabla L(\tilde\theta)

    It belongs first in a chain: the incoming updates must be the gradient of `value_fn`. Clip behind it, not before it.

    Args:
      anchor_interval: m, the steps from one anchor to the next: the full gradient is taken under `jax.lax.cond` at
        steps 1, 1 + m, 1 + 2m, ... None moves the anchor exactly when `full_value_fn` is passed, which the loop decides
        outside of `jax.jit`.

    Returns:
      A transform whose `update` needs `params`, `value_fn` (the loss of this batch, of which the updates are the
      gradient) and, with an interval, `full_value_fn` at every step. A full gradient that is not finite leaves the
      anchor where it was.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    .. note::
      Only the count of steps decides when the anchor moves, so a collective inside `full_value_fn` is met by all
      devices at once. Under `jax.vmap` call `init` inside the `vmap`: the count then stays unbatched, and the branch a
      branch.
      A data set that does not fit at once goes through :func:`optax_igr.microbatched`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> data = jnp.array([-1.0, 0.0, 4.0])
      >>> loss_fn = lambda p, x: jnp.mean((p - x) ** 2 + (p - x) ** 4 / 100)
      >>> optimizer = optax.chain(optax_igr.svrg(anchor_interval=6), optax.sgd(0.1))
      >>> params = jnp.array(0.0)
      >>> state = optimizer.init(params)
      >>> for step in range(60):
      ...     value_fn = lambda p: loss_fn(p, data[step % 3])
      ...     updates, state = optimizer.update(
      ...         jax.grad(value_fn)(params), state, params,
      ...         value_fn=value_fn, full_value_fn=lambda p: loss_fn(p, data))
      ...     params = optax.apply_updates(params, updates)
      >>> print(f"{abs(jax.grad(loss_fn)(params, data)):.4f}")
      0.0000

    References:
      Johnson, Zhang, `Accelerating Stochastic Gradient Descent using Predictive Variance Reduction
      <https://papers.nips.cc/paper/2013/hash/ac1dd209cbcc5e5d1c6e28598e8cbbe8-Abstract.html>`_, 2013
    """
    return svrg_estimate("svrg", anchor_interval)


def reduced_gradient(
    gradient: Any, batch_gradient_at_anchor: Any, anchor_gradient: Any
) -> chex.ArrayTree:
    r"""Returns :math:`\nabla L_S(\theta) - \nabla L_S(\tilde\theta) + \nabla L(\tilde\theta)` in float32 or wider."""
    difference = trees.subtract(trees.widen(gradient), trees.widen(batch_gradient_at_anchor))
    return trees.add(difference, trees.widen(anchor_gradient))


def svrg_estimate(name: str, anchor_interval: int | None) -> optax.GradientTransformationExtraArgs:
    """Makes the transform of :func:`svrg` under the public name `name`."""
    if anchor_interval is not None:
        hyperparameters.check_positive_integer(name, "anchor_interval", anchor_interval)

    def init(params):
        anchor, gradient = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return SVRGState(jnp.zeros([], jnp.int32), anchor, gradient, jnp.zeros([], bool))

    def update(updates, state, params, *, value_fn: Any, full_value_fn: Any = None, **unused):
        del unused

        def moved():
            gradient = derivatives.gradient(full_value_fn, params)
            # One flag for the whole tree: leaves of two different steps would be no anchor.
            finite = trees.all_finite(gradient)
            anchor, gradient = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                (params, gradient),
                (state.anchor, state.anchor_gradient),
            )
            return anchor, gradient, state.has_anchor | finite

        anchored = (state.anchor, state.anchor_gradient, state.has_anchor)
        if anchor_interval is not None:
            is_due = state.count % anchor_interval == 0
            anchored = control_flow.cond(is_due, moved, lambda: anchored)
        elif full_value_fn is not None:
            anchored = moved()
        anchor, anchor_gradient, has_anchor = anchored

        # Before the first anchor the state holds zeros, at which the loss may not be defined.
        point = jax.tree.map(lambda a, p: jnp.where(has_anchor, a, p), anchor, params)
        reduced = reduced_gradient(updates, derivatives.gradient(value_fn, point), anchor_gradient)
        reduced = jax.tree.map(
            lambda v, u: jnp.where(has_anchor, v.astype(u.dtype), u), reduced, updates
        )
        count = optax.safe_increment(state.count)
        return reduced, SVRGState(count, anchor, anchor_gradient, has_anchor)

    needs = ("params", "value_fn")
    if anchor_interval is not None:
        needs += ("full_value_fn",)
    return transform(
        name, init, update, needs=needs, state_in_dtype_of_params=("anchor", "anchor_gradient")
    )
