r"""Stochastic quasi-Newton: L-BFGS whose pairs come from Hessian-vector products at averaged iterates.

A difference of two minibatch gradients is mostly noise. Here a pair is made every L steps, from the averages
:math:`\bar\theta_t` of L iterates each,

.. math::
  s_t = \bar\theta_t - \bar\theta_{t-1}, \qquad y_t = \nabla^2 L_{S_H}(\bar\theta_t)\,s_t,

on a batch :math:`S_H` of its own, larger than that of the gradient. Two averages make the first pair, so the steps
up to 2L are plain gradient steps, and step 2L + 1 is the first preconditioned one. The Hessian is taken at the average,
not at the current iterate.

A product costs about two gradients of its batch, once in L steps: for batches b and :math:`b_H` the extra work a step
is :math:`2 b_H / (L b)` gradients, and 4MP multiplications for the direction.

References:
  Byrd et al, `A Stochastic Quasi-Newton Method for Large-Scale Optimization <https://arxiv.org/abs/1401.7020>`_, 2016
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import derivatives, hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.transform import scale_by_learning_rate, transform
from optax_igr.curvature import _lbfgs_memory, _lbfgs_push
from optax_igr.curvature._lbfgs_memory import Form, LBFGSMemory
from optax_igr.curvature._lbfgs_push import MemoryOptions


class SQNState(NamedTuple):
    """The averages that the next pair is made of, and the pairs.

    Attributes:
      count: the number of updates.
      mean_params: the average of the iterates since the last multiple of L, in float32 or wider.
      last_mean_params: the average over the L iterates before.
      memory: the pairs, and how many were accepted, rejected and dropped.
    """

    count: ArrayLike
    mean_params: chex.ArrayTree
    last_mean_params: chex.ArrayTree
    memory: LBFGSMemory


def scale_by_sqn(
    *,
    memory_size: int = 10,
    pair_interval: int = 10,
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
    min_cosine: Scalar = 1e-4,
    powell_damping: Scalar | None = None,
    history_dtype: Any = None,
    form: Form = "two_loop",
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies by an inverse Hessian learned from Hessian-vector products at averaged iterates.

    .. math:: u \leftarrow H_t u

    It belongs first in a chain, or behind :func:`optax_igr.svrg`, because the pairs describe the loss, not the updates.

    Args:
      memory_size: M, the number of pairs.
      pair_interval: L, the number of steps between two pairs.
      hvp: how the Hessian-vector product is computed: `auto` takes the fastest exact mode that the loss allows, else a
        difference.
      radius: the length of a difference's perturbation, a number or a schedule; None takes a default.
      min_cosine: a pair is rejected unless :math:`s^\top y > \cos_{min} \|s\| \|y\|`.
      powell_damping: c in (0, 1): y moves towards Bs until :math:`s^\top y \ge c\,s^\top B s`, so that a loss that is
        not convex rejects no pair after the first; None leaves y as it is.
      history_dtype: of the pairs; None means float32, or float64 where the parameter is. The state is
        (2M + 2) P numbers.
      form: how the direction is computed: `two_loop`, or `gram`, which needs one reduction on a mesh.

    Returns:
      A transform whose `update` needs `params` and, at every step, `curvature_value_fn`, which it evaluates at every
      `pair_interval`-th. `state.memory` tells how many pairs were accepted and rejected.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    .. note::
      One step at which the loss is far out of scale changes no pair for good: a pair whose :math:`\|y\|/\|s\|` differs
      from that of the newest one by a factor of a million is rejected, and after ten rejections in a row all pairs are
      dropped (`state.memory.dropped_count`). The direction of that step has no bound. Put
      `optax.clip_by_global_norm` before this transform, or between :func:`optax_igr.svrg` and it.

    .. note::
      Only the count of steps decides when the product is taken, so a collective inside `curvature_value_fn` is met by
      all devices at once. Under `jax.vmap` call `init` inside the `vmap`: the count then stays unbatched, and the
      branch stays a branch.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: jnp.sum(jnp.array([1.0, 10.0]) * p**2) / 2
      >>> optimizer = optax.chain(
      ...     optax_igr.scale_by_sqn(pair_interval=1), optax.scale_by_learning_rate(0.1))
      >>> params = jnp.ones(2)
      >>> state = optimizer.init(params)
      >>> for _ in range(20):
      ...     updates, state = optimizer.update(
      ...         jax.grad(value_fn)(params), state, params, curvature_value_fn=value_fn)
      ...     params = optax.apply_updates(params, updates)
      >>> print(f"{value_fn(params):.3f}, {state[0].memory.pair_count} pairs")
      0.009, 19 pairs

    References:
      Byrd et al, `A Stochastic Quasi-Newton Method for Large-Scale Optimization
      <https://arxiv.org/abs/1401.7020>`_, 2016
    """
    options = MemoryOptions(memory_size, min_cosine, powell_damping, history_dtype, form)
    return sqn_direction("scale_by_sqn", pair_interval, hvp, radius, options)


def sqn(
    learning_rate: optax.ScalarOrSchedule,
    *,
    memory_size: int = 10,
    pair_interval: int = 10,
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
    min_cosine: Scalar = 1e-4,
    powell_damping: Scalar | None = None,
    history_dtype: Any = None,
    form: Form = "two_loop",
) -> optax.GradientTransformationExtraArgs:
    r"""Descends by the stochastic quasi-Newton method.

    .. math:: \theta \leftarrow \theta - \gamma_t H_t g

    The first 2L steps are plain gradient steps with the same rate. The noise of the gradient stays, so the rate must
    decay. The result is then level with tuned gradient descent; :func:`optax_igr.slbfgs` goes further.

    Args:
      learning_rate: :math:`\gamma`, a number or a schedule.
      memory_size: as in :func:`optax_igr.scale_by_sqn`, and so are the others.
      pair_interval: L, the number of steps between two pairs.
      hvp: how the Hessian-vector product is computed.
      radius: the length of a difference's perturbation.
      min_cosine: the guard of the pairs.
      powell_damping: c, or None.
      history_dtype: of the pairs.
      form: `two_loop` or `gram`.

    Returns:
      An optimizer whose `update` needs `params` and `curvature_value_fn`.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: jnp.sum(jnp.array([1.0, 10.0]) * p**2) / 2
      >>> optimizer = optax_igr.sqn(0.1, pair_interval=2)
      >>> params = jnp.ones(2)
      >>> state = optimizer.init(params)
      >>> for _ in range(5):
      ...     value, grad = jax.value_and_grad(value_fn)(params)
      ...     updates, state = optimizer.update(grad, state, params, curvature_value_fn=value_fn)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{value:.2E}")
      5.50E+00
      4.05E-01
      3.28E-01
      2.66E-01
      2.15E-01

    References:
      Byrd et al, `A Stochastic Quasi-Newton Method for Large-Scale Optimization
      <https://arxiv.org/abs/1401.7020>`_, 2016
    """
    options = MemoryOptions(memory_size, min_cosine, powell_damping, history_dtype, form)
    return optax.chain(
        sqn_direction("sqn", pair_interval, hvp, radius, options),
        scale_by_learning_rate("sqn", learning_rate),
    )


def sqn_direction(
    name: str,
    pair_interval: int,
    hvp: derivatives.Mode,
    radius: optax.ScalarOrSchedule | None,
    options: MemoryOptions,
) -> optax.GradientTransformationExtraArgs:
    """Makes the transform of :func:`scale_by_sqn` under the public name `name`."""
    options.check(name)
    hyperparameters.check_positive_integer(name, "pair_interval", pair_interval)
    derivatives.check_mode(name, hvp, radius)

    def init(params):
        def mean():
            return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=trees.widened(p.dtype)), params)

        memory = _lbfgs_memory.init(params, options.memory_size, options.history_dtype)
        return SQNState(jnp.zeros([], jnp.int32), mean(), mean(), memory)

    def update(updates, state, params, *, curvature_value_fn: Any, **unused):
        del unused

        def product(point, vector):
            return derivatives.hessian_vector_product(
                curvature_value_fn,
                point,
                vector,
                mode=hvp,
                radius=hyperparameters.optional_value_at(radius, state.count),
                name=name,
            )

        direction, slot = _lbfgs_memory.apply_and_next_slot(state.memory, updates, options.form)
        # The average includes the iterate of this step before the step is taken, as in algorithm 1.
        in_block = state.count % pair_interval
        mean = mean_with(state.mean_params, params, in_block)
        is_last = in_block == pair_interval - 1
        memory = _lbfgs_push.push_if(
            is_last & (state.count >= pair_interval),
            state.memory,
            lambda: averaged_pair(product, mean, state.last_mean_params, params),
            min_cosine=options.min_cosine,
            powell_damping=options.powell_damping,
            slot=slot,
        )
        last_mean = jax.tree.map(
            lambda new, old: jnp.where(is_last, new, old), mean, state.last_mean_params
        )
        return trees.cast_like(direction, params), SQNState(
            optax.safe_increment(state.count), mean, last_mean, memory
        )

    return transform(
        name,
        init,
        update,
        needs=("params", "curvature_value_fn"),
        state_like_params=("mean_params", "last_mean_params"),
    )


def mean_with(mean: chex.ArrayTree, params: Any, num_averaged: ArrayLike) -> chex.ArrayTree:
    """Returns the mean of `num_averaged` trees and one more; a block starts anew at 0."""

    def leaf(m, p):
        weight = 1 / jnp.asarray(num_averaged + 1, jnp.finfo(m.dtype).dtype)
        # A difference that is averaged keeps small steps, which a sum of L iterates would round away.
        moved = m + weight * (p.astype(m.dtype) - m)
        return jnp.where(num_averaged == 0, p.astype(m.dtype), moved)

    return jax.tree.map(leaf, mean, params)


def averaged_pair(
    product: Callable[[Any, Any], Any],
    mean: chex.ArrayTree,
    last_mean: chex.ArrayTree,
    params: Any,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    r"""Returns :math:`s = \bar\theta - \bar\theta'` and :math:`y = \nabla^2 L(\bar\theta)\,s`.

    Args:
      product: :math:`\theta, v \mapsto \nabla^2 L(\theta)\,v`.
      mean: :math:`\bar\theta`.
      last_mean: :math:`\bar\theta'`.
      params: the loss is evaluated in their dtypes.
    """
    step = trees.cast_like(trees.subtract(mean, last_mean), params)
    return step, product(trees.cast_like(mean, params), step)
