r"""The complete step-size adaptation by exponentiated gradients: a gain before momentum, a scale after it.

.. math::
  \begin{aligned}
  s_t &= s_{t-1} \exp\big(\gamma_s\,\cos(g_t, v_{t-1})\big) &
  \nu_t &= \nu_{t-1} \odot \exp\big(\gamma_\nu\,\mathrm{sign}(g_t) \odot \mathrm{sign}(\bar g_{t-1})\big) \\
  v_t &= \mu v_{t-1} + \eta\,\nu_t \odot g_t &
  \bar g_t &= \beta \bar g_{t-1} + (1 - \beta) g_t, \qquad \theta_{t+1} = \theta_t - s_t v_t
  \end{aligned}

References:
  Amid et al, `Step-size Adaptation Using Exponentiated Gradient Updates <https://arxiv.org/abs/2202.00145>`_, 2022
  Google, `Exponentiated Gradient Delta-Delta
  <https://github.com/tensorflow/lingvo/blob/master/lingvo/core/egdd.py>`_, 2020 (the defaults)
"""

import functools
from typing import NamedTuple

import chex
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import hyperparameters, processors
from optax_igr._core.transform import transform
from optax_igr.step_size import _alignment, _log_domain, gain

_NAME = "egdd"


class EgddState(NamedTuple):
    r"""The number of updates, :math:`\log \nu`, :math:`\bar g` and its weight, :math:`v`, :math:`\log s`."""

    count: ArrayLike
    log_gain: chex.ArrayTree
    average: chex.ArrayTree
    average_weight: ArrayLike
    velocity: chex.ArrayTree
    log_scale: chex.ArrayTree


def egdd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: optax.ScalarOrSchedule = 0.9,
    ema: optax.ScalarOrSchedule = 0.9,
    gain_rate: optax.ScalarOrSchedule = 1e-2,
    scale_rate: optax.ScalarOrSchedule = 1e-3,
    gain_signal: gain.Signal = "sign",
    scale_signal: _alignment.Signal = "cosine",
    gain_bounds: _log_domain.Bounds | None = (1e-2, 1e2),
    scale_bounds: _log_domain.Bounds | None = (0.1, 10.0),
    granularity: _alignment.Granularity = "leaf",
) -> optax.GradientTransformationExtraArgs:
    r"""Heavy ball with a learned gain for every parameter and a learned scale for every leaf.

    It is :func:`optax_igr.scale_by_gain`, the learning rate and a momentum buffer inside
    :func:`optax_igr.adapt_scale`, with one copy of the parameters less in its state. The defaults are
    those of Google's EGDD, which bounds the scale to [0.1, 10]: what is learned there refines a learning rate, it does
    not find one. With `scale_bounds=None` and a larger `scale_rate` the scale reaches further.

    .. warning::
      Without noise every sign agrees, and the gains grow up to their bound of 100: with the defaults it diverged on
      Rosenbrock's function at every learning rate down to 2e-5. There, bound the gains by 1.

    .. warning::
      Clip the gradient first: `optax.chain(optax.clip_by_global_norm(1.0), egdd(...))`. As in any heavy ball, one that
      is 1e15 times too large stays in the momentum for hundreds of steps. A tanh network at a loss of 0.004 became NaN,
      and with the clip it was back after 27 steps.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule. Of every schedule here, a value outside the range is moved
        into it, and one that is not finite counts as 0.
      momentum: :math:`\mu`, in [0, 1).
      ema: :math:`\beta`, the decay rate of the average of past gradients, in [0, 1). It is bias-corrected.
      gain_rate: :math:`\gamma_\nu`, a number or a schedule.
      scale_rate: :math:`\gamma_s`, a number or a schedule. One step moves a log-gain or a log-scale by at most 1.
      gain_signal: `sign`, `product` or `normalized`, as in :func:`optax_igr.scale_by_gain`.
      scale_signal: `cosine`, `sign` or `product`, as in :func:`optax_igr.adapt_scale`.
      gain_bounds: the least and the largest gain, or None.
      scale_bounds: the least and the largest scale, or None.
      granularity: `leaf`, one scale for each leaf, or `tree`.

    Returns:
      An optimizer that takes the raw gradient for both signals from `grad` if it is given, else from the updates.
      `optax.tree.get` finds `log_gain` and `log_scale` in its state. An entry of the gradient that is not finite
      counts as zero.

    Raises:
      ValueError: for a bad argument; in `update`, for trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: jnp.sum(jnp.array([1.0, 0.01]) * p**2)
      >>> optimizer = optax_igr.egdd(0.02)
      >>> params = jnp.ones(2)
      >>> state = optimizer.init(params)
      >>> for _ in range(200):
      ...     updates, state = optimizer.update(jax.grad(value_fn)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(f"loss {value_fn(params):.0E} (heavy ball: 2E-03)")
      loss 3E-05 (heavy ball: 2E-03)
      >>> print([f"{gain:.1f}" for gain in jnp.exp(optax.tree.get(state, "log_gain"))])
      ['1.2', '7.3']

    References:
      Amid et al, `Step-size Adaptation Using Exponentiated Gradient Updates
      <https://arxiv.org/abs/2202.00145>`_, 2022
    """
    checked = functools.partial(hyperparameters.checked, _NAME)
    learning_rate = checked("learning_rate", learning_rate)
    momentum = checked("momentum", momentum, at_least=0, below=1)
    ema = checked("ema", ema, at_least=0, below=1)
    gain_rate = checked("gain_rate", gain_rate)
    scale_rate = checked("scale_rate", scale_rate)
    hyperparameters.check_choice(_NAME, "gain_signal", gain_signal, gain.SIGNALS)
    hyperparameters.check_choice(_NAME, "scale_signal", scale_signal, _alignment.SIGNALS)
    _log_domain.check_bounds(_NAME, "gain_bounds", gain_bounds)
    _log_domain.check_bounds(_NAME, "scale_bounds", scale_bounds)
    hyperparameters.check_choice(_NAME, "granularity", granularity, _alignment.GRANULARITIES)

    def init(params):
        return EgddState(
            count=jnp.zeros([], jnp.int32),
            log_gain=gain.real_zeros_like(params),
            average=gain.wide_zeros_like(params),
            average_weight=jnp.zeros([], jnp.float32),
            velocity=gain.wide_zeros_like(params),
            log_scale=_alignment.initial_log_scale(params, granularity),
        )

    def update(updates, state, params, *, gradient, **unused):
        del params, unused
        rate, momentum_now, ema_now, gain_rate_now, scale_rate_now = (
            hyperparameters.value_at(value, state.count)
            for value in (learning_rate, momentum, ema, gain_rate, scale_rate)
        )
        # The previous step was minus the velocity, and every signal is odd in the step.
        log_scale = _alignment.next_log_scale(
            scale_signal,
            state.log_scale,
            state.velocity,
            gradient,
            -scale_rate_now,
            0.0,
            scale_bounds,
        )
        false = processors.unprovable_false(state.count)

        def next_log_gain(log_s, n, average, g):
            n = gain.next_log_gain(
                gain_signal, n, average, state.average_weight, g, gain_rate_now, 0.0, gain_bounds
            )
            # Beside the inner products of the scale it would compete with them for memory.
            return processors.written_once(n, false, log_s)

        def next_velocity(log_s, v, n, g):
            # One NaN would stay in the velocity for ever.
            g = jnp.where(jnp.isfinite(g), g, 0).astype(v.dtype)
            pushed = gain.times(jnp.asarray(rate, n.dtype) * jnp.exp(n), g)
            moved = gain.times(jnp.asarray(momentum_now, n.dtype), v) + pushed
            return processors.written_once(moved, false, log_s)

        # The scale is learned first: it reads the velocity that the next lines overwrite.
        log_gain = _alignment.map_scaled(
            next_log_gain, log_scale, state.log_gain, state.average, gradient
        )
        velocity = _alignment.map_scaled(
            next_velocity, log_scale, state.velocity, log_gain, updates
        )
        stepped = _alignment.map_scaled(
            lambda log_s, v, u: gain.times(-jnp.exp(log_s), v).astype(u.dtype),
            log_scale,
            velocity,
            updates,
        )
        return stepped, EgddState(
            count=optax.safe_increment(state.count),
            log_gain=log_gain,
            average=gain.next_averages(
                gain_signal,
                state.average,
                state.average_weight,
                gradient,
                ema_now,
                gain_rate_now,
                log_gain,
                false,
            ),
            average_weight=gain.next_weight(state.average_weight, ema_now),
            velocity=velocity,
            log_scale=log_scale,
        )

    return transform(_NAME, init, update, state_like_params=("log_gain", "average", "velocity"))
