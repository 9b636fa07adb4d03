r"""A global scale for any optimizer, learned by exponentiated gradients.

With :math:`\theta_t = \theta_{t-1} + s\,u_{t-1}`, whatever optimizer made :math:`u`, the loss depends on the scale
through

.. math:: \frac{\partial L}{\partial \log s} = \langle s\,u_{t-1},\, g_t \rangle

so the scale grows while the last step still points downhill, and shrinks when it went too far. That needs the raw
gradient and the update that left the whole optimizer, which no link inside a chain sees: hence a wrapper.

References:
  Amid et al, `Step-size Adaptation Using Exponentiated Gradient Updates <https://arxiv.org/abs/2202.00145>`_, 2022
  Zhu et al, `Automatic, Dynamic, and Nearly Optimal Learning Rate Specification by Local Quadratic Approximation
  <https://arxiv.org/abs/2004.03260>`_, 2020
  Balboni, Bacciu, `ADLER: An efficient Hessian-based strategy for adaptive learning rate
  <https://arxiv.org/abs/2305.16396>`_, 2023
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import extra_args, hyperparameters, trees
from optax_igr.step_size import buffers, first_steps, log_domain
from optax_igr.step_size.alignment import (
    GRANULARITIES,
    SIGNALS,
    accumulated,
    initial_log_scale,
    map_scaled,
    next_log_scale,
)

_NAME = "adapt_scale"


class AdaptScaleState(NamedTuple):
    r"""The number of updates, :math:`\log s`, the inner optimizer's last updates and its state.

    With `ema` the last updates are the sum of all, with the weights :math:`\beta^k`. `measurements` holds how many of
    the first steps have been measured and what was found, `measured_log_scale` the log-scale after the last of them,
    `longest_step` the largest :math:`\|s u\|` since.
    """

    count: ArrayLike
    log_scale: chex.ArrayTree
    previous_updates: chex.ArrayTree
    measurements: first_steps.Measurements
    measured_log_scale: chex.ArrayTree
    longest_step: ArrayLike
    inner_state: optax.OptState


def adapt_scale(
    inner: optax.GradientTransformation,
    scale_rate: optax.ScalarOrSchedule,
    *,
    granularity: str = "tree",
    signal: str = "cosine",
    ema: optax.ScalarOrSchedule = 0.0,
    decay: optax.ScalarOrSchedule = 0.0,
    bounds: log_domain.Bounds | None = None,
    first_step: str | None = None,
    warmup_steps: int | None = None,
    max_relative_update: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimizer and learns by how much its updates are to be scaled.

    .. math:: \log s_t = (1 - \lambda) \log s_{t-1} - \gamma\,\frac{\langle u_{t-1}, g_t \rangle}{\|u_{t-1}\| \|g_t\|},
       \qquad \theta_{t+1} = \theta_t + s_t\,u_t

    The cosine moves the log-scale by at most :math:`\gamma` a step and does not see the scale of the loss. From a
    rate that is wrong by a factor f it needs at least :math:`|\ln f| / \gamma` steps, from one far too large the
    damage is done before, and where batches are noisy single steps disagree already at rates that are several times
    too small. Against these three:

    - `first_step="cauchy"` sets the scale to the minimiser of the quadratic model along the inner optimizer's own
      update, :math:`|u^\top g| / |u^\top H u|`, and `warmup_steps` repeats that on the next batches, along the way so
      far: then the initial rate cancels.
    - `max_relative_update` bounds :math:`\|s u\| / \|\theta\|` over the whole tree, and folds what it takes off into
      the scale.
    - `ema` compares the gradient with the way of many steps, whose end is at the minimum along it near the rate that a
      search finds.

    .. note::
      Together (scale rate 0.8, `ema` 0.995, decay 0.001, five measured steps, a cap of 0.1) and before a schedule that
      decays to zero they replace the search for a rate. None is enough alone: on a ReLU network of seven layers a first
      batch found a length a hundred times too large, which only the cap survived; the cap alone trains Adam from every
      rate of 1e-2 and more, to 0.8 to 13 times the loss of a searched one, and from 1e-6 hardly; without further
      measured steps heavy ball fails on small batches; and without the decay the scale of a long run grows until it
      breaks, where the gradients have all but vanished.
      Where they fall short (`python -m benchmarks learning-rate`): around heavy ball on seven ReLU layers, six times
      above a searched rate, and around a decayed Adam on the first 600 batches of MNIST, a sixth above.

    Args:
      inner: any optimizer, the sign of descent included. It gets all extra arguments.
      scale_rate: :math:`\gamma`, a number or a schedule. At 0, without the two options, the updates are those of
        `inner` bit for bit.
      granularity: `tree`, one scale, or `leaf`, one for each leaf.
      signal: `cosine`; `sign`, that of :math:`-\langle u, g \rangle`; or `product`, :math:`-\langle s u, g \rangle`,
        the exact derivative of the loss, in its unit.
      ema: :math:`\beta`, in [0, 1): where it is not 0 the gradient is compared with
        :math:`\sum_k \beta^k u_{t-1-k}`, the way of the last :math:`1/(1-\beta)` steps; a number or a schedule.
      decay: :math:`\lambda`, the fraction of the log-scale that is lost in a step, in [0, 1); with a measured first
        step the fraction of its distance from what was measured.
      bounds: the least and the largest learned scale. Without them it stays within exp(±80).
      first_step: None or `cauchy`, measured at the first of a hundred updates that is neither zero nor broken. From
        there on a step is at most 1.1 times as long as the longest before it, since momentum amplifies a first step
        tenfold before a cosine tells. Under `vmap`, `init` belongs inside the `vmap`: the count then stays unbatched
        and later steps are spared the product.
      warmup_steps: how many measurements there are; None is one. From the second on they look along
        :math:`v = \sum_k \beta^k u_{t-1-k}`, and the scale is :math:`|\sum d^\top g| / (\|v\| \sum |d^\top H d|)`,
        :math:`d = v / \|v\|`, from batches that do not know the way: the one that made an update finds it too steep by
        its noise. The steps grow linearly up to it. Five to ten are enough with momentum.
      max_relative_update: the largest :math:`\|s u\| / \|\theta\|`, where parameters whose root mean square is below
        1e-2 count as that large; a number or a schedule.

    Returns:
      A transform that takes the raw gradient from `grad` if it is given, else from the updates. It needs `params`
      for either option, `value_fn` for the first step (and prefers `curvature_value_fn` for H). The scale is in the
      state, in float32 or wider: `optax.tree.get(state, "log_scale")`. After a gradient that is not finite it
      emits zeros and keeps its state and the inner one.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: jnp.sum(jnp.array([1.0, 3.0]) * p**2)
      >>> for rate in (1e-6, 1e2):
      ...     optimizer = optax_igr.adapt_scale(optax.sgd(rate), 0.03, first_step="cauchy")
      ...     @jax.jit
      ...     def step(params, state):
      ...         grad = jax.grad(value_fn)(params)
      ...         updates, state = optimizer.update(grad, state, params, value_fn=value_fn)
      ...         return optax.apply_updates(params, updates), state
      ...     params = jnp.array([3.0, 1.0])
      ...     state = optimizer.init(params)
      ...     for _ in range(30):
      ...         params, state = step(params, state)
      ...     print(f"loss {value_fn(params):.0E}, rate {rate * jnp.exp(state.log_scale):.2f}")
      loss 1E-17, rate 0.25
      loss 1E-17, rate 0.25

    References:
      Amid et al, `Step-size Adaptation Using Exponentiated Gradient Updates
      <https://arxiv.org/abs/2202.00145>`_, 2022
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise ValueError(
            f"{_NAME}: `inner` must be an optax.GradientTransformation, got {inner!r}."
        )
    hyperparameters.check_scalar_or_schedule(_NAME, "scale_rate", scale_rate)
    hyperparameters.check_choice(_NAME, "granularity", granularity, GRANULARITIES)
    hyperparameters.check_choice(_NAME, "signal", signal, SIGNALS)
    hyperparameters.check_scalar_or_schedule(_NAME, "ema", ema, at_least=0, below=1)
    hyperparameters.check_scalar_or_schedule(_NAME, "decay", decay, at_least=0, below=1)
    log_domain.check_bounds(_NAME, "bounds", bounds)
    if first_step is not None:
        hyperparameters.check_choice(_NAME, "first_step", first_step, ("cauchy",))
    if warmup_steps is not None:
        hyperparameters.check_positive_integer(_NAME, "warmup_steps", warmup_steps)
        if first_step is None:
            raise ValueError(f"{_NAME}: `warmup_steps` needs `first_step`, got {warmup_steps!r}.")
    num_measured = 1 if warmup_steps is None else warmup_steps
    if max_relative_update is not None:
        hyperparameters.check_scalar_or_schedule(
            _NAME, "max_relative_update", max_relative_update, above=0
        )
    inner = optax.with_extra_args_support(inner)
    # Without an average the last update is kept as it came: one read of the state less, and its own dtype.
    is_averaged = not (isinstance(ema, int | float) and ema == 0)

    def init(params):
        return AdaptScaleState(
            count=jnp.zeros([], jnp.int32),
            log_scale=initial_log_scale(params, granularity),
            previous_updates=jax.tree.map(
                lambda p: jnp.zeros_like(p, trees.widened(p.dtype) if is_averaged else None), params
            ),
            measurements=first_steps.no_measurements(trees.scalar_dtype(params)),
            measured_log_scale=initial_log_scale(params, granularity),
            longest_step=jnp.zeros([], trees.scalar_dtype(params)),
            inner_state=inner.init(params),
        )

    def update(updates: Any, state: Any, params: Any = None, *, grad: Any = None, **extra: Any):
        needed = {"params": params} if max_relative_update is not None else {}
        if first_step is not None:
            needed = {"params": params, "value_fn": extra.get("value_fn")}
        extra_args.require(_NAME, **needed)
        reference = updates if params is None else params
        gradient = updates if grad is None else trees.mask_like(grad, reference)
        trees.check_like(_NAME, reference, updates=updates, grad=gradient)
        check_state = trees.check_state_like if is_averaged else trees.check_like
        check_state(_NAME, reference, previous_updates=state.previous_updates)
        if grad is not None:
            extra["grad"] = gradient
        # In float32 it overflows for entries beyond 1e19, whose squares would stay in Adam for ever.
        is_usable = jnp.isfinite(trees.squared_norm(gradient))

        rate, decay_now, ema_now = (
            hyperparameters.value_at(value, state.count) for value in (scale_rate, decay, ema)
        )
        log_scale = next_log_scale(
            signal,
            state.log_scale,
            state.previous_updates,
            gradient,
            rate,
            decay_now,
            bounds,
            state.measured_log_scale,
        )

        def advance():
            inner_updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
            return trees.cast_like(inner_updates, reference), inner_state

        # The log-scale is always finite: asking for it orders its reading of the previous updates first.
        is_usable &= trees.all_finite(log_scale)
        inner_updates, inner_state = jax.lax.cond(
            is_usable,
            advance,
            lambda: (jax.tree.map(jnp.zeros_like, reference), state.inner_state),
        )

        measurements, longest = state.measurements, state.longest_step
        fraction = None
        if first_step == "cauchy":
            curved = extra.get("curvature_value_fn")
            value_fn = extra["value_fn"] if curved is None else curved
            measure = functools.partial(
                first_steps.measured_log_scale,
                value_fn,
                params,
                inner_updates,
                inner_updates if num_measured == 1 else state.previous_updates,
                gradient,
            )
            log_scale, measurements = first_steps.measured(
                measure, log_scale, state.count, measurements, is_usable, num_measured
            )
            # Momentum may amplify the steps tenfold before the first cosine tells that they are too long.
            limit = jnp.where(longest > 0, first_steps.GROWTH * longest, jnp.inf)
            log_scale = first_steps.limited_log_scale(log_scale, inner_updates, limit)
            if num_measured > 1:
                fraction = first_steps.ramp(state.count, measurements.count, num_measured)
        if max_relative_update is not None:
            limit = hyperparameters.value_at(max_relative_update, state.count)
            limit = limit * first_steps.reach(params)
            log_scale = first_steps.limited_log_scale(log_scale, inner_updates, limit)
        centre = state.measured_log_scale
        if first_step == "cauchy":
            is_new = measurements.count > state.measurements.count
            centre = jax.tree.map(lambda new, old: jnp.where(is_new, new, old), log_scale, centre)
            length = jnp.exp(first_steps.log_length(log_scale, inner_updates))
            is_measured = measurements.count >= num_measured
            longest = jnp.where(is_measured, jnp.maximum(longest, length), 0).astype(longest.dtype)

        def kept(new, old):
            return jax.tree.map(lambda n, o: jnp.where(is_usable, n, o), new, old)

        def scaled(log_s, u):
            factor = jnp.exp(log_s)
            return ((factor if fraction is None else fraction * factor) * u).astype(u.dtype)

        previous = inner_updates
        if is_averaged:
            # The measurement reads the way: added to before it is done, XLA on CPU would have to copy it.
            weight = jnp.where(buffers.never(measurements.count), 0, ema_now)
            previous = accumulated(state.previous_updates, inner_updates, weight)
        return map_scaled(scaled, log_scale, inner_updates), AdaptScaleState(
            count=optax.safe_increment(state.count),
            log_scale=kept(log_scale, state.log_scale),
            previous_updates=previous,
            measurements=measurements,
            measured_log_scale=centre,
            longest_step=kept(longest, state.longest_step),
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)
