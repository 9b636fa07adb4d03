r"""Projected descent as the last link of any chain: the stepped parameters are projected onto a set.

.. math:: \theta \leftarrow \mathrm{P}(\theta + u)

References:
  Parikh, Boyd, `Proximal Algorithms <https://web.stanford.edu/~boyd/papers/prox_algs.html>`_, 2014, section 1.2
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_igr._core import trees
from optax_igr._core.transform import transform
from optax_igr.geometry import _domain, _rounding


def keep_params_in(
    projection: Callable[[Any], Any],
) -> optax.GradientTransformationExtraArgs:
    r"""Turns the additive update of a chain into one that lands in a set.

    .. math:: u \mapsto \mathrm{P}(\theta + u) - \theta

    It comes last in the chain. Parameters outside the set enter it with the first step.

    Args:
      projection: a function from a tree of parameters to a tree of the same structure and shapes: any of
        `optax.projections`, :func:`optax_igr.projection_simplex_kl`, or a `functools.partial` of one. It sees float32
        where the parameters are narrower, and, inside `optax.masked`, only the leaves that are left.

    Returns:
      A stateless transform whose `update` needs `params`. The sum is rounded to the dtype of the parameters: a weight
      on the boundary of the set may stand outside by half a unit in the last place of the weight that it came from.

    Raises:
      ValueError: if `projection` is not callable, or returns another tree or shape.

    .. note::
      Inside `optax.inject_hyperparams`, name `projection` in `static_args`.

    Examples:
      >>> import functools, jax, jax.numpy as jnp, optax, optax_igr
      >>> box = functools.partial(optax.projections.projection_box, lower=0.0, upper=1.0)
      >>> value_fn = lambda w: jnp.sum((w - jnp.array([2.0, -1.0, 0.5])) ** 2)
      >>> optimizer = optax.chain(optax.sgd(0.1), optax_igr.keep_params_in(box))
      >>> params = jnp.full(3, 0.5)
      >>> state = optimizer.init(params)
      >>> for _ in range(5):
      ...     updates, state = optimizer.update(jax.grad(value_fn)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params)
      [1.  0.  0.5]

    References:
      Parikh, Boyd, `Proximal Algorithms <https://web.stanford.edu/~boyd/papers/prox_algs.html>`_, 2014
    """
    if not callable(projection):
        raise ValueError(
            f"keep_params_in: `projection` must be a function from a tree to a tree, got {projection!r}. "
            f"Under `optax.inject_hyperparams` name it in `static_args`."
        )

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any, **unused: Any):
        del unused
        # In float32 or wider: a sum rounded to bfloat16 would be projected from another point.
        projected = projection(
            jax.tree.map(lambda wide, u: wide + u.astype(wide.dtype), trees.widen(params), updates)
        )
        _domain.check_update("keep_params_in", params, projected, name="projection(params)")
        return jax.tree.map(_rounding.land_at, params, projected), state

    return transform("keep_params_in", init, update, needs=("params",), wider_updates=True)
