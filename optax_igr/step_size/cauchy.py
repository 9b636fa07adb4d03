r"""How long a step the quadratic model of the loss allows along a given direction.

For a step :math:`-\eta d` the model is

.. math:: \varphi(\eta) = L(\theta - \eta d) - L(\theta) \approx -\eta\,d^\top g + \tfrac12 \eta^2\,d^\top H d

Where :math:`d^\top g` and :math:`d^\top H d` are positive its minimizer is the Cauchy step
:math:`\eta^* = d^\top g / d^\top H d`, its value there :math:`\varphi(\eta^*) = -\tfrac12 \eta^*\,d^\top g`, and
:math:`\varphi < 0` up to **twice** that: :math:`\varphi(2\eta^*) = 0`. Along the gradient the loss falls for every
:math:`\eta < 2\,g^\top g / g^\top H g`. The bound :math:`\eta < g^\top g / g^\top H g`, which is sometimes read off
:math:`-\eta\,g^\top g + \tfrac12 \eta^2 g^\top H g < 0`, has lost the factor 2: it is the minimizer. Where
:math:`d^\top H d \le 0` the model falls for every :math:`\eta`, and gives no length.

References:
  Cauchy, Méthode générale pour la résolution des systèmes d'équations simultanées, 1847
  Smee, Roosta, Wright, `First-ish Order Methods: Hessian-aware Scalings of Gradient Descent
  <https://arxiv.org/abs/2502.03701>`_, 2025 (the three rules)
  Pearlmutter, `Fast Exact Multiplication by the Hessian
  <https://www.bcl.hamilton.ie/~barak/papers/nc-hessian.pdf>`_, 1994
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import derivatives, hyperparameters, trees
from optax_igr._core.transform import transform
from optax_igr.step_size import _log_domain
from optax_igr.step_size._quadratic_model import (
    QuadraticModel,
    divide,
    moderate,
    quadratic_model,
)

_NAME = "scale_by_cauchy_step"

Rule = Literal["cauchy", "minimal_residual", "geometric_mean"]
RULES: tuple[str, ...] = get_args(Rule)


def step_length(rule: str, model: QuadraticModel) -> jax.Array:
    r"""Returns the length :math:`\eta` of the step :math:`-\eta d`; zero where it is undefined.

    `cauchy` minimizes the model, :math:`d^\top g / d^\top H d`; `minimal_residual` the norm
    :math:`\|g - \eta H d\|` of the gradient at the end of the step, :math:`g^\top H d / \|Hd\|^2`; `geometric_mean`
    is between the two, and :math:`\|g\| / \|Hg\|` along the gradient.
    """
    cauchy = divide(model.slope, model.curvature)
    minimal_residual = divide(model.gradient_curvature, model.squared_product)
    if rule == "cauchy":
        return cauchy
    if rule == "minimal_residual":
        return minimal_residual
    # One root for each factor: their product may overflow. Of a negative length there is no mean.
    return jnp.sqrt(jnp.maximum(cauchy, 0)) * jnp.sqrt(jnp.maximum(minimal_residual, 0))


class ScaleByCauchyStepState(NamedTuple):
    """The number of updates, the moving average of accepted lengths, its weight, the rejected ones."""

    count: ArrayLike
    average_length: ArrayLike
    average_weight: ArrayLike
    rejected_count: ArrayLike


def scale_by_cauchy_step(
    *,
    rule: Rule = "cauchy",
    ema: optax.ScalarOrSchedule = 0.0,
    fallback: optax.ScalarOrSchedule = 1e-3,
    bounds: _log_domain.Bounds | None = None,
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales a direction to the minimizer of the quadratic model along it.

    .. math:: u \leftarrow \eta\,u, \qquad \eta = \frac{u^\top g}{u^\top H u}

    It stands where the updates still have the sign of the gradient, and takes the place of a learning rate: follow it
    by `optax.scale(-1.0)`. Where it stands first the updates are g; after a preconditioner or a momentum pass
    the raw gradient as `grad`.

    A length is accepted where :math:`u^\top g` and :math:`u^\top H u` are positive. Otherwise (negative curvature, a
    direction of ascent, a gradient that is zero or not finite) the average of the accepted ones is used again.
    The size of u does not matter.

    .. warning::
      What follows must not take the scaled updates for gradients. `optax.scale_by_lbfgs` and `optax.lbfgs` do: the
      length changes at each step, and the differences that they store are not those of gradients. Put this transform
      behind `optax.scale_by_lbfgs`, with the raw gradient as `grad`.

    .. note::
      Measured on one batch the length is biased: the batch that makes g large along u makes it large where the
      step is taken. Give `curvature_value_fn` an independent batch, or average by `ema`.

    Args:
      rule: `cauchy`; `minimal_residual`, :math:`\eta = g^\top H u / \|Hu\|^2`, which along the gradient is never
        longer, as :math:`(g^\top H g)^2 \le \|g\|^2 \|Hg\|^2`; or `geometric_mean` of the two.
      ema: the decay rate of the bias-corrected average of accepted lengths, in [0, 1); 0 takes this step's.
      fallback: the length before any has been accepted, not negative; a number or a schedule. Of both, a value of a
        schedule outside the range is moved into it, and one that is not finite counts as 0.
      bounds: the least and the largest length, or None.
      hvp: how the Hessian-vector product is computed, as in :func:`optax_igr.add_gradient_penalty`.
      radius: the length of a difference's perturbation, as there: a number, a schedule, or None. None is a default, and
        so is a value of a schedule that is not positive and finite.

    Returns:
      A transform whose `update` needs `params` and `value_fn`, and prefers `curvature_value_fn` for H. The length in
      force is `optax.tree.get(state, "average_length")`, zero as long as it is `fallback`.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

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
    hyperparameters.check_choice(_NAME, "rule", rule, RULES)
    ema = hyperparameters.checked(_NAME, "ema", ema, at_least=0, below=1)
    fallback = hyperparameters.checked(_NAME, "fallback", fallback, at_least=0)
    _log_domain.check_bounds(_NAME, "bounds", bounds)
    derivatives.check_mode(_NAME, hvp, radius)

    def init(params):
        return ScaleByCauchyStepState(
            count=jnp.zeros([], jnp.int32),
            average_length=jnp.zeros([], trees.scalar_dtype(params)),
            average_weight=jnp.zeros([], trees.scalar_dtype(params)),
            rejected_count=jnp.zeros([], jnp.int32),
        )

    def update(updates, state, params, *, gradient, value_fn, curvature_value_fn=None, **unused):
        del unused
        direction, size = moderate(updates)
        model = quadratic_model(
            value_fn if curvature_value_fn is None else curvature_value_fn,
            params,
            direction,
            gradient,
            hvp=hvp,
            radius=hyperparameters.optional_value_at(radius, state.count),
            name=_NAME,
        )
        # The model counts in directions, and the step in updates.
        length = size.over(step_length(rule, model))
        # A saddle or a direction of ascent has no minimizer ahead.
        accepted = (model.slope > 0) & (model.curvature > 0) & jnp.isfinite(length) & (length > 0)
        if bounds is not None:
            length = jnp.clip(length, *bounds)
        length = jnp.where(accepted, length, 0)
        keep = jnp.asarray(hyperparameters.value_at(ema, state.count), length.dtype)
        # A rejected length leaves the average and its weight as they are.
        keep = jnp.where(accepted, keep, 1)
        # The average is kept unbiased by its weight, so that the first accepted length counts in full.
        weight = keep * state.average_weight + (1 - keep)
        total = keep * state.average_weight * state.average_length + (1 - keep) * length
        average = divide(total, weight)
        initial = jnp.asarray(hyperparameters.value_at(fallback, state.count), average.dtype)
        scaled = trees.scale(jnp.where(weight > 0, average, initial), updates)
        return scaled, ScaleByCauchyStepState(
            count=optax.safe_increment(state.count),
            average_length=average.astype(state.average_length.dtype),
            average_weight=weight.astype(state.average_weight.dtype),
            rejected_count=state.rejected_count + (~accepted).astype(jnp.int32),
        )

    return transform(_NAME, init, update, needs=("params", "value_fn"))
