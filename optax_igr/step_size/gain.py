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

import functools
from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import hyperparameters, processors, trees
from optax_igr._core.transform import transform
from optax_igr.step_size import _log_domain

_NAME = "scale_by_gain"

Signal = Literal["product", "sign", "normalized"]
SIGNALS: tuple[str, ...] = get_args(Signal)


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
        # The number of entries makes the mean agreement the cosine, whatever the size of the leaf.
        past, gradient = trees.unit(past)[0], trees.unit(gradient)[0]
        return gradient.size * jnp.real(jnp.conj(past) * gradient)
    return jnp.real(jnp.conj(past) * gradient)


def next_average(average: jax.Array, gradient: jax.Array, ema: hyperparameters.Scalar) -> jax.Array:
    """Returns the moving average of one leaf's gradients; an entry that is not finite counts as zero."""
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0).astype(average.dtype)
    if isinstance(ema, float) and ema == 0:
        # The old average is then not read at all.
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
    signal: Signal = "product",
    ema: optax.ScalarOrSchedule = 0.0,
    decay: optax.ScalarOrSchedule = 0.0,
    bounds: _log_domain.Bounds | None = None,
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

    .. note::
      The gain survives a gradient that is 1e15 times too large: the bound on one move holds it, and `product` takes
      into the average only what that bound allows. What follows the gain may not survive (momentum, a second moment,
      the parameters): put `optax.clip_by_global_norm` first in the chain.

    Args:
      gain_rate: :math:`\gamma`, a number or a schedule. At 0 the updates pass bit for bit. One step moves the log-gain
        by at most 1, whatever the signal.
      signal: `product`, `sign` or `normalized`.
      ema: the decay rate of the average of past gradients, in [0, 1).
      decay: :math:`\lambda`, the fraction of the log-gain that is lost in a step, in [0, 1). Of all three, a value of a
        schedule outside the range is moved into it, and one that is not finite counts as 0.
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
    checked = functools.partial(hyperparameters.checked, _NAME)
    gain_rate = checked("gain_rate", gain_rate)
    hyperparameters.check_choice(_NAME, "signal", signal, SIGNALS)
    ema = checked("ema", ema, at_least=0, below=1)
    decay = checked("decay", decay, at_least=0, below=1)
    _log_domain.check_bounds(_NAME, "bounds", bounds)

    def init(params):
        return ScaleByGainState(
            count=jnp.zeros([], jnp.int32),
            log_gain=real_zeros_like(params),
            average=wide_zeros_like(params),
            average_weight=jnp.zeros([], jnp.float32),
        )

    def update(updates, state, params, *, gradient, **unused):
        del params, unused
        rate, ema_now, decay_now = (
            hyperparameters.value_at(value, state.count) for value in (gain_rate, ema, decay)
        )
        false = processors.unprovable_false(state.count)

        def moved(n, average, g):
            n = next_log_gain(signal, n, average, state.average_weight, g, rate, decay_now, bounds)
            # It is read by the update, by the next state and by the average.
            return processors.written_once(n, false)

        log_gain = jax.tree.map(moved, state.log_gain, state.average, gradient)
        scaled = jax.tree.map(lambda n, u: times(jnp.exp(n), u), log_gain, updates)
        return scaled, ScaleByGainState(
            count=optax.safe_increment(state.count),
            log_gain=log_gain,
            average=next_averages(
                signal,
                state.average,
                state.average_weight,
                gradient,
                ema_now,
                rate,
                log_gain,
                false,
            ),
            average_weight=next_weight(state.average_weight, ema_now),
        )

    return transform(_NAME, init, update, state_like_params=("log_gain", "average"))


def next_log_gain(
    signal: str,
    log_gain: jax.Array,
    average: jax.Array,
    average_weight: ArrayLike,
    gradient: jax.Array,
    rate: hyperparameters.Scalar,
    decay: hyperparameters.Scalar,
    bounds: _log_domain.Bounds | None,
) -> jax.Array:
    """Returns the log-gain of one leaf after one more gradient, from the average of those before it."""
    agreement = gain_signal(signal, average, gradient.astype(average.dtype))
    if signal == "product":
        agreement = inverse_weight(average_weight, log_gain.dtype) * agreement
    return _log_domain.step(log_gain, agreement, rate, decay, bounds)


def next_averages(
    signal: str,
    average: chex.ArrayTree,
    average_weight: ArrayLike,
    gradient: chex.ArrayTree,
    ema: hyperparameters.Scalar,
    rate: hyperparameters.Scalar,
    log_gain: chex.ArrayTree,
    false: jax.Array,
) -> chex.ArrayTree:
    """Returns the averages of all leaves, written when the new log-gain has read the old ones."""

    def moved(a, g, n):
        if signal == "product":
            g = within_one_move(a, average_weight, g, rate)
        return processors.after(next_average(a, g, ema), false, n)

    return jax.tree.map(moved, average, gradient, log_gain)


def within_one_move(
    average: jax.Array, average_weight: ArrayLike, gradient: jax.Array, rate: hyperparameters.Scalar
) -> jax.Array:
    r"""Shortens the entries of a gradient whose product with the average would move the log-gain by more than allowed.

    The move itself is limited in any case. This keeps a gradient that is 1e15 times too large out of the average, where
    it would move the log-gain by all that is allowed for hundreds of steps.
    """
    dtype = jnp.finfo(average.dtype).dtype
    gradient = gradient.astype(average.dtype)
    weight = inverse_weight(average_weight, dtype)
    move = jnp.abs(jnp.asarray(rate, dtype) * weight) * jnp.abs(average) * jnp.abs(gradient)
    # One where nothing is to be shortened, with a finite derivative at a move of zero.
    return times(_log_domain.MAX_MOVE / jnp.maximum(move, _log_domain.MAX_MOVE), gradient)


def inverse_weight(average_weight: ArrayLike, dtype: jnp.dtype) -> jax.Array:
    """Returns what an average is multiplied by to be unbiased; one before the first gradient."""
    # An average of no gradients is zero, whatever it is divided by.
    weight = jnp.asarray(average_weight)
    return (1 / jnp.where(weight > 0, weight, 1)).astype(dtype)


def next_weight(weight: ArrayLike, ema: hyperparameters.Scalar) -> jax.Array:
    """Returns the sum of the weights in a moving average that has taken one more gradient."""
    return next_average(jnp.asarray(weight), jnp.ones([], jnp.float32), ema)


def times(factor: jax.Array, x: jax.Array) -> jax.Array:
    """Multiplies a real factor and an array in the wider of their dtypes, and returns the dtype of the array."""
    wide = trees.widened(x.dtype)
    return (factor.astype(jnp.finfo(wide).dtype) * x.astype(wide)).astype(x.dtype)
