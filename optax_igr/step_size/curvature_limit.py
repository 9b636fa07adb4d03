r"""A step that is shortened where the quadratic model of the loss predicts that it goes too far.

For an additive update u, taken to the fraction :math:`\tau`, the model is

.. math:: \varphi(\tau) = \tau\,u^\top g + \tfrac12 \tau^2\,u^\top H u.

With :math:`u^\top g < 0 < u^\top H u` it falls up to the descent bound :math:`\tau = -2\,u^\top g / u^\top H u`;
half of that is the minimizer. In terms of

.. math:: \kappa = -\frac{u^\top H u}{u^\top g}, \qquad \text{for gradient descent} \quad
   \kappa = \eta\,\frac{g^\top H g}{g^\top g},

the bound is :math:`\tau = 2/\kappa`: the model predicts ascent where :math:`\kappa > 2`. On a quadratic, gradient
descent diverges when that holds along the steepest direction, :math:`\eta\,\lambda_{\max} > 2`.

References:
  Cohen et al, `Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability
  <https://arxiv.org/abs/2103.00065>`_, 2021
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import derivatives, hyperparameters, trees
from optax_igr._core.transform import transform
from optax_igr.step_size._quadratic_model import divide, moderate, quadratic_model

_NAME = "limit_by_curvature"


class LimitByCurvatureState(NamedTuple):
    r"""The number of updates, :math:`\kappa` of the last one as it came in, how many were shortened.

    `ascent_count` is the number of updates with :math:`u^\top g \ge 0`, which passed unchanged.
    """

    count: ArrayLike
    curvature_ratio: ArrayLike
    limited_count: ArrayLike
    ascent_count: ArrayLike


def limit_by_curvature(
    fraction: optax.ScalarOrSchedule = 0.5,
    *,
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shortens a step that is longer than a fraction of the descent bound.

    .. math:: u \leftarrow \min\Big(1,\ \frac{2f}{\kappa}\Big)\,u, \qquad \kappa = -\frac{u^\top H u}{u^\top g}

    It stands last, after the learning rate and its sign, so that u is what is added to the parameters. The fraction
    f = 1 is the bound itself, where the model is flat; f = 0.5, the default, is the minimizer. It never lengthens a
    step: a learning rate that is too small stays so. A step may have any length: the model is taken along
    a u of moderate size. Where the model does not curve up, or its curvature is not finite, the step passes.

    Args:
      fraction: f, positive; a number or a schedule. Above 1 the model allows ascent. A value of a schedule that is not
        positive, or NaN, counts as 0: where the model curves up the step is left out.
      hvp: how the Hessian-vector product is computed, as in :func:`optax_igr.add_gradient_penalty`.
      radius: the length of a difference's perturbation, as there: a number, a schedule, or None. None is a default, and
        so is a value of a schedule that is not positive and finite.

    Returns:
      A transform whose `update` needs `params` and `value_fn`. The raw gradient is `grad` if it is given, else it
      is derived from `value_fn`, at no cost under `jax.jit` where the loop derives the same. H prefers
      `curvature_value_fn`. :math:`\kappa` is `optax.tree.get(state, "curvature_ratio")`, zero where it is undefined.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: jnp.sum(p**4)
      >>> optimizer = optax.chain(optax.sgd(10.0), optax_igr.limit_by_curvature())
      >>> params = jnp.array([1.0, 2.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(4):
      ...     value, grad = jax.value_and_grad(value_fn)(params)
      ...     updates, state = optimizer.update(grad, state, params, value_fn=value_fn, grad=grad)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{value:.3f}, ratio {optax.tree.get(state, 'curvature_ratio'):.0f}")
      17.000, ratio 474
      3.790, ratio 200
      0.884, ratio 83
      0.182, ratio 36

    References:
      Cohen et al, `Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability
      <https://arxiv.org/abs/2103.00065>`_, 2021
    """
    fraction = hyperparameters.checked(
        _NAME, "fraction", fraction, above=0, otherwise=0.0, allow_infinite=True
    )
    derivatives.check_mode(_NAME, hvp, radius)

    def init(params):
        del params
        return LimitByCurvatureState(
            count=jnp.zeros([], jnp.int32),
            curvature_ratio=jnp.zeros([], jnp.float32),
            limited_count=jnp.zeros([], jnp.int32),
            ascent_count=jnp.zeros([], jnp.int32),
        )

    def update(updates, state, params, *, value_fn, curvature_value_fn=None, grad=None, **unused):
        del unused
        # The incoming updates are no gradient here: they carry a learning rate and its sign.
        gradient = derivatives.gradient(value_fn, params) if grad is None else grad
        trees.check_like(_NAME, params, grad=gradient)
        # The curvature along an update of any other size may overflow.
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
        descends = model.slope < 0
        curves = descends & (model.curvature > 0) & jnp.isfinite(model.curvature)
        # In directions, as the two limits that follow. The step itself is `size` directions long.
        minimizer = jnp.where(curves, divide(-model.slope, model.curvature), 0)
        fraction_now = jnp.asarray(hyperparameters.value_at(fraction, state.count), minimizer.dtype)
        limit = jnp.where(curves, 2 * fraction_now * minimizer, 0)
        limited = curves & (size.over(limit) < 1)
        ratio = size.times(divide(model.curvature, jnp.where(descends, -model.slope, 0)))
        ascends = (model.slope >= 0) & (trees.squared_norm(direction) > 0)
        # Not the update times a factor: behind a step of 1e38 the factor is no normal number.
        shortened = trees.cast_like(trees.scale(limit, direction), updates)
        passed = jax.tree.map(lambda s, u: jnp.where(limited, s, u), shortened, updates)
        return passed, LimitByCurvatureState(
            count=optax.safe_increment(state.count),
            # The ratio of a step that is long enough overflows.
            curvature_ratio=jnp.nan_to_num(ratio.astype(jnp.float32), nan=0.0),
            limited_count=state.limited_count + limited.astype(jnp.int32),
            ascent_count=state.ascent_count + ascends.astype(jnp.int32),
        )

    return transform(_NAME, init, update, needs=("params", "value_fn"))
