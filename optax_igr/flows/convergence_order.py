r"""The order to which the steps of a method and a flow agree.

A method of step :math:`h` and a flow agree to order :math:`p` if one step differs from the flow
over the time :math:`h` by :math:`O(h^{p+1})`, and so :math:`T/h` steps from the flow over the
time :math:`T` by :math:`O(h^p)`. The slope of the logarithms of the errors against those of the
step sizes measures it.

References:
  Hairer, Lubich, Wanner, `Geometric Numerical Integration
  <https://doi.org/10.1007/3-540-30666-8>`_, 2006
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from optax_igr._core import hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.flows import _leaves
from optax_igr.flows.integrate import integrate

# The integrator's error must be this much smaller than any difference that is reported.
_MARGIN = 100


class ConvergenceOrder(NamedTuple):
    """Errors by step size, and the slope of their logarithms.

    Attributes:
      step_sizes: an array of shape `(n,)`.
      errors: the Euclidean distance of the steps from the flow, an array of shape `(n,)`.
      slope: the least-squares slope of `log(errors)` against `log(step_sizes)`.
    """

    step_sizes: jax.Array
    errors: jax.Array
    slope: jax.Array


def convergence_order(
    step: Callable[[chex.ArrayTree, Scalar], chex.ArrayTree],
    field: Callable[[Scalar], _leaves.Field],
    params: chex.ArrayTree,
    step_sizes: Sequence[float],
    *,
    duration: float | None = None,
) -> ConvergenceOrder:
    r"""Measures the error of a method against a flow for several step sizes, and the slope.

    The flow is integrated at the tightest tolerance that the dtype allows, and once more at one
    ten times looser: the difference of the two bounds the integrator's own error, which must be
    at least 100 times smaller than every error reported. Use float64: errors of high order are
    soon below float32's rounding.

    Args:
      step: `(params, h) -> params`, one step of size `h`; it is traced, with `h` a traced number.
      field: `h -> field`, the flow that the steps of size `h` are compared with.
      params: the start, a tree.
      step_sizes: at least two different numbers above 0.
      duration: None for the local error, that of one step; else the global error after this time,
        which must be a whole number of steps for each step size.

    Returns:
      A `ConvergenceOrder(step_sizes, errors, slope)`. For `modified_flow` of order `n` against
      the steps of its field, the local slope is `n + 2` and the global slope `n + 1`.

    Raises:
      ValueError: if an argument is out of its range.
      FloatingPointError: if the steps or the flow leave the finite numbers, or if a difference is
        less than 100 times the integrator's own error: take larger step sizes or a wider dtype.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_igr import flows
      >>> steps = lambda x, h: x - h * x**2
      >>> flow = lambda h: flows.modified_flow(lambda x: -(x**2), h, order=1)
      >>> result = flows.convergence_order(steps, flow, jnp.array(1.0), [0.1, 0.05, 0.025])
      >>> print(f"{result.slope:.1f}")
      2.9

    References:
      Hairer, Lubich, Wanner, `Geometric Numerical Integration
      <https://doi.org/10.1007/3-540-30666-8>`_, 2006
    """
    counts = _step_counts(step_sizes, duration)
    params = jax.tree.map(jnp.asarray, params)
    rounding = max((float(jnp.finfo(x.dtype).eps) for x in _moving(params)), default=0.0)

    def checked_step(p, h):
        following = step(p, h)
        trees.check_like("convergence_order", p, step=following)
        return following

    @jax.jit
    def error_and_own_error(h, count):
        end = jax.lax.fori_loop(0, count, lambda _, p: checked_step(p, h), params)
        ends = jax.lax.map(
            lambda tol: integrate(field(h), params, h * count, rtol=tol, atol=tol),
            rounding * jnp.array([10.0, 100.0]),
        )
        flow, looser = ([x[i] for x in _moving(ends)] for i in range(2))
        own_error = jnp.maximum(_distance(looser, flow), rounding * trees.norm(flow))
        return _distance(_moving(end), flow), own_error

    pairs = [
        error_and_own_error(float(h), count) for h, count in zip(step_sizes, counts, strict=True)
    ]
    for h, (error, own_error) in zip(step_sizes, pairs, strict=True):
        if not jnp.isfinite(error):
            raise FloatingPointError(
                f"convergence_order: at the step size {h} the steps or the flow leave the finite "
                "numbers, or the flow is too stiff to be integrated."
            )
        if error < _MARGIN * own_error:
            raise FloatingPointError(
                f"convergence_order: at the step size {h} the difference {error:.3g} is less than "
                f"{_MARGIN} times the integrator's own error {own_error:.3g}; take larger step "
                "sizes or a wider dtype."
            )
    sizes, errors = jnp.asarray(step_sizes, float), jnp.stack([error for error, _ in pairs])
    return ConvergenceOrder(sizes, errors, _slope(jnp.log(sizes), jnp.log(errors)))


def _step_counts(step_sizes: Sequence[float], duration: float | None) -> list[int]:
    if len(set(map(float, step_sizes))) < 2:
        raise ValueError(
            f"convergence_order: `step_sizes` must hold two different numbers, got {step_sizes}."
        )
    for h in step_sizes:
        hyperparameters.check_scalar("convergence_order", "step_sizes", h, above=0)
    if duration is None:
        return [1] * len(step_sizes)
    hyperparameters.check_scalar("convergence_order", "duration", duration, above=0)
    counts = [round(duration / h) for h in step_sizes]
    for h, count in zip(step_sizes, counts, strict=True):
        if count == 0 or abs(count * h - duration) > 1e-6 * duration:
            raise ValueError(
                f"convergence_order: `duration` must be a whole number of steps of each size, but "
                f"{duration} is {duration / h:.6g} steps of {h}."
            )
    return counts


def _moving(params: chex.ArrayTree) -> list[jax.Array]:
    return jax.tree.leaves(trees.select("convergence_order", params)[0])


def _distance(x: chex.ArrayTree, y: chex.ArrayTree) -> jax.Array:
    return trees.norm(trees.subtract(x, y))


def _slope(x: jax.Array, y: jax.Array) -> jax.Array:
    x, y = x - jnp.mean(x), y - jnp.mean(y)
    return jnp.sum(x * y) / jnp.sum(x * x)
