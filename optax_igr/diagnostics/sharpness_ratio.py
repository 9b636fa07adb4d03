r"""The largest curvature in units of what the optimizer bears, watched while it trains.

.. math:: r = \lambda_{max}(P^{-1} H) \,/\, \tau, \qquad \tau = 2/h \text{ for gradient descent}

Below :math:`h\lambda = 1` the series of the modified flows converges. Up to :math:`r = 1` the steps
oscillate and the oscillation dies out. At :math:`r = 1` it stays: the edge of stability, where real
networks train.

References:
  Cohen et al, `Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability
  <https://arxiv.org/abs/2103.00065>`_, 2021
  Cohen et al, `Adaptive Gradient Methods at the Edge of Stability
  <https://arxiv.org/abs/2207.14484>`_, 2022
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import control_flow, derivatives, hyperparameters, stability, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.transform import transform

_NAME = "monitor_sharpness_ratio"
# From the direction of the gradient; later measurements only follow the leading eigenvector.
_FIRST_PRODUCTS = 20


class Regime(enum.IntEnum):
    """Which description of the optimizer holds.

    Attributes:
      SERIES: the steps do not oscillate; `optax_igr.flows.modified_flow` and `optimizer_flow` hold.
      BEYOND_SERIES: they oscillate, and the oscillation dies out; `principal_flow` is NaN.
      EDGE: the oscillation stays; `central_flow` and `edge_flow` hold.
    """

    SERIES = 0
    BEYOND_SERIES = 1
    EDGE = 2


class MonitorSharpnessRatioState(NamedTuple):
    r"""What the last measurement found.

    Attributes:
      count: the number of updates.
      direction: the estimate of the leading eigenvector, a unit tree in float32 or wider.
      sharpness_ratio: the curvature along it over the largest stable one; 1 at the edge of
        stability. From below, unless the direction has turned away.
      ratio_error: an eigenvalue lies as close as this, in the same unit.
      regime: a `Regime`.
      inner_state: the state of the optimizer inside.
    """

    count: ArrayLike
    direction: Any
    sharpness_ratio: ArrayLike
    ratio_error: ArrayLike
    regime: ArrayLike
    inner_state: Any


def monitor_sharpness_ratio(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    *,
    interval: int = 10,
    momentum: Scalar = 0.0,
    nesterov: bool = False,
    averaged: bool = False,
    preconditioner: Callable[[Any], Any] | None = None,
    edge: Scalar = 0.95,
    hvp: derivatives.Mode = "auto",
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimizer and measures how near it is to the edge of stability.

    .. math:: r = \lambda_{max}(P^{-1} H) \,/\, \tau

    with :math:`\tau = 2/h` for gradient descent, :math:`(2+2\beta)/h` for heavy ball,
    :math:`(2+2\beta)/((1+2\beta)h)` for Nesterov's momentum, and these over :math:`1-\beta` for a
    moving average such as Adam's. Updates are those of `inner`. Read the state by name, with
    `optax.tree.get(state, "sharpness_ratio")`.

    It costs one Hessian-vector product every `interval` steps, and 20 at the first step: one step of a
    power iteration that keeps its direction. It starts from that of the gradient. On minibatches the
    Hessian is that of the batch.

    Args:
      inner: the optimizer.
      learning_rate: the h of `inner`, a number or its schedule.
      interval: how many steps lie between two measurements.
      momentum: the :math:`\beta` of `inner`: 0.9 for `optax.adam` (with `averaged`).
      nesterov: whether it is Nesterov's.
      averaged: whether momentum is an exponential moving average, with weights that sum to one.
      preconditioner: None, or a function from the state of `inner` to what each entry of the direction
        is divided by, a tree like the parameters: `adam_divisor()` or `rmsprop_divisor()`.
      edge: the ratio from which a run is at the edge.
      hvp: the mode of the product.

    Returns:
      A transform whose `update` needs `params` and `value_fn`.

    Raises:
      ValueError: if an argument is out of its range, or if the state of `inner` has a second moment
        `nu` and no `preconditioner` is given.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optax_igr import diagnostics
      >>> value_fn = lambda x: jnp.sum(jnp.array([3.0, 1.0]) * x**2)
      >>> optimizer = diagnostics.monitor_sharpness_ratio(optax.sgd(0.2), 0.2)
      >>> params = jnp.ones(2)
      >>> state = optimizer.init(params)
      >>> grads = jax.grad(value_fn)(params)
      >>> _, state = optimizer.update(grads, state, params, value_fn=value_fn)
      >>> print(f"{state.sharpness_ratio:.2f}", diagnostics.Regime(int(state.regime)).name)
      0.60 BEYOND_SERIES

    References:
      Cohen et al, `Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability
      <https://arxiv.org/abs/2103.00065>`_, 2021
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise ValueError(
            f"{_NAME}: `inner` must be an optax.GradientTransformation, got {inner!r}."
        )
    rate = hyperparameters.checked(_NAME, "learning_rate", learning_rate, at_least=0)
    hyperparameters.check_positive_integer(_NAME, "interval", interval)
    hyperparameters.check_scalar(_NAME, "momentum", momentum, at_least=0, below=1)
    hyperparameters.check_scalar(_NAME, "edge", edge, above=0)
    derivatives.check_mode(_NAME, hvp)
    limit = stability.stability_threshold(momentum, nesterov, averaged)
    radius = stability.series_radius(momentum, nesterov, averaged) / limit
    inner = optax.with_extra_args_support(inner)

    def init(params):
        inner_state = inner.init(params)
        if preconditioner is None and optax.tree.get_all_with_path(inner_state, "nu"):
            raise ValueError(
                f"{_NAME}: the state of `inner` has a second moment `nu`, so the largest stable curvature "
                "is that of the preconditioned Hessian: give `preconditioner`, such as adam_divisor()."
            )
        # Zero until the first gradient gives a direction to start from.
        direction = jax.tree.map(lambda x: jnp.zeros_like(x, trees.widened(x.dtype)), params)
        dtype = trees.scalar_dtype(direction)
        ratio, error = (jnp.zeros([], dtype) for _ in range(2))
        count, regime = (jnp.zeros([], jnp.int32) for _ in range(2))
        return MonitorSharpnessRatioState(count, direction, ratio, error, regime, inner_state)

    def measured(state, params, gradient, value_fn, inner_state):
        """Power iteration on the preconditioned Hessian, and Rayleigh's quotient at its end."""
        params = trees.widen(params)
        step = hyperparameters.value_at(rate, state.count)
        divisor = None if preconditioner is None else preconditioner(inner_state)

        def scaled(vector):
            if divisor is None:
                return vector
            return jax.tree.map(lambda v, d: v / jnp.sqrt(d).astype(v.dtype), vector, divisor)

        operator = derivatives.hessian_operator(value_fn, params, mode=hvp, name=_NAME)

        def improve(carry):
            count, direction, *_ = carry
            image = trees.scale(step / limit, scaled(operator(scaled(direction))))
            ratio = trees.inner_product(direction, image)
            rest = trees.subtract(image, trees.scale(ratio, direction))
            # The shift keeps negative curvature, of up to half the edge, from leading.
            following, _ = trees.unit(trees.add(image, trees.scale(0.25, direction)))
            return count + 1, following, ratio, jnp.sqrt(trees.squared_norm(rest))

        is_first = trees.squared_norm(state.direction) == 0
        rounds = jnp.where(is_first, _FIRST_PRODUCTS, 1)
        direction = jax.tree.map(
            lambda new, old: jnp.where(is_first, new, old), first(gradient), state.direction
        )
        start = direction, state.sharpness_ratio, state.ratio_error
        new = control_flow.while_loop(
            lambda carry: carry[0] < rounds, improve, (jnp.zeros_like(rounds), *start)
        )[1:]
        # One bad batch must not turn the direction into NaN for ever.
        good = trees.all_finite(new)
        kept = state.direction, state.sharpness_ratio, state.ratio_error
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, kept)

    def first(gradient):
        """The gradient's direction, and a part of the diagonal for where the gradient is zero."""
        own, _ = trees.unit(gradient)
        diagonal, _ = trees.unit(jax.tree.map(jnp.ones_like, own))
        return trees.unit(trees.add(own, trees.scale(0.1, diagonal)))[0]

    def update(updates, state, params, *, gradient, value_fn, **extra):
        updates, inner_state = inner.update(
            updates, state.inner_state, params, value_fn=value_fn, **extra
        )
        direction, ratio, error = control_flow.cond(
            state.count % interval == 0,
            lambda: measured(state, params, gradient, value_fn, inner_state),
            lambda: (state.direction, state.sharpness_ratio, state.ratio_error),
        )
        regime = jnp.where(
            ratio >= edge,
            Regime.EDGE.value,
            jnp.where(ratio >= radius, Regime.BEYOND_SERIES.value, Regime.SERIES.value),
        ).astype(jnp.int32)
        count = optax.safe_increment(state.count)
        return updates, MonitorSharpnessRatioState(
            count, direction, ratio, error, regime, inner_state
        )

    return transform(
        _NAME,
        init,
        update,
        needs=("params", "value_fn"),
        state_like_params=("direction",),
    )


def adam_divisor(
    b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0
) -> Callable[[Any], Any]:
    r"""Returns the function from Adam's state to :math:`\sqrt{\hat\nu + \epsilon_{root}} + \epsilon`.

    Args:
      b2: the decay of the second moment.
      eps: what `optax.adam` adds to the root.
      eps_root: what it adds under the root.

    Returns:
      A `preconditioner` for `monitor_sharpness_ratio`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from optax_igr import diagnostics
      >>> optimizer = optax.adam(0.1)
      >>> _, state = optimizer.update(jnp.array(3.0), optimizer.init(jnp.array(0.0)))
      >>> print(f"{diagnostics.adam_divisor()(state):.2f}")
      3.00

    References:
      Cohen et al, `Adaptive Gradient Methods at the Edge of Stability <https://arxiv.org/abs/2207.14484>`_, 2022
    """

    def divisor(state):
        path, moment = _second_moment("adam_divisor", state)
        # The schedule of a learning rate has a count of its own, in another state.
        owner = getattr(path[-1], "tuple_name", None)
        count = optax.tree.get(
            state, "count", filtering=lambda p, _: getattr(p[-1], "tuple_name", None) == owner
        )
        weights = 1 - b2**count
        return jax.tree.map(lambda nu: jnp.sqrt(nu / weights + eps_root) + eps, moment)

    return divisor


def rmsprop_divisor(eps: Scalar = 1e-8, eps_in_sqrt: bool = True) -> Callable[[Any], Any]:
    r"""Returns the function from RMSProp's state to :math:`\sqrt{\nu + \epsilon}`.

    Args:
      eps: what `optax.rmsprop` adds.
      eps_in_sqrt: whether it is added under the root.

    Returns:
      A `preconditioner` for `monitor_sharpness_ratio`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from optax_igr import diagnostics
      >>> optimizer = optax.rmsprop(0.1, decay=0.75)
      >>> _, state = optimizer.update(jnp.array(3.0), optimizer.init(jnp.array(0.0)))
      >>> print(f"{diagnostics.rmsprop_divisor()(state):.2f}")
      1.50

    References:
      Cohen et al, `Adaptive Gradient Methods at the Edge of Stability <https://arxiv.org/abs/2207.14484>`_, 2022
    """

    def divisor(state):
        def leaf(nu):
            return jnp.sqrt(nu + eps) if eps_in_sqrt else jnp.sqrt(nu) + eps

        return jax.tree.map(leaf, _second_moment("rmsprop_divisor", state)[1])

    return divisor


def _second_moment(name: str, state: Any) -> tuple[Any, Any]:
    found = optax.tree.get_all_with_path(state, "nu")
    if len(found) != 1:
        raise ValueError(
            f"{name}: the optimizer's state must have one second moment `nu`, but has {len(found)}."
        )
    return found[0]
