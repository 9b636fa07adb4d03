r"""A global scale for any optimizer, learned by exponentiated gradients.

Let :math:`\theta_t = \theta_{t-1} + s\,u_{t-1}`, whatever optimizer made :math:`u`. The loss depends on the scale
through

.. math:: \frac{\partial L}{\partial \log s} = \langle s\,u_{t-1},\, g_t \rangle

The scale grows while the last step still points downhill, and shrinks when it went too far. That needs the raw gradient
and the update that left the whole optimizer. No link inside a chain sees both, hence a wrapper.

One update has three parts: the scale learns from the last step (`learn`), it is measured in the first steps
(`measure`), and it is capped where a step is long for its parameters (`cap`). The file has more than 300 lines because
the public docstring alone has a hundred: every option answers a failure that was measured.

References:
  Amid et al, `Step-size Adaptation Using Exponentiated Gradient Updates <https://arxiv.org/abs/2202.00145>`_, 2022
  Zhu et al, `Automatic, Dynamic, and Nearly Optimal Learning Rate Specification by Local Quadratic Approximation
  <https://arxiv.org/abs/2004.03260>`_, 2020
  Balboni, Bacciu, `ADLER: An efficient Hessian-based strategy for adaptive learning rate
  <https://arxiv.org/abs/2305.16396>`_, 2023
"""

import functools
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import control_flow, derivatives, hyperparameters, processors, trees
from optax_igr._core.transform import transform
from optax_igr.step_size import _first_steps, _log_domain
from optax_igr.step_size._alignment import (
    GRANULARITIES,
    SIGNALS,
    Granularity,
    Signal,
    accumulated,
    initial_log_scale,
    map_scaled,
    next_log_scale,
)

_NAME = "adapt_scale"

# What a cap without meaning becomes. The step is all but left out, and the scale it leaves behind can grow back.
_LEAST_RELATIVE_UPDATE = 1e-6


class AdaptScaleState(NamedTuple):
    r"""The number of updates, :math:`\log s`, the inner optimizer's last updates and its state.

    With `ema` the last updates are the sum of all, with the weights :math:`\beta^k`. `measurements` holds how many of
    the first steps have been measured and what was found, `measured_log_scale` the log-scale after the last of them,
    `longest_step` the largest :math:`\|s u\|` since.
    """

    count: ArrayLike
    log_scale: chex.ArrayTree
    previous_updates: chex.ArrayTree
    measurements: _first_steps.Measurements
    measured_log_scale: chex.ArrayTree
    longest_step: ArrayLike
    inner_state: optax.OptState


def adapt_scale(
    inner: optax.GradientTransformation,
    scale_rate: optax.ScalarOrSchedule,
    *,
    granularity: Granularity = "tree",
    signal: Signal = "cosine",
    ema: optax.ScalarOrSchedule = 0.0,
    decay: optax.ScalarOrSchedule = 0.0,
    bounds: _log_domain.Bounds | None = None,
    first_step: Literal["cauchy"] | None = None,
    warmup_steps: int | None = None,
    max_relative_update: optax.ScalarOrSchedule | None = None,
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimizer and learns by how much its updates are to be scaled.

    .. math:: \log s_t = (1 - \lambda) \log s_{t-1} - \gamma\,\frac{\langle u_{t-1}, g_t \rangle}{\|u_{t-1}\| \|g_t\|},
       \qquad \theta_{t+1} = \theta_t + s_t\,u_t

    The cosine moves the log-scale by at most :math:`\gamma` a step and does not see the scale of the loss. Three
    things follow. From a rate that is wrong by a factor f it needs at least :math:`|\ln f| / \gamma` steps. From one
    far too large the damage is done before. And where batches are noisy, single steps disagree already at rates that
    are several times too small. Against these three:

    - `first_step="cauchy"` sets the scale to the minimizer of the quadratic model along the inner optimizer's own
      update, :math:`|u^\top g| / |u^\top H u|`. `warmup_steps` repeats that on the next batches, along the displacement
      so far. The initial rate then cancels.
    - `max_relative_update` bounds :math:`\|s u\| / \|\theta\|` over the whole tree, and folds what it takes off into
      the scale.
    - `ema` compares the gradient with the displacement of many steps. Near the rate that a search finds, its end is at
      the minimum along it.

    .. note::
      Together they replace the search for a rate: scale rate 0.8, `ema` 0.995, decay 0.001, five measured steps, a cap
      of 0.1, before a schedule that decays to zero. None is enough alone:

      - On a ReLU network of seven layers a first batch found a length a hundred times too large. Only the cap survived.
      - The cap alone trains Adam from every rate of 1e-2 and more, to 0.8 to 13 times the loss of a searched one. From
        1e-6 it hardly moves.
      - Without further measured steps heavy ball fails on small batches.
      - Without the decay the scale of a long run grows until it breaks, where the gradients have all but vanished.

      Where they fall short (`python -m benchmarks learning-rate`): around heavy ball on seven ReLU layers, six times
      above a searched rate, and around a decayed Adam on the first 600 batches of MNIST, a sixth above.

    .. note::
      One step moves the log-scale by at most 1, so that one gradient that is 1e15 times too large does not move it out
      of reach. The inner optimizer has no such bound: put `optax.clip_by_global_norm` in front of this one, in a chain.

    Args:
      inner: any optimizer, the sign of descent included. It gets all extra arguments.
      scale_rate: :math:`\gamma`, a number or a schedule. At 0, without the other options, the scale stays 1, and the
        updates are those of `inner` to rounding. (Not bit for bit under `jax.jit`: `inner` is compiled inside a branch
        of its own, and XLA contracts other products and sums than it does without one.)
      granularity: `tree`, one scale, or `leaf`, one for each leaf.
      signal: `cosine`; `sign`, that of :math:`-\langle u, g \rangle`; or `product`, :math:`-\langle s u, g \rangle`,
        the exact derivative of the loss, in its unit.
      ema: :math:`\beta`, in [0, 1). Where it is not 0 the gradient is compared with
        :math:`\sum_k \beta^k u_{t-1-k}`, the displacement of the last :math:`1/(1-\beta)` steps. A number or a
        schedule.
      decay: :math:`\lambda`, the fraction of the log-scale that is lost in a step, in [0, 1); with a measured
        first step the fraction of its distance from what was measured. A number or a schedule.
      bounds: the least and the largest learned scale. Without them it stays within exp(±80).
      first_step: None or `cauchy`, measured at the first of a hundred updates that is neither zero nor broken. From
        there on a step is at most 1.1 times as long as the longest before it, since momentum amplifies a first step
        tenfold before a cosine tells. Under `vmap`, `init` belongs inside the `vmap`: the count then stays unbatched
        and later steps are spared the product.
      warmup_steps: how many measurements there are; None is one. From the second on they look along
        :math:`v = \sum_k \beta^k u_{t-1-k}`. With :math:`d = v / \|v\|` the scale is
        :math:`|\sum d^\top g| / (\|v\| \sum |d^\top H d|)`. These batches have not made the displacement. The one that
        made an update finds it too steep by its own noise. The steps grow linearly up to the measured length. Five to
        ten are enough with momentum.
      max_relative_update: the largest :math:`\|s u\| / \|\theta\|`, where parameters whose root mean square is below
        1e-2 count as that large. A positive number, infinity (no cap), or a schedule. A value of a schedule that is not
        positive, or NaN, counts as 1e-6. A value of another schedule outside its range is moved into it, and one that
        is not finite counts as 0.
      hvp: how the Hessian-vector product of a measurement is computed, as in :func:`optax_igr.add_gradient_penalty`.
      radius: the length of a difference's perturbation, as there: a number, a schedule, or None, a default.

    Returns:
      A transform that takes the raw gradient from `grad` if it is given, else from the updates. It needs `params` for
      the first step and for the cap, and `value_fn` for the first step (H prefers `curvature_value_fn`). The scale is
      in the state, in float32 or wider: `optax.tree.get(state, "log_scale")`. After a gradient that is not finite it
      emits zeros and keeps its state and the inner one.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

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
    checked = functools.partial(hyperparameters.checked, _NAME)
    scale_rate = checked("scale_rate", scale_rate)
    ema = checked("ema", ema, at_least=0, below=1)
    decay = checked("decay", decay, at_least=0, below=1)
    hyperparameters.check_choice(_NAME, "granularity", granularity, GRANULARITIES)
    hyperparameters.check_choice(_NAME, "signal", signal, SIGNALS)
    _log_domain.check_bounds(_NAME, "bounds", bounds)
    if first_step is not None:
        hyperparameters.check_choice(_NAME, "first_step", first_step, ("cauchy",))
    if warmup_steps is not None:
        hyperparameters.check_positive_integer(_NAME, "warmup_steps", warmup_steps)
        if first_step is None:
            raise ValueError(f"{_NAME}: `warmup_steps` needs `first_step`, got {warmup_steps!r}.")
    num_measured = 1 if warmup_steps is None else warmup_steps
    if max_relative_update is not None:
        max_relative_update = checked(
            "max_relative_update",
            max_relative_update,
            above=0,
            otherwise=_LEAST_RELATIVE_UPDATE,
            allow_infinite=True,
        )
    derivatives.check_mode(_NAME, hvp, radius)
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
            measurements=_first_steps.no_measurements(trees.scalar_dtype(params)),
            measured_log_scale=initial_log_scale(params, granularity),
            longest_step=jnp.zeros([], trees.scalar_dtype(params)),
            inner_state=inner.init(params),
        )

    def learn(state, gradient):
        """Returns the log-scale after the gradient that followed the last step."""
        rate, decay_now = (hyperparameters.value_at(x, state.count) for x in (scale_rate, decay))
        return next_log_scale(
            signal,
            state.log_scale,
            state.previous_updates,
            gradient,
            rate,
            decay_now,
            bounds,
            state.measured_log_scale,
        )

    def measure(state, log_scale, inner_updates, gradient, is_usable, params, extra):
        """Returns the log-scale that the first steps measure, and what they have measured so far."""
        curvature_value_fn = extra.get("curvature_value_fn")
        log_scale, measurements = _first_steps.measure_if_due(
            functools.partial(
                _first_steps.minimizing_log_scale,
                extra["value_fn"] if curvature_value_fn is None else curvature_value_fn,
                params,
                inner_updates,
                inner_updates if num_measured == 1 else state.previous_updates,
                gradient,
                hvp=hvp,
                radius=hyperparameters.optional_value_at(radius, state.count),
                name=_NAME,
            ),
            log_scale,
            state.count,
            state.measurements,
            is_usable,
            num_measured,
        )
        limit = _first_steps.grown_length_limit(state.longest_step)
        return _first_steps.limited_log_scale(log_scale, inner_updates, limit), measurements

    def cap(count, log_scale, inner_updates, params):
        """Returns the log-scale at which the step is a small enough fraction of its parameters."""
        relative = hyperparameters.optional_value_at(max_relative_update, count)
        if relative is None:
            return log_scale
        limit = relative * _first_steps.reach(params)
        return _first_steps.limited_log_scale(log_scale, inner_updates, limit)

    def accumulate(state, inner_updates, measurements):
        """Returns what the next gradient is compared with."""
        if not is_averaged:
            return inner_updates
        weight = hyperparameters.value_at(ema, state.count)
        if num_measured > 1:
            # The measurement reads the sum so far. Unless it comes first, XLA keeps a copy of the whole sum for it: 4
            # trees of temporary memory in place of 3.
            weight = jnp.where(processors.unprovable_false(measurements.count), 0, weight)
        return accumulated(state.previous_updates, inner_updates, weight)

    def update(updates, state, params, *, gradient, **extra):
        reference = updates if params is None else params
        # Squares overflow in float32 for entries beyond 1e19. They would stay in Adam for ever.
        is_usable = jnp.isfinite(trees.squared_norm(gradient))
        log_scale = learn(state, gradient)
        # The log-scale is finite at all times. To ask for it makes XLA read the previous updates before the inner
        # optimizer overwrites them, which saves two trees of temporary memory.
        is_usable &= trees.all_finite(log_scale)

        def advance():
            inner_updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
            return trees.cast_like(inner_updates, reference), inner_state, jnp.asarray(True)

        def skip():
            zeros = jax.tree.map(jnp.zeros_like, reference)
            return zeros, state.inner_state, jnp.asarray(False)

        # The branch hands its own condition on. XLA would compute it again for every leaf that asks for it, from all
        # leaves: a program that grows with the square of their number.
        inner_updates, inner_state, is_usable = control_flow.cond(is_usable, advance, skip)
        measurements, fraction = state.measurements, None
        if first_step is not None:
            log_scale, measurements = measure(
                state, log_scale, inner_updates, gradient, is_usable, params, extra
            )
            if num_measured > 1:
                fraction = _first_steps.ramp(state.count, measurements.count, num_measured)
        log_scale = cap(state.count, log_scale, inner_updates, params)
        center, longest = state.measured_log_scale, state.longest_step
        if first_step is not None:
            # After the cap: what it took off is part of what was measured.
            center, longest = _first_steps.remembered(
                center,
                longest,
                log_scale,
                inner_updates,
                measurements.count > state.measurements.count,
                measurements.count >= num_measured,
            )

        def kept_if_usable(new, old):
            return jax.tree.map(lambda n, o: jnp.where(is_usable, n, o), new, old)

        def scaled(log_s, u):
            factor = jnp.exp(log_s)
            factor = factor if fraction is None else fraction * factor
            wide = trees.widened(u.dtype)
            return (factor.astype(jnp.finfo(wide).dtype) * u.astype(wide)).astype(u.dtype)

        return map_scaled(scaled, log_scale, inner_updates), AdaptScaleState(
            count=optax.safe_increment(state.count),
            log_scale=kept_if_usable(log_scale, state.log_scale),
            previous_updates=accumulate(state, inner_updates, measurements),
            measurements=measurements,
            measured_log_scale=center,
            longest_step=kept_if_usable(longest, state.longest_step),
            inner_state=inner_state,
        )

    needs = ("params", "value_fn") if first_step is not None else ()
    if max_relative_update is not None:
        needs = needs or ("params",)
    # A sum of updates is wide. The last updates themselves have the dtype of the parameters.
    fields = ("previous_updates",)
    return transform(
        _NAME,
        init,
        update,
        needs=needs,
        state_like_params=fields if is_averaged else (),
        state_in_dtype_of_params=() if is_averaged else fields,
    )
