r"""Newton's method with a truncated solve by conjugate gradients.

.. math:: (C + \lambda I)\, d = g, \qquad \theta \leftarrow \theta - d

where C is the Hessian or the Gauss-Newton matrix :math:`J^\top H_\ell J`, seen through its products with vectors alone.
A solve ends when the residual is `tolerance` times the gradient, after `max_steps` products, or (Steihaug) at a
direction of negative curvature, before which every iterate descends; each product costs about two gradients.

The damping :math:`\lambda` follows Levenberg and Marquardt (`_levenberg_marquardt`). A quadratic model is good near the
parameters alone: a step that does not lower the loss is shortened until it does, or rejected (`_backtracking`).

References:
  Steihaug, `The Conjugate Gradient Method and Trust Regions in Large Scale Optimization
  <https://doi.org/10.1137/0720042>`_, 1983
  Martens, `Deep learning via Hessian-free optimization <https://icml.cc/Conferences/2010/papers/458.pdf>`_, 2010
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import derivatives, hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.transform import scale_by_learning_rate, transform
from optax_igr.curvature import _backtracking, _levenberg_marquardt
from optax_igr.curvature._conjugate_gradient import truncated_cg
from optax_igr.curvature._newton_model import Curvature, NewtonOptions, loss_and_product


class NewtonCGState(NamedTuple):
    """What the last solve did, and what the next one starts from.

    Attributes:
      count: the number of updates.
      damping: λ of the next solve.
      direction: the last solution d, in float32 or wider.
      num_products: products with C in the last solve; the warm start is one of them.
      met_negative_curvature: whether the last solve ended at a direction of negative curvature.
      reduction_ratio: ρ of the last solve, at the unit step; 1 before the first solve and where nothing is judged.
      step_fraction: α of the last update; 1 if its unit step lowered the loss, 0 if no step did.
    """

    count: ArrayLike
    damping: chex.Array
    direction: chex.ArrayTree
    num_products: ArrayLike
    met_negative_curvature: ArrayLike
    reduction_ratio: chex.Array
    step_fraction: chex.Array


def scale_by_newton_cg(
    *,
    damping: Scalar = 1e-3,
    max_steps: int = 20,
    tolerance: optax.ScalarOrSchedule = 1e-2,
    curvature: Curvature = "hessian",
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
    warm_start: bool = True,
    max_backtracking_steps: int = 10,
) -> optax.GradientTransformationExtraArgs:
    r"""Solves for the Newton direction by conjugate gradients.

    .. math:: u \leftarrow \alpha d, \qquad d \approx (C + \lambda I)^{-1} u

    The direction always descends: where the solve fails, it is the incoming gradient. :math:`\alpha` is 1 unless the
    step d fails to lower the loss; then it is smaller, and 0 where no step does. It belongs first in a chain.

    Args:
      damping: the first :math:`\lambda`, at least 0, in units of curvature. It adapts by the ratio of actual to
        predicted decrease at the unit step; 0 stays 0.
      max_steps: the largest number of conjugate gradient steps.
      tolerance: the residual to stop at, in units of the gradient; a number or a schedule.
      curvature: `hessian` or `gauss_newton`, which is positive semidefinite where the output loss is convex.
      hvp: how a product with the Hessian is computed: `auto` takes the fastest exact mode that the loss allows, else a
        difference.
      radius: the length of a difference's perturbation, a number or a schedule; None takes a default.
      warm_start: begin at the minimizer of the model along the last direction, for one more product.
      max_backtracking_steps: the largest number of shorter steps that are tried. A step is judged at the price of one
        loss, which the damping needs too, and each shorter step takes one more. 0 judges nothing, so that
        :math:`\alpha = 1`: for a chain with a line search, which does the same work, or for a loss whose noise hides
        the decrease.

    Returns:
      A transform whose `update` needs `params` and either `value_fn` or, for `gauss_newton`, `outputs_fn` and
      `output_loss_fn`. It uses `value` if it is given, and takes the Hessian from `curvature_value_fn` if that is.
      The state tells the damping, the number of products, whether negative curvature was met, and :math:`\alpha`.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    .. note::
      When a solve stops is decided by norms over all parameters. On a mesh these are the same number on every device,
      so that all devices run the same number of products.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: jnp.sum(jnp.array([1.0, 10.0, 100.0]) * (p - 1) ** 2)
      >>> optimizer = optax.chain(
      ...     optax_igr.scale_by_newton_cg(damping=0.0, tolerance=1e-4), optax.scale_by_learning_rate(1.0))
      >>> params = jnp.zeros(3)
      >>> updates, state = optimizer.update(
      ...     jax.grad(value_fn)(params), optimizer.init(params), params, value_fn=value_fn)
      >>> print([f"{p:.2f}" for p in params + updates], state[0].num_products)
      ['1.00', '1.00', '1.00'] 4

    References:
      Martens, `Deep learning via Hessian-free optimization <https://icml.cc/Conferences/2010/papers/458.pdf>`_, 2010
    """
    options = NewtonOptions(
        damping, max_steps, tolerance, curvature, hvp, radius, warm_start, max_backtracking_steps
    )
    return newton_direction("scale_by_newton_cg", options)


def newton_cg(
    learning_rate: optax.ScalarOrSchedule,
    *,
    damping: Scalar = 1e-3,
    max_steps: int = 20,
    tolerance: optax.ScalarOrSchedule = 1e-2,
    curvature: Curvature = "hessian",
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
    warm_start: bool = True,
    max_backtracking_steps: int = 10,
) -> optax.GradientTransformationExtraArgs:
    r"""Descends along the Newton direction.

    .. math:: \theta \leftarrow \theta - \gamma\,\alpha\,(C + \lambda I)^{-1} g

    Args:
      learning_rate: :math:`\gamma`, a number or a schedule; 1 is Newton's own step, at which the loss is evaluated to
        adapt the damping and to shorten a step that does not lower it.
      damping: as in :func:`optax_igr.scale_by_newton_cg`, and so are the others.
      max_steps: the largest number of conjugate gradient steps.
      tolerance: the residual to stop at, in units of the gradient.
      curvature: `hessian` or `gauss_newton`.
      hvp: how a product with the Hessian is computed.
      radius: the length of a difference's perturbation.
      warm_start: begin along the last direction.
      max_backtracking_steps: the largest number of shorter steps that are tried.

    Returns:
      An optimizer whose `update` needs what :func:`optax_igr.scale_by_newton_cg` does.
      Under an axis name (`pmap`, `vmap`, `shard_map`) wrap what it evaluates by :func:`optax_igr.mean_over`.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
      >>> optimizer = optax_igr.newton_cg(1.0)
      >>> params = jnp.zeros(2)
      >>> state = optimizer.init(params)
      >>> for _ in range(15):
      ...     updates, state = optimizer.update(
      ...         jax.grad(value_fn)(params), state, params, value_fn=value_fn)
      ...     params = optax.apply_updates(params, updates)
      >>> print(f"{value_fn(params):.3f}")
      0.000

    References:
      Martens, `Deep learning via Hessian-free optimization <https://icml.cc/Conferences/2010/papers/458.pdf>`_, 2010
    """
    options = NewtonOptions(
        damping, max_steps, tolerance, curvature, hvp, radius, warm_start, max_backtracking_steps
    )
    return optax.chain(
        newton_direction("newton_cg", options),
        scale_by_learning_rate("newton_cg", learning_rate),
    )


def newton_direction(name: str, options: NewtonOptions) -> optax.GradientTransformationExtraArgs:
    """Makes the transform of :func:`scale_by_newton_cg` under the public name `name`."""
    damping = options.damping
    options = options.checked(name)
    # A traced damping has no value to look at, so it counts as one that may adapt.
    is_damped = not isinstance(damping, int | float) or damping > 0
    max_backtracking_steps = options.max_backtracking_steps
    is_judged = isinstance(max_backtracking_steps, jax.Array) or max_backtracking_steps > 0

    def init(params):
        return NewtonCGState(
            count=jnp.zeros([], jnp.int32),
            damping=jnp.array(options.damping, jnp.float32),
            direction=jax.tree.map(
                lambda p: jnp.zeros_like(p, dtype=trees.widened(p.dtype)), params
            ),
            num_products=jnp.zeros([], jnp.int32),
            met_negative_curvature=jnp.zeros([], bool),
            reduction_ratio=jnp.ones([], jnp.float32),
            step_fraction=jnp.ones([], jnp.float32),
        )

    def update(updates, state, params, *, value: Any = None, **functions):
        loss_fn, product = loss_and_product(name, options, state.count, params, **functions)
        # In units of the gradient, so that the squares of a tiny one do not underflow.
        b, norm = trees.unit(updates)
        solution = truncated_cg(
            lambda v: trees.add(trees.widen(product(v)), trees.scale(state.damping, v)),
            b,
            trees.unit(state.direction)[0] if options.warm_start else None,
            max_steps=options.max_steps,
            tolerance=hyperparameters.value_at(options.tolerance, state.count),
        )
        direction = _descending(trees.scale(norm, solution.x), updates)
        new_damping, ratio, fraction = state.damping, state.reduction_ratio, state.step_fraction
        # The loss at the unit step serves both: the ratio that adapts the damping, and the judgement of the step.
        if is_damped or is_judged:
            predicted = _levenberg_marquardt.predicted_decrease(solution, b, state.damping, norm)

            def value_along(alpha):
                return loss_fn(_stepped(params, direction, alpha))

            value = loss_fn(params) if value is None else value
            value = jnp.asarray(value, predicted.dtype)
            unit_value = value_along(jnp.ones([], predicted.dtype))
            rounding = _backtracking.rounding_of(value, unit_value.dtype)
            unit_value = unit_value.astype(predicted.dtype)
            ratio = _levenberg_marquardt.reduction_ratio(value, unit_value, predicted)
            is_rounding = jnp.abs(predicted) <= rounding
            if is_damped:
                new_damping = _levenberg_marquardt.adapted_damping(
                    state.damping,
                    options.damping,
                    ratio,
                    is_rounding,
                    solution.met_negative_curvature,
                )
        if is_judged:
            fraction = _backtracking.good_fraction(
                lambda alpha: value_along(alpha).astype(predicted.dtype),
                value,
                unit_value,
                trees.inner_product(updates, direction).astype(predicted.dtype),
                jnp.where(is_rounding, rounding, 0),
                lambda: trees.inner_product(derivatives.gradient(loss_fn, params), direction),
                max_backtracking_steps,
            )
        # Once, and not inside the map over the leaves: the program would grow with the square of their number.
        is_finite = trees.all_finite(direction)
        return trees.cast_like(trees.scale(fraction, direction), params), NewtonCGState(
            count=optax.safe_increment(state.count),
            damping=new_damping,
            direction=jax.tree.map(lambda d: jnp.where(is_finite, d, 0), direction),
            num_products=solution.num_products,
            met_negative_curvature=solution.met_negative_curvature,
            reduction_ratio=ratio.astype(jnp.float32),
            step_fraction=fraction.astype(jnp.float32),
        )

    functions = ("value_fn",)
    if options.curvature == "gauss_newton":
        functions = ("outputs_fn", "output_loss_fn")
    return transform(
        name, init, update, needs=("params", *functions), state_like_params=("direction",)
    )


def _stepped(params: Any, direction: Any, alpha: jax.Array) -> chex.ArrayTree:
    """Returns the parameters after a fraction of the step, rounded as an update rounds them."""
    return jax.tree.map(
        lambda p, d: (p.astype(d.dtype) - d).astype(p.dtype), params, trees.scale(alpha, direction)
    )


def _descending(direction: Any, gradient: Any) -> chex.ArrayTree:
    """Returns the direction, or the gradient where the direction is broken or does not descend."""
    descends = trees.inner_product(direction, gradient) > 0
    is_good = descends & trees.all_finite(direction)
    return jax.tree.map(lambda d, g: jnp.where(is_good, d, g.astype(d.dtype)), direction, gradient)
