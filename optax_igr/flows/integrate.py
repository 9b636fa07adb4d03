"""Integration of a field with an adaptive solver of high order, in the dtype of the parameters."""

from typing import Any

import chex
import jax
import jax.core
import jax.numpy as jnp

from optax_igr._core import hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.flows import _leaves


def integrate(
    field: _leaves.Field,
    params: chex.ArrayTree,
    duration: Scalar,
    *,
    save_at: chex.Array | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-8,
    max_steps: int = 10_000,
) -> chex.ArrayTree:
    r"""Returns the point that the flow of a field reaches from `params` after the time `duration`.

    Dormand and Prince's method of order 8 with adaptive steps. It is an explicit method: on a
    stiff field, whose largest curvature times `duration` is in the thousands, it takes a number
    of steps in proportion and reports when `max_steps` are not enough. Sharded parameters need a
    mesh with axes of the type `Auto`: diffrax's loop does not take explicit ones.

    Args:
      field: a function from the parameters to their velocity, a tree of the same structure.
      params: the start. bfloat16 and float16 leaves are integrated in float32; an integer or
        boolean leaf stands still.
      duration: the time; negative integrates backwards.
      save_at: times between 0 and `duration` in ascending order (descending for a negative
        duration), an array of shape `(n,)`; None for the end alone.
      rtol: relative tolerance of a step. A tolerance below ten roundings of the parameters' dtype
        is raised to that, because no step could meet it.
      atol: absolute tolerance of a step.
      max_steps: how many steps, rejected ones counted, may be taken.

    Returns:
      A tree like `params`, in its dtypes; with `save_at`, each leaf has a leading axis of length
      `n`. Inside `jax.jit` or `jax.vmap`, where no error can be raised, a flow that cannot be
      followed to its end gives NaN.

    Raises:
      ImportError: if diffrax is not installed.
      ValueError: if an argument is out of its range.
      FloatingPointError: if the flow leaves the finite numbers before `duration`.
      RuntimeError: if `max_steps` steps do not reach `duration`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_igr import flows
      >>> end = flows.integrate(lambda x: -x, jnp.array(1.0), duration=1.0)
      >>> print(f"{end:.5f}")
      0.36788

    References:
      Kidger, `On Neural Differential Equations <https://arxiv.org/abs/2202.02435>`_, 2021
    """
    hyperparameters.check_scalar("integrate", "duration", duration)
    hyperparameters.check_scalar("integrate", "rtol", rtol, at_least=0)
    hyperparameters.check_scalar("integrate", "atol", atol, at_least=0)
    hyperparameters.check_positive_integer("integrate", "max_steps", max_steps)
    # Diffrax counts with a NumPy integer as with an array, which it then traces.
    max_steps = int(max_steps)
    times = jnp.asarray(duration if save_at is None else save_at, jnp.result_type(float))
    if save_at is not None:
        _check_times(times, duration)

    params = jax.tree.map(jnp.asarray, params)
    selected, fill = trees.select("integrate", params)
    start = _to_real(trees.widen(selected))

    def velocity(point):
        out, _ = trees.select("integrate", field(fill(_from_real(point, selected))))
        out = _to_real(out)
        trees.check_like("integrate", point, field=out)
        return out

    attainable = jnp.maximum(rtol, 10 * _rounding(start))
    path = _solve(velocity, start, jnp.atleast_1d(times), duration, attainable, atol, max_steps)
    path = trees.cast_like(_from_real(path, selected), selected)
    if save_at is None:
        return fill(jax.tree.map(lambda x: x[0], path))
    still = jax.tree.map(lambda x: jnp.broadcast_to(x, times.shape + x.shape), params)
    return jax.tree.map(
        lambda x, s: s if x is None else x, path, still, is_leaf=lambda x: x is None
    )


def _solve(velocity, start, times, duration, rtol, atol, max_steps):
    diffrax = _diffrax()
    duration = jnp.asarray(duration, times.dtype)
    controller = diffrax.PIDController(
        rtol=rtol,
        atol=atol,
        # Towards a singularity the steps shrink until they no longer move the clock.
        dtmin=10 * jnp.finfo(times.dtype).eps * jnp.abs(duration),
        force_dtmin=False,
    )
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda time, point, args: velocity(point)),
        diffrax.Dopri8(),
        t0=0.0,
        t1=duration,
        dt0=None,
        y0=start,
        saveat=diffrax.SaveAt(
            subs=(diffrax.SubSaveAt(ts=times), diffrax.SubSaveAt(t1=True)),
        ),
        # A step ends at every saved time: the interpolation in between is less accurate.
        stepsize_controller=diffrax.ClipStepSizeController(controller, step_ts=times),
        max_steps=max_steps,
        throw=False,
    )
    failed = solution.result != diffrax.RESULTS.successful
    if isinstance(failed, jax.core.Tracer):
        return jax.tree.map(lambda x: jnp.where(failed, jnp.nan, x), solution.ys[0])
    if failed:
        where = f"at time {solution.ts[1][0]:.6g} of {duration:.6g}"
        if solution.result == diffrax.RESULTS.max_steps_reached:
            raise RuntimeError(
                f"integrate: {max_steps} steps end {where}. The field is stiff or the time long: "
                "give a larger `max_steps` or looser tolerances."
            )
        raise FloatingPointError(
            f"integrate: the flow leaves the finite numbers {where}, where its largest entry is "
            f"{_largest(solution.ys[1]):.3g}."
        )
    return solution.ys[0]


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            'integrate needs diffrax: pip install "optax_igr[flows]"', name="diffrax"
        ) from error
    return diffrax


def _check_times(times: chex.Array, duration: Scalar) -> None:
    if times.ndim != 1 or times.size == 0:
        raise ValueError(
            f"integrate: `save_at` must be a vector of times, got the shape {times.shape}."
        )
    if isinstance(times, jax.core.Tracer) or isinstance(duration, jax.core.Tracer):
        return
    outward = times if duration >= 0 else -times
    ascending = jnp.all(jnp.diff(outward) >= 0)
    if not (ascending and outward[0] >= 0 and outward[-1] <= abs(duration)):
        raise ValueError(
            f"integrate: `save_at` must run from 0 towards `duration` = {duration}, got {times}."
        )


def _to_real(tree: chex.ArrayTree) -> chex.ArrayTree:
    """Splits every complex leaf into a pair of real ones: the solver knows real numbers."""
    return jax.tree.map(lambda x: (x.real, x.imag) if jnp.iscomplexobj(x) else x, tree)


def _from_real(tree: chex.ArrayTree, reference: chex.ArrayTree) -> chex.ArrayTree:
    def leaf(r, x):
        return jax.lax.complex(*x) if jnp.iscomplexobj(r) else x

    return jax.tree.map(leaf, reference, tree)


def _rounding(tree: chex.ArrayTree) -> float:
    return max((float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(tree)), default=0.0)


def _largest(tree: chex.ArrayTree) -> chex.Array:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(tree) if x.size]))
