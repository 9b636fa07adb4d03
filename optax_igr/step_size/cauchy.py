r"""How long a step the quadratic model of the loss allows along a given direction.

For a step :math:`-\eta d` the model is

.. math:: \varphi(\eta) = L(\theta - \eta d) - L(\theta) \approx -\eta\,d^\top g + \tfrac12 \eta^2\,d^\top H d

Where :math:`d^\top g` and :math:`d^\top H d` are positive its minimiser is the Cauchy step
:math:`\eta^* = d^\top g / d^\top H d`, its value there :math:`\varphi(\eta^*) = -\tfrac12 \eta^*\,d^\top g`, and
:math:`\varphi < 0` up to **twice** that: :math:`\varphi(2\eta^*) = 0`. Along the gradient the loss falls for every
:math:`\eta < 2\,g^\top g / g^\top H g`. The bound :math:`\eta < g^\top g / g^\top H g`, which is sometimes read off
:math:`-\eta\,g^\top g + \tfrac12 \eta^2 g^\top H g < 0`, has lost the factor 2: it is the minimiser. Where
:math:`d^\top H d \le 0` the model falls for every :math:`\eta`, and gives no length.

References:
  Cauchy, Méthode générale pour la résolution des systèmes d'équations simultanées, 1847
  Smee, Roosta, Wright, `First-ish Order Methods: Hessian-aware Scalings of Gradient Descent
  <https://arxiv.org/abs/2502.03701>`_, 2025 (the three rules)
  Pearlmutter, `Fast Exact Multiplication by the Hessian
  <https://www.bcl.hamilton.ie/~barak/papers/nc-hessian.pdf>`_, 1994
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import derivatives, extra_args, hyperparameters, trees
from optax_igr.step_size import log_domain

RULES = ("cauchy", "minimal_residual", "geometric_mean")


class QuadraticModel(NamedTuple):
    r"""Along a direction: :math:`d^\top g`, :math:`d^\top H d`, :math:`g^\top H d` and :math:`\|Hd\|^2`."""

    slope: jax.Array
    curvature: jax.Array
    gradient_curvature: jax.Array
    squared_product: jax.Array


def quadratic_model(
    value_fn: derivatives.ValueFn,
    params: Any,
    direction: chex.ArrayTree,
    gradient: chex.ArrayTree,
    *,
    hvp: str = "forward_over_reverse",
    radius: hyperparameters.Scalar | None = None,
) -> QuadraticModel:
    """Returns the quadratic model of `value_fn` at `params` along a direction, from one product with H.

    Args:
      value_fn: `params -> scalar`; its Hessian is H.
      params: parameters; a leaf that is no real or complex number is a constant.
      direction: d, a tree like `params`.
      gradient: g, a tree like `params`.
      hvp: one of `derivatives.MODES`.
      radius: the length of a difference's perturbation.
    """
    selected, fill = trees.select("quadratic_model", params)
    direction, gradient = (trees.part_of(tree, selected) for tree in (direction, gradient))
    product = derivatives.hessian_vector_product(
        lambda p: value_fn(fill(p)), selected, direction, mode=hvp, radius=radius
    )
    return QuadraticModel(
        slope=trees.inner_product(direction, gradient),
        curvature=trees.inner_product(direction, product),
        gradient_curvature=trees.inner_product(gradient, product),
        squared_product=trees.squared_norm(product),
    )


def checked_model(
    transform: str,
    params: Any,
    updates: chex.ArrayTree,
    grad: chex.ArrayTree | None,
    value_fn: derivatives.ValueFn | None,
    curvature_value_fn: derivatives.ValueFn | None,
    hvp: str,
    radius: hyperparameters.Scalar | None,
) -> QuadraticModel:
    """Returns the quadratic model along the updates of a transform, from its arguments as they came.

    Without `grad` the gradient is derived from `value_fn`; H is that of `curvature_value_fn` where there is one.

    Raises:
      ValueError: naming the transform, for a missing argument or trees that do not agree.
    """
    extra_args.require(transform, params=params, value_fn=value_fn)
    trees.check_like(transform, params, updates=updates)
    assert value_fn is not None
    gradient = (
        derivatives.gradient(value_fn, params) if grad is None else trees.mask_like(grad, params)
    )
    trees.check_like(transform, params, grad=gradient)
    curved = value_fn if curvature_value_fn is None else curvature_value_fn
    return quadratic_model(curved, params, updates, gradient, hvp=hvp, radius=radius)


def step_length(rule: str, model: QuadraticModel) -> jax.Array:
    r"""Returns the length :math:`\eta` of the step :math:`-\eta d`; it may be negative or not finite.

    `cauchy` minimises the model, :math:`d^\top g / d^\top H d`; `minimal_residual` the norm
    :math:`\|g - \eta H d\|` of the gradient at the end of the step, :math:`g^\top H d / \|Hd\|^2`; `geometric_mean`
    is between the two, and :math:`\|g\| / \|Hg\|` along the gradient.
    """
    cauchy = model.slope / model.curvature
    minimal_residual = model.gradient_curvature / model.squared_product
    if rule == "cauchy":
        return cauchy
    if rule == "minimal_residual":
        return minimal_residual
    return jnp.sqrt(cauchy * minimal_residual)


class ScaleByCauchyStepState(NamedTuple):
    """The number of updates, the moving average of accepted lengths, its weight, the rejected ones."""

    count: ArrayLike
    average_length: ArrayLike
    average_weight: ArrayLike
    rejected_count: ArrayLike


def scale_by_cauchy_step(
    *,
    rule: str = "cauchy",
    ema: optax.ScalarOrSchedule = 0.0,
    fallback: optax.ScalarOrSchedule = 1e-3,
    bounds: log_domain.Bounds | None = None,
    hvp: str = "forward_over_reverse",
    radius: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales a direction to the minimiser of the quadratic model along it.

    .. math:: u \leftarrow \eta\,u, \qquad \eta = \frac{u^\top g}{u^\top H u}

    It stands where the updates still have the sign of the gradient, and takes the place of a learning rate: follow it
    by `optax.scale(-1.0)`. Where it stands first the updates are g; after a preconditioner or a momentum pass
    the raw gradient as `grad`.

    A length is accepted where :math:`u^\top g` and :math:`u^\top H u` are positive; otherwise (negative curvature, a
    direction of ascent, a gradient that is zero or not finite) the average of the accepted ones is used again.

    .. note::
      Measured on one batch the length is biased: the batch that makes g large along u makes it large where the
      step is taken. Give `curvature_value_fn` an independent batch, or average by `ema`.

    Args:
      rule: `cauchy`; `minimal_residual`, :math:`\eta = g^\top H u / \|Hu\|^2`, which along the gradient is never
        longer, as :math:`(g^\top H g)^2 \le \|g\|^2 \|Hg\|^2`; or `geometric_mean` of the two.
      ema: the decay rate of the bias-corrected average of accepted lengths, in [0, 1); 0 takes this step's.
      fallback: the length before any has been accepted; a number or a schedule.
      bounds: the least and the largest length, or None.
      hvp: how the Hessian-vector product is computed, as in :func:`optax_igr.add_gradient_penalty`.
      radius: the length of a difference's perturbation, as there: a number, a schedule, or None.

    Returns:
      A transform whose `update` needs `params` and `value_fn`, and prefers `curvature_value_fn` for H. The length in
      force is `optax.tree.get(state, "average_length")`, zero as long as it is `fallback`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: jnp.sum(jnp.array([1.0, 3.0]) * p**2) / 2
      >>> optimizer = optax.chain(optax_igr.scale_by_cauchy_step(), optax.scale(-1.0))
      >>> params = jnp.array([3.0, 1.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...     value, grad = jax.value_and_grad(value_fn)(params)
      ...     updates, state = optimizer.update(grad, state, params, value_fn=value_fn)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{value:.3f}, length {optax.tree.get(state, 'average_length'):.2f}")
      6.000, length 0.50
      1.500, length 0.50
      0.375, length 0.50

    References:
      Smee, Roosta, Wright, `First-ish Order Methods: Hessian-aware Scalings of Gradient Descent
      <https://arxiv.org/abs/2502.03701>`_, 2025
    """
    name = "scale_by_cauchy_step"
    hyperparameters.check_choice(name, "rule", rule, RULES)
    hyperparameters.check_scalar_or_schedule(name, "ema", ema, at_least=0, below=1)
    hyperparameters.check_scalar_or_schedule(name, "fallback", fallback, at_least=0)
    log_domain.check_bounds(name, "bounds", bounds)
    derivatives.check_mode(name, hvp, radius)

    def init(params):
        return ScaleByCauchyStepState(
            count=jnp.zeros([], jnp.int32),
            average_length=jnp.zeros([], trees.scalar_dtype(params)),
            average_weight=jnp.zeros([], trees.scalar_dtype(params)),
            rejected_count=jnp.zeros([], jnp.int32),
        )

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        value_fn: Any = None,
        curvature_value_fn: Any = None,
        grad: Any = None,
        **unused: Any,
    ):
        del unused
        model = checked_model(
            name,
            params,
            updates,
            updates if grad is None else grad,
            value_fn,
            curvature_value_fn,
            hvp,
            hyperparameters.optional_value_at(radius, state.count),
        )
        length = step_length(rule, model)
        accepted = (model.slope > 0) & (model.curvature > 0) & jnp.isfinite(length) & (length > 0)
        if bounds is not None:
            length = jnp.clip(length, *bounds)
        length = jnp.where(accepted, length, 0)
        keep = jnp.asarray(hyperparameters.value_at(ema, state.count), length.dtype)
        keep = jnp.where(accepted, keep, 1)
        # The average is kept unbiased by its weight, so that the first accepted length counts in full.
        weight = keep * state.average_weight + (1 - keep)
        total = keep * state.average_weight * state.average_length + (1 - keep) * length
        average = jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)
        initial = hyperparameters.value_at(fallback, state.count)
        scaled = trees.scale(jnp.where(weight > 0, average, initial), updates)
        return scaled, ScaleByCauchyStepState(
            count=optax.safe_increment(state.count),
            average_length=average.astype(state.average_length.dtype),
            average_weight=weight.astype(state.average_weight.dtype),
            rejected_count=state.rejected_count + (~accepted).astype(jnp.int32),
        )

    return optax.GradientTransformationExtraArgs(init, update)
