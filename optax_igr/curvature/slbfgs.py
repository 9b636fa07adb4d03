r"""Stochastic L-BFGS with variance-reduced gradients: the chain of SVRG and SQN, at a constant rate.

References:
  Moritz, Nishihara, Jordan, `A Linearly-Convergent Stochastic L-BFGS Algorithm
  <https://arxiv.org/abs/1508.02087>`_, 2016
"""

from typing import Any

import optax

from optax_igr._core import derivatives
from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.transform import scale_by_learning_rate
from optax_igr.curvature._lbfgs_memory import Form
from optax_igr.curvature._lbfgs_push import MemoryOptions
from optax_igr.curvature.sqn import sqn_direction
from optax_igr.curvature.svrg import svrg_estimate


def slbfgs(
    learning_rate: optax.ScalarOrSchedule,
    *,
    anchor_interval: int | None,
    memory_size: int = 10,
    pair_interval: int = 10,
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
    min_cosine: Scalar = 1e-4,
    powell_damping: Scalar | None = None,
    history_dtype: Any = None,
    form: Form = "two_loop",
) -> optax.GradientTransformationExtraArgs:
    r"""Descends by stochastic L-BFGS with variance-reduced gradients, at a constant rate.

    .. math:: \theta \leftarrow \theta - \gamma H_t v

    It converges linearly on a strongly convex loss. For N samples, a batch b, and m steps between two anchors, an epoch
    costs 2mb + N gradients. To clip the estimate v, chain :func:`optax_igr.svrg`, `optax.clip_by_global_norm`,
    :func:`optax_igr.scale_by_sqn` and `optax.scale_by_learning_rate` by hand: clipping the gradient before makes the
    estimate biased.

    Args:
      learning_rate: :math:`\gamma`, a number or a schedule.
      anchor_interval: m, as in :func:`optax_igr.svrg`.
      memory_size: as in :func:`optax_igr.scale_by_sqn`, and so are the others.
      pair_interval: L, the number of steps between two pairs.
      hvp: how the Hessian-vector product is computed.
      radius: the length of a difference's perturbation.
      min_cosine: the guard of the pairs.
      powell_damping: c, or None.
      history_dtype: of the pairs.
      form: `two_loop` or `gram`.

    Returns:
      An optimizer whose `update` needs `params`, `value_fn`, `full_value_fn` and `curvature_value_fn`.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> data = jnp.array([[1.0, 0.0], [0.0, 3.0], [2.0, 1.0]])
      >>> loss_fn = lambda p, x: jnp.mean((x @ p - 1) ** 2)
      >>> optimizer = optax_igr.slbfgs(0.05, anchor_interval=3, pair_interval=3)
      >>> params = jnp.zeros(2)
      >>> state = optimizer.init(params)
      >>> @jax.jit
      ... def step(params, state, batch):
      ...     value_fn, full_value_fn = (lambda p, x=x: loss_fn(p, x) for x in (batch, data))
      ...     updates, state = optimizer.update(
      ...         jax.grad(value_fn)(params), state, params, value_fn=value_fn,
      ...         full_value_fn=full_value_fn, curvature_value_fn=full_value_fn)
      ...     return optax.apply_updates(params, updates), state
      >>> for index in range(300):
      ...     params, state = step(params, state, data[index % 3][None])
      >>> print(f"{jnp.linalg.norm(jax.grad(loss_fn)(params, data)):.1f}")
      0.0

    References:
      Moritz, Nishihara, Jordan, `A Linearly-Convergent Stochastic L-BFGS Algorithm
      <https://arxiv.org/abs/1508.02087>`_, 2016
    """
    options = MemoryOptions(memory_size, min_cosine, powell_damping, history_dtype, form)
    return optax.chain(
        svrg_estimate("slbfgs", anchor_interval),
        sqn_direction("slbfgs", pair_interval, hvp, radius, options),
        scale_by_learning_rate("slbfgs", learning_rate),
    )
