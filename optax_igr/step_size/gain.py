r"""A gain for every parameter, learned by exponentiated gradients.

With :math:`\theta_t = \theta_{t-1} - \eta\,\nu_t \odot g_{t-1}` the loss depends on the gain through
:math:`\partial L / \partial \nu_t = -\eta\,g_{t-1} \odot g_t`, and a multiplicative step keeps it positive:

.. math:: \nu_{t+1} = \nu_t \odot \exp(\gamma\,g_{t-1} \odot g_t), \qquad \ln \nu_T = \gamma \sum_t g_{t-1} \odot g_t

A coordinate whose gradients keep their sign moves further, one whose gradients alternate moves less. That is not
what Adam does: it enlarges the steps of a coordinate whose gradients are small.

References:
  Amid et al, `Step-size Adaptation Using Exponentiated Gradient Updates <https://arxiv.org/abs/2202.00145>`_, 2022
  Su, `Exponentiated gradient descent and meta-learning <https://www.kexue.fm/archives/8968>`_, 2022
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import exponential, hyperparameters, trees
from optax_igr.step_size import buffers, log_domain

_NAME = "scale_by_gain"

SIGNALS = ("product", "sign", "normalized")


class ScaleByGainState(NamedTuple):
    r"""The number of updates, :math:`\log \nu`, the average of past gradients and its total weight."""

    count: ArrayLike
    log_gain: chex.ArrayTree
    average: chex.ArrayTree
    average_weight: ArrayLike


def gain_signal(signal: str, past: jax.Array, gradient: jax.Array) -> jax.Array:
    r"""Returns what moves the log-gain of one leaf: how far a past gradient and this one agree.

    :math:`\bar g g` for `product`, its sign for `sign`, :math:`n\,\bar g g / (\|\bar g\| \|g\|)` for `normalized`,
    with the n entries of the leaf, so that its mean is the cosine. A complex entry counts by its real inner product.
    """
    if signal == "sign":
        # The product of two small numbers may be zero where that with a sign is not.
        agreement = jnp.real(jnp.conj(jnp.sign(past)) * gradient)
        # Infinity has a sign, and says nothing.
        return jnp.sign(jnp.where(jnp.isfinite(gradient), agreement, 0))
    if signal == "normalized":
        past, gradient = trees.unit(past)[0], trees.unit(gradient)[0]
        return gradient.size * jnp.real(jnp.conj(past) * gradient)
    return jnp.real(jnp.conj(past) * gradient)


def next_average(average: jax.Array, gradient: jax.Array, ema: hyperparameters.Scalar) -> jax.Array:
    """Returns the moving average of one leaf's gradients; an entry that is not finite counts as zero."""
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0).astype(average.dtype)
    if isinstance(ema, float) and ema == 0:
        return gradient
    weight = jnp.asarray(ema, jnp.finfo(average.dtype).dtype)
    return weight * average + (1 - weight) * gradient


def real_zeros_like(params: chex.ArrayTree) -> chex.ArrayTree:
    """Returns a real zero, in float32 or wider, for every entry of the parameters."""
    return jax.tree.map(
        lambda p: jnp.zeros_like(p, dtype=jnp.finfo(trees.widened(p.dtype)).dtype), params
    )


def wide_zeros_like(params: chex.ArrayTree) -> chex.ArrayTree:
    """Returns a zero in float32 or wider for every entry of the parameters, complex where they are."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=trees.widened(p.dtype)), params)


def scale_by_gain(
    gain_rate: optax.ScalarOrSchedule,
    *,
    signal: str = "product",
    ema: optax.ScalarOrSchedule = 0.0,
    decay: optax.ScalarOrSchedule = 0.0,
    bounds: log_domain.Bounds | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies every entry of the updates by a gain that grows while the gradient keeps its sign.

    .. math::
      \log \nu_t = (1 - \lambda) \log \nu_{t-1} + \gamma\,s(\bar g_{t-1}, g_t), \qquad u \leftarrow \nu_t \odot u

    where :math:`\bar g` is the bias-corrected moving average of the gradients, with `ema=0` the last gradient, and s
    is :math:`\bar g \odot g`, its sign, or :math:`n\,\bar g \odot g / (\|\bar g\| \|g\|)` per leaf. It belongs first in
    a chain; elsewhere pass the raw gradient as `grad`.

    The product has the unit of a squared gradient: it is the paper's rule, and its :math:`\gamma` must fit the scale of
    the loss (beyond that the gain overshoots, and the loss with it). The two other signals do not see that scale.

    On zero-mean gradients of standard deviation :math:`\sigma` the log-gain is a random walk of variance
    :math:`\gamma^2 \sigma^4 T`, so that the mean gain grows although no coordinate has a trend. A log-decay makes it
    stationary: for the sign, of variance :math:`\gamma^2 / (1 - (1-\lambda)^2)`.

    Args:
      gain_rate: :math:`\gamma`, a number or a schedule. At 0 the updates pass bit for bit.
      signal: `product`, `sign` or `normalized`.
      ema: the decay rate of the average of past gradients, in [0, 1).
      decay: :math:`\lambda`, the fraction of the log-gain that is lost in a step, in [0, 1).
      bounds: the least and the largest gain, within exp(±80); None is these two.

    Returns:
      A transform that uses `grad` if it is given. The gain is in the state, in float32 or wider:
      `optax.tree.get(state, "log_gain")`. A gradient entry that is not finite leaves its gain and its average.

    Raises:
      ValueError: for a bad argument; in `update`, for trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: jnp.sum(jnp.array([1.0, 0.01]) * p**2)
      >>> optimizer = optax.chain(optax_igr.scale_by_gain(0.1, signal="sign"), optax.sgd(0.5))
      >>> params = jnp.ones(2)
      >>> state = optimizer.init(params)
      >>> for _ in range(50):
      ...     updates, state = optimizer.update(jax.grad(value_fn)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(f"loss {value_fn(params):.0E} (without: 4E-03)")
      loss 4E-28 (without: 4E-03)
      >>> print([f"{gain:.1f}" for gain in jnp.exp(optax.tree.get(state, "log_gain"))])
      ['1.0', '109.9']

    References:
      Amid et al, `Step-size Adaptation Using Exponentiated Gradient Updates
      <https://arxiv.org/abs/2202.00145>`_, 2022
    """
    hyperparameters.check_scalar_or_schedule(_NAME, "gain_rate", gain_rate)
    hyperparameters.check_choice(_NAME, "signal", signal, SIGNALS)
    hyperparameters.check_scalar_or_schedule(_NAME, "ema", ema, at_least=0, below=1)
    hyperparameters.check_scalar_or_schedule(_NAME, "decay", decay, at_least=0, below=1)
    log_domain.check_bounds(_NAME, "bounds", bounds)

    def init(params):
        return ScaleByGainState(
            count=jnp.zeros([], jnp.int32),
            log_gain=real_zeros_like(params),
            average=wide_zeros_like(params),
            average_weight=jnp.zeros([], jnp.float32),
        )

    def update(updates, state, params=None, *, grad=None, **unused):
        del unused
        reference = updates if params is None else params
        gradient = updates if grad is None else trees.mask_like(grad, reference)
        trees.check_like(_NAME, reference, updates=updates, grad=gradient)
        trees.check_state_like(_NAME, reference, log_gain=state.log_gain, average=state.average)
        gain_rate_now, ema_now, decay_now = (
            hyperparameters.value_at(value, state.count) for value in (gain_rate, ema, decay)
        )
        never = buffers.never(state.count)

        def moved(n, average, g):
            n = next_log_gain(
                signal, n, average, state.average_weight, g, gain_rate_now, decay_now, bounds
            )
            return buffers.written_once(n, never)

        log_gain = jax.tree.map(moved, state.log_gain, state.average, gradient)
        scaled = jax.tree.map(
            lambda n, u: (exponential.exp(n) * u).astype(u.dtype), log_gain, updates
        )
        new_state = ScaleByGainState(
            count=optax.safe_increment(state.count),
            log_gain=log_gain,
            average=next_averages(state.average, gradient, ema_now, log_gain, never),
            average_weight=next_weight(state.average_weight, ema_now),
        )
        return scaled, new_state

    return optax.GradientTransformationExtraArgs(init, update)


def next_log_gain(
    signal: str,
    log_gain: jax.Array,
    average: jax.Array,
    average_weight: ArrayLike,
    gradient: jax.Array,
    rate: hyperparameters.Scalar,
    decay: hyperparameters.Scalar,
    bounds: log_domain.Bounds | None,
) -> jax.Array:
    """Returns the log-gain of one leaf after one more gradient, from the average of those before it."""
    agreement = gain_signal(signal, average, gradient.astype(average.dtype))
    if signal == "product":
        weight = jnp.asarray(average_weight)
        agreement = (1 / jnp.where(weight > 0, weight, 1)).astype(log_gain.dtype) * agreement
    return log_domain.step(log_gain, agreement, rate, decay, bounds)


def next_averages(
    average: chex.ArrayTree,
    gradient: chex.ArrayTree,
    ema: hyperparameters.Scalar,
    log_gain: chex.ArrayTree,
    never: jax.Array,
) -> chex.ArrayTree:
    """Returns the averages of all leaves, written when the new log-gain has read the old ones."""
    return jax.tree.map(
        lambda a, g, n: buffers.after(next_average(a, g, ema), never, n),
        average,
        gradient,
        log_gain,
    )


def next_weight(weight: ArrayLike, ema: hyperparameters.Scalar) -> jax.Array:
    """Returns the sum of the weights in a moving average that has taken one more gradient."""
    return next_average(jnp.asarray(weight), jnp.ones([], jnp.float32), ema)
