r"""Multi-batch L-BFGS: both gradients of a pair come from the samples that two batches share.

Consecutive batches overlap, and :math:`O = S_{t-1} \cap S_t` alone makes the pair,

.. math::
  s = \theta_t - \theta_{t-1}, \qquad y = \nabla L_O(\theta_t) - \nabla L_O(\theta_{t-1}),

so that the noise of sampling cancels in y. The difference of the gradients of two batches is mostly that noise. The
second step is the first preconditioned one. For an overlap of a fraction o of the batch, a step costs 1 + 2o gradients.

References:
  Berahas, Nocedal, Takáč, `A Multi-Batch L-BFGS Method for Machine Learning <https://arxiv.org/abs/1605.06049>`_, 2016
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import derivatives, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.transform import scale_by_learning_rate, transform
from optax_igr.curvature import _lbfgs_memory, _lbfgs_push
from optax_igr.curvature._lbfgs_memory import Form, LBFGSMemory
from optax_igr.curvature._lbfgs_push import MemoryOptions


class MultibatchLBFGSState(NamedTuple):
    """The other end of the last step, and the pairs.

    Attributes:
      count: the number of updates.
      last_params: the parameters of the update before.
      memory: the pairs, and how many were accepted, rejected and dropped.
    """

    count: ArrayLike
    last_params: chex.ArrayTree
    memory: LBFGSMemory


def scale_by_multibatch_lbfgs(
    *,
    memory_size: int = 10,
    min_cosine: Scalar = 1e-4,
    powell_damping: Scalar | None = None,
    history_dtype: Any = None,
    form: Form = "two_loop",
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies by an inverse Hessian learned from gradient differences on the overlap of consecutive batches.

    .. math:: u \leftarrow H_t u

    It belongs first in a chain, because the pairs describe the loss, not the updates. Full overlap is
    `overlap_value_fn=value_fn`, at the price of three gradients a step.

    Args:
      memory_size: M, the number of pairs.
      min_cosine: a pair is rejected unless :math:`s^\top y > \cos_{min} \|s\| \|y\|`.
      powell_damping: c in (0, 1): y moves towards Bs until :math:`s^\top y \ge c\,s^\top B s`; None leaves y as it is.
      history_dtype: of the pairs; None means float32, or float64 where the parameter is. The state is
        (2M + 1) P numbers.
      form: how the direction is computed: `two_loop`, or `gram`, which needs one reduction on a mesh.

    .. note::
      One step at which the loss is far out of scale changes no pair for good: a pair whose :math:`\|y\|/\|s\|` differs
      from that of the newest one by a factor of a million is rejected, and after ten rejections in a row all pairs are
      dropped (`state.memory.dropped_count`). The direction of that step has no bound. Put
      `optax.clip_by_global_norm` before this transform, which clips the gradient and leaves the pairs alone.

    .. note::
      The shared samples must be enough to show the curvature of the loss along a step. A few of them may see none.
      Then :math:`y = \lambda s` with the L2 coefficient :math:`\lambda`, and H grows to :math:`1/\lambda`. No guard can
      tell such a pair from a true one. On a squared hinge of 100 parameters, 5 or 12 shared samples diverge at every
      rate from 0.03 to 1, and 25 or 50 converge at rates up to 0.3. With `powell_damping=0.2`, 12 converge at 0.03.

    Returns:
      A transform whose `update` needs `params` and `overlap_value_fn`, the loss on the samples that this batch shares
      with the one before (not evaluated in the first update: there is no pair yet). `state.memory` tells how many
      pairs were accepted and rejected.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, numpy as np, optax, optax_igr
      >>> data = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), jnp.float32)
      >>> loss_fn = lambda p, x: jnp.mean((x @ p - 1) ** 2) + jnp.sum(p**2)
      >>> optimizer = optax.chain(
      ...     optax_igr.scale_by_multibatch_lbfgs(), optax.scale_by_learning_rate(0.1))
      >>> params = jnp.ones(3)
      >>> state = optimizer.init(params)
      >>> batches = optax_igr.overlapping_batches(64, 16, overlap=0.25)
      >>> for _ in range(20):
      ...     batch = data[next(batches)]
      ...     updates, state = optimizer.update(
      ...         jax.grad(loss_fn)(params, batch), state, params,
      ...         overlap_value_fn=lambda p: loss_fn(p, batch[:4]))
      ...     params = optax.apply_updates(params, updates)
      >>> print(state[0].memory.pair_count, state[0].memory.rejected_count)
      19 0

    References:
      Berahas, Nocedal, Takáč, `A Multi-Batch L-BFGS Method for Machine Learning
      <https://arxiv.org/abs/1605.06049>`_, 2016
    """
    options = MemoryOptions(memory_size, min_cosine, powell_damping, history_dtype, form)
    return multibatch_direction("scale_by_multibatch_lbfgs", options)


def multibatch_lbfgs(
    learning_rate: optax.ScalarOrSchedule,
    *,
    memory_size: int = 10,
    min_cosine: Scalar = 1e-4,
    powell_damping: Scalar | None = None,
    history_dtype: Any = None,
    form: Form = "two_loop",
) -> optax.GradientTransformationExtraArgs:
    r"""Descends by multi-batch L-BFGS.

    .. math:: \theta \leftarrow \theta - \gamma_t H_t g

    Args:
      learning_rate: :math:`\gamma`, a number or a schedule.
      memory_size: as in :func:`optax_igr.scale_by_multibatch_lbfgs`, and so are the others.
      min_cosine: the guard of the pairs.
      powell_damping: c, or None.
      history_dtype: of the pairs.
      form: `two_loop` or `gram`.

    Returns:
      An optimizer whose `update` needs `params` and `overlap_value_fn`.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: jnp.sum(jnp.array([1.0, 10.0]) * p**2) / 2
      >>> optimizer = optax_igr.multibatch_lbfgs(0.1)
      >>> params = jnp.ones(2)
      >>> state = optimizer.init(params)
      >>> for _ in range(5):
      ...     value, grad = jax.value_and_grad(value_fn)(params)
      ...     updates, state = optimizer.update(grad, state, params, overlap_value_fn=value_fn)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{value:.2E}")
      5.50E+00
      4.05E-01
      3.97E-01
      3.22E-01
      2.60E-01

    References:
      Berahas, Nocedal, Takáč, `A Multi-Batch L-BFGS Method for Machine Learning
      <https://arxiv.org/abs/1605.06049>`_, 2016
    """
    options = MemoryOptions(memory_size, min_cosine, powell_damping, history_dtype, form)
    return optax.chain(
        multibatch_direction("multibatch_lbfgs", options),
        scale_by_learning_rate("multibatch_lbfgs", learning_rate),
    )


def multibatch_direction(
    name: str, options: MemoryOptions
) -> optax.GradientTransformationExtraArgs:
    """Makes the transform of :func:`scale_by_multibatch_lbfgs` under the public name `name`."""
    options.check(name)

    def init(params):
        return MultibatchLBFGSState(
            count=jnp.zeros([], jnp.int32),
            last_params=jax.tree.map(jnp.zeros_like, params),
            memory=_lbfgs_memory.init(params, options.memory_size, options.history_dtype),
        )

    def update(updates, state, params, *, overlap_value_fn, **unused):
        del unused
        memory = _lbfgs_push.push_if(
            state.count > 0,
            state.memory,
            lambda: overlap_pair(overlap_value_fn, params, state.last_params),
            min_cosine=options.min_cosine,
            powell_damping=options.powell_damping,
        )
        direction = _lbfgs_memory.apply(memory, updates, options.form)
        # A copy: the next update must find these parameters though the loop donates them.
        last_params = jax.tree.map(jnp.copy, params)
        count = optax.safe_increment(state.count)
        return trees.cast_like(direction, params), MultibatchLBFGSState(count, last_params, memory)

    return transform(
        name,
        init,
        update,
        needs=("params", "overlap_value_fn"),
        state_in_dtype_of_params=("last_params",),
    )


def overlap_pair(
    overlap_value_fn: derivatives.ValueFn, params: chex.ArrayTree, last_params: chex.ArrayTree
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    r"""Returns :math:`s = \theta_t - \theta_{t-1}` and the change y of the gradient, both in float32 or wider.

    Where a parameter is narrower the gradients are taken in float32: in bfloat16 they would differ by rounding alone.
    """
    params, last_params = trees.widen(params), trees.widen(last_params)
    ends = (derivatives.gradient(overlap_value_fn, end) for end in (params, last_params))
    return trees.subtract(params, last_params), trees.subtract(*ends)
