r"""A gradient penalty at the price of a plain step, by extrapolation from the last gradient.

The forward difference :math:`g(\theta + 2\mu g) \approx g + 2\mu Hg` needs two gradients a step, because its
perturbation is the gradient at the same point. The gradient of the step before serves as well:

.. math:: \theta_{t+1} = \theta_t + \mathrm{inner}\big( g_t \big), \qquad g_t = \nabla L_t(\theta_t + 2\mu\,g_{t-1})

The loop holds :math:`y_t = \theta_t + 2\mu\,g_{t-1}`, so that its ordinary gradient at the parameters it sees is
already :math:`g_t`, and the transform moves it to :math:`y_{t+1}`.

Since :math:`g_{t-1}` comes from another batch, the expectation of :math:`2\mu H_t g_{t-1}` is the gradient of
:math:`\mu \|\mathbb{E}\,g\|^2`, the norm of the full-batch gradient; a penalty within one batch acts on the mean of
:math:`\|g_b\|^2` and so on the variance of the batch gradient too.

References:
  Becker et al, `Momentum-SAM: Sharpness Aware Minimization without Computational Overhead
  <https://arxiv.org/abs/2401.12033>`_, 2024 (the nearest relative: it perturbs along the momentum)
  Karakida et al, `Understanding Gradient Regularization in Deep Learning <https://arxiv.org/abs/2210.02720>`_, 2022
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import hyperparameters, paths, trees
from optax_igr._core.transform import transform

_NAME = "extrapolated_gradient_penalty"


class ExtrapolatedGradientPenaltyState(NamedTuple):
    r"""The number of updates, :math:`y - \theta` in float32 or wider, and the inner state."""

    count: ArrayLike
    displacement: chex.ArrayTree
    inner_state: optax.OptState


def extrapolated_gradient_penalty(
    inner: optax.GradientTransformation,
    coefficient: optax.ScalarOrSchedule,
    *,
    max_relative_displacement: optax.ScalarOrSchedule | None = 0.1,
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimizer so that it descends on a penalised loss at the cost of one gradient a step.

    .. math:: L(\theta) + \mu \|\mathbb{E}\,\nabla L_b(\theta)\|^2

    The parameters in the training loop are the extrapolated ones, :math:`\theta + 2\mu g`; take
    :func:`optax_igr.extrapolation_eval_params` for evaluation, and save parameters and state together. It is the
    outermost transform: whatever clips, scales or projects belongs inside `inner`. What `inner` clips is the step of
    :math:`\theta`; the displacement has a bound of its own. The statistics of BatchNorm are those of the
    extrapolated parameters: recompute them at :math:`\theta` before evaluation. In a loop that hands over `grad`,
    wrap it by :func:`optax_igr.accumulated` inside `optax.MultiSteps`.

    It is exact to first order in :math:`\mu` and in the step: the gradient it extrapolates by is one step old, and
    the displacement :math:`2\mu g` must be short against the curvature's own scale, as for every forward difference.

    .. warning::
      It is stable for :math:`2\mu\lambda_{max} < 1` only, at any learning rate: with :math:`\theta` at rest the
      gradients obey :math:`g_t = H\theta + 2\mu H g_{t-1}`. :func:`optax_igr.add_gradient_penalty` has no such limit
      of its own.

    Args:
      inner: any optimizer, the sign of descent included (`optax.sgd(0.1)`, `optax.adamw(1e-3)`). It sees
        :math:`\theta` as `params` and gets all extra arguments.
      coefficient: :math:`\mu`, a number or a schedule. As for every transform the gradient of step t is penalised
        with its value after t updates. A schedule's value that is not finite counts as 0.
      max_relative_displacement: the longest displacement, in units of the norm of :math:`\theta` over all leaves; a
        number, a schedule, or None for no bound. A longer one is shortened as a whole. Measured on digits with ReLU
        networks and a squared error, clipped to norm 1: healthy displacements reach .02; after one spike of the loss
        by 1e6 training ends at a loss of .339 (without the spike .338) with a bound of .1, at 1.06 with .3, at 1.18
        with 1, and at NaN without.

    Returns:
      A transform whose `update` needs `params` and takes the displacement from `grad` if it is given, else from the
      updates. A gradient that is not finite is not extrapolated by. The state holds the displacement in float32 or
      wider, as the loop rounded it: in bfloat16, :math:`\theta` keeps the precision of float32.

    Raises:
      ValueError: for a bad argument; in `update`, for missing parameters or trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: (0.6 - p[0] * p[1]) ** 2 / 2
      >>> optimizer = optax_igr.extrapolated_gradient_penalty(optax.sgd(1e-3), coefficient=0.01)
      >>> params = jnp.array([2.8, 3.5])
      >>> state = optimizer.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     updates, state = optimizer.update(jax.grad(value_fn)(params), state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(3000):
      ...     params, state = step(params, state)
      >>> theta = optax_igr.extrapolation_eval_params(state, params)
      >>> print(f"product {theta.prod():.3f}, squared norm {theta @ theta:.2f} (without: 4.56)")
      product 0.600, squared norm 4.12 (without: 4.56)

    References:
      Becker et al, `Momentum-SAM: Sharpness Aware Minimization without Computational Overhead
      <https://arxiv.org/abs/2401.12033>`_, 2024
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise ValueError(
            f"{_NAME}: `inner` must be an optax.GradientTransformation, got {inner!r}."
        )
    coefficient = hyperparameters.checked(_NAME, "coefficient", coefficient)
    bound = max_relative_displacement
    if bound is not None:
        bound = hyperparameters.checked(_NAME, "max_relative_displacement", bound, at_least=0)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return ExtrapolatedGradientPenaltyState(
            count=jnp.zeros([], jnp.int32),
            displacement=jax.tree.map(
                lambda p: jnp.zeros_like(p, dtype=trees.widened(p.dtype)), params
            ),
            inner_state=inner.init(params),
        )

    def update(updates, state, params, *, gradient, **extra):
        theta = trees.subtract(trees.widen(params), state.displacement)
        inner_updates, inner_state = inner.update(
            updates, state.inner_state, trees.cast_like(theta, params), **extra
        )
        # The displacement acts on the gradient of the next step, so it takes that step's coefficient.
        count = optax.safe_increment(state.count)
        wanted = displacement_of(gradient, 2 * hyperparameters.value_at(coefficient, count))
        if bound is not None:
            longest = hyperparameters.value_at(bound, count) * trees.norm(theta)
            wanted = limited(wanted, longest)
        theta = trees.add(theta, trees.cast_like(inner_updates, theta))
        emitted = jax.tree.map(
            lambda t, d, y, u: _rounded(t + d - y.astype(t.dtype), u.dtype),
            theta,
            wanted,
            params,
            inner_updates,
        )
        # What the loop will hold after the rounding of its own sum. The roundings would add up over the steps.
        displacement = jax.tree.map(
            lambda t, y, u, old: _finite_or(_rounded(y.astype(t.dtype) + u, y.dtype) - t, old),
            theta,
            params,
            emitted,
            state.displacement,
        )
        return trees.cast_like(emitted, inner_updates), ExtrapolatedGradientPenaltyState(
            count, displacement, inner_state
        )

    return transform(_NAME, init, update, needs=("params",), state_like_params=("displacement",))


def extrapolation_eval_params(state: optax.OptState, params: Any) -> chex.ArrayTree:
    r"""Returns the parameters :math:`\theta` for evaluation, from the extrapolated ones of the loop.

    .. math:: \theta_t = y_t - 2\mu\,g_{t-1}

    Args:
      state: the state of :func:`optax_igr.extrapolated_gradient_penalty`, or a state that contains one or several:
        of a chain, of `optax.masked` or `optax.partition`, of an NNX optimizer.
      params: the parameters of the training loop, y. For Flax models :func:`optax_igr.flax.eval_params` finds both.

    Returns:
      A tree like `params`, in its dtypes. A leaf that no displacement belongs to stays as it is.

    Raises:
      ValueError: where the state holds no displacement, or one of a leaf that `params` does not have.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_igr
      >>> optimizer = optax_igr.extrapolated_gradient_penalty(optax.sgd(0.1), coefficient=0.01)
      >>> params = jnp.array(1.0)
      >>> updates, state = optimizer.update(jnp.array(2.0), optimizer.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(f"{params:.2f} {optax_igr.extrapolation_eval_params(state, params):.2f}")
      0.84 0.80

    References:
      The pattern: `optax.contrib.schedule_free_eval_params
      <https://optax.readthedocs.io/en/latest/api/contrib.html>`_
    """
    total = {}
    for displacement in _displacements(state):
        for path, d in paths.leaves_with_path(displacement):
            total[paths.spell(path)] = total.get(paths.spell(path), 0) + d
    if not total and not list(_displacements(state)):
        raise ValueError(
            "extrapolation_eval_params: `state` holds no `displacement`; expected the state of "
            "extrapolated_gradient_penalty."
        )

    # By path, since a mask leaves holes and a framework its boxes in one of the two trees alone.
    def evaluated(path, y):
        d = total.pop(paths.spell(path), None)
        if d is None:
            return y
        if jnp.shape(d) != jnp.shape(y):
            raise ValueError(
                f"extrapolation_eval_params: leaf {paths.spell(path)} of `params` has shape "
                f"{list(jnp.shape(y))}, its displacement {list(jnp.shape(d))}."
            )
        y = trees.as_array(y)
        return (y.astype(d.dtype) - d).astype(y.dtype)

    result = paths.map_with_path(evaluated, params)
    if total:
        raise ValueError(
            f"extrapolation_eval_params: `params` has no leaf {next(iter(total))}; expected all parameters that "
            f"the optimizer was initialized with."
        )
    return result


def _displacements(state: Any) -> Iterator[Any]:
    def is_state(node):
        return isinstance(node, ExtrapolatedGradientPenaltyState)

    for node in jax.tree.leaves(state, is_leaf=is_state):
        if is_state(node):
            yield node.displacement
            yield from _displacements(node.inner_state)


def displacement_of(gradient: Any, length: ArrayLike) -> Any:
    r"""Returns :math:`2\mu\,g` in float32 or wider, zero for a gradient that is not finite."""
    return trees.scale(
        jnp.where(trees.all_finite(gradient), length, 0),
        jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), trees.widen(gradient)),
    )


def limited(displacement: Any, longest: ArrayLike) -> Any:
    r"""Returns the displacement, shortened as a whole to a norm of at most `longest`."""
    norm = trees.norm(displacement)
    is_long = norm > longest
    # Divided by one where it is not used: the derivative of 1 / norm at zero is not finite, and neither is 0 times it.
    return trees.scale(jnp.where(is_long, longest / jnp.where(is_long, norm, 1), 1), displacement)


def _rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounds to the precision of a narrower dtype; a cast there and back is removed by the compiler."""
    if trees.widened(dtype) == jnp.dtype(dtype):
        return x
    precision = jnp.finfo(dtype)
    rounded = jax.lax.reduce_precision(x, precision.nexp, precision.nmant)
    if precision.nexp == jnp.finfo(x.dtype).nexp:
        return rounded
    # reduce_precision has no subnormal numbers, float16 does.
    spacing = float(precision.smallest_subnormal)
    is_subnormal = jnp.abs(x) < float(precision.tiny)
    return jnp.where(is_subnormal, jnp.round(x / spacing) * spacing, rounded)


def _finite_or(x: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, other)
