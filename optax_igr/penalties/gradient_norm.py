r"""A penalty on the norm of the gradient, added to the gradient itself.

.. math::
  \nabla \big( L + \mu \|\nabla L\|^2 \big) = g + 2 \mu H g, \qquad
  \nabla \big( L + \mu \|\nabla L\| \big) = g + \mu H \frac{g}{\|g\|}

One Hessian-vector product per step gives either. Three norms are in use, and they differ on minibatches:

- `add_gradient_penalty` acts on the norm of the gradient that `value_fn` gives, that of this step's batch. Over
  many steps that is the mean of :math:`\|\nabla L_b\|^2`: the squared full-batch norm plus the variance of the
  batch gradient.
- `add_microbatch_gradient_penalty` acts on the mean over the parts of a batch, whose variance is larger still.
- `extrapolated_gradient_penalty` acts on :math:`\|\mathbb{E}\,\nabla L_b\|^2`, the full-batch norm alone.

References:
  Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021
  Zhao et al, `Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning
  <https://arxiv.org/abs/2202.03599>`_, 2022
  Karakida et al, `Understanding Gradient Regularization in Deep Learning: Efficient Finite-Difference
  Computation and Implicit Bias <https://arxiv.org/abs/2210.02720>`_, 2022
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import derivatives, hyperparameters, transform, trees

NORMS = ("squared", "plain")


class GradientPenaltyState(NamedTuple):
    """The number of updates, and in how many of them `safeguard` dropped the penalty."""

    count: ArrayLike
    dropped_count: ArrayLike


class PenaltyOptions(NamedTuple):
    """How a penalty is computed, whatever its coefficient."""

    norm: str = "squared"
    hvp: derivatives.Mode = "auto"
    radius: optax.ScalarOrSchedule | None = None
    mask: Any = None
    safeguard: bool = False

    def check(self, name: str) -> None:
        """Raises a `ValueError` that names the option and what was expected."""
        hyperparameters.check_choice(name, "norm", self.norm, NORMS)
        derivatives.check_mode(name, self.hvp, self.radius)
        hyperparameters.check_boolean(name, "safeguard", self.safeguard)


def gradient_of_norm(
    value_fn: derivatives.ValueFn,
    params: chex.ArrayTree,
    gradient: chex.ArrayTree,
    *,
    norm: str = "squared",
    hvp: derivatives.Mode = "auto",
    radius: hyperparameters.Scalar | None = None,
    name: str = "gradient_of_norm",
) -> chex.ArrayTree:
    r"""Returns :math:`\nabla \|\nabla L\|^2 = 2Hg` or :math:`\nabla \|\nabla L\| = Hg/\|g\|`, zero where g is.

    Args:
      value_fn: `params -> scalar`, L.
      params: floating or complex leaves.
      gradient: g, the gradient of `value_fn` at `params`.
      norm: `squared` or `plain`.
      hvp: one of `derivatives.MODES`.
      radius: the length of a difference's perturbation.
      name: the public name of the caller, for errors and warnings.

    Returns:
      A tree like `params`, in float32 or wider.
    """
    factor, vector = (2.0, gradient) if norm == "squared" else (1.0, trees.unit(gradient)[0])
    product = derivatives.hessian_vector_product(
        value_fn,
        params,
        vector,
        mode=hvp,
        radius=radius,
        gradient_at_params=gradient,
        name=name,
    )
    return trees.scale(factor, trees.widen(product))


def add_gradient_penalty(
    coefficient: optax.ScalarOrSchedule,
    *,
    norm: str = "squared",
    hvp: derivatives.Mode = "auto",
    radius: optax.ScalarOrSchedule | None = None,
    mask: Any = None,
    safeguard: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of a penalty on the gradient norm of this step's loss.

    .. math:: u \leftarrow u + \nabla \big( \mu \|\nabla L(\theta)\|^2 \big) = u + 2 \mu H g

    or, with `norm="plain"`, :math:`u + \mu H g / \|g\|`. It belongs first in a chain, where the incoming updates are
    the gradient; elsewhere pass the raw gradient as `grad`.

    Note the constants of the papers: this :math:`\mu` multiplies :math:`\|g\|^2` as in Barrett and Dherin; Karakida et
    al write :math:`\gamma/2`, so :math:`\gamma = 2\mu`. With `norm="plain"` and a forward difference,
    :math:`\mu = \alpha r` is Zhao et al's mixture :math:`(1-\alpha)g + \alpha\,g(\theta + r g/\|g\|)`, and
    :math:`\alpha = 1` is SAM.

    Args:
      coefficient: :math:`\mu`, in units of a loss over a squared gradient norm; a number or a schedule.
      norm: `squared` or `plain`.
      hvp: how the Hessian-vector product is computed. `forward_over_reverse`, `reverse_over_forward` and
        `reverse_over_reverse` are exact (about 1.8 more gradients of arithmetic); `forward_difference` and
        `backward_difference` take one more gradient, `central_difference` two (three where the loss has
        kinks). `auto` takes the first of these exact modes that the loss allows, and where it allows none a central
        difference, with a warning. A difference is an approximation, worst where ReLU units lie at their kink (fresh
        networks) and where the loss is computed in bfloat16; the exact modes are as right there as anywhere.
      radius: the length :math:`\|\epsilon g\|` of a difference's perturbation, a number or a schedule; None takes
        one that was measured on several networks in float32 (see `differences.default_radius`), and so does a
        step where the schedule is not finite and positive.
      mask: a pytree prefix of booleans, or a function that makes one from the parameters. Where it is False the
        parameter is a constant: neither perturbed nor counted in the norm, and its update stays as it came.
      safeguard: drop the penalty on a step where :math:`\langle g, u + 2\mu Hg \rangle \le 0`, where it would turn
        the update into a direction of ascent; the state counts these steps.

    Returns:
      A transform whose `update` needs `params` and `value_fn` and uses `grad` if it is given.

    Raises:
      ValueError: for a bad argument; in `update`, for a missing argument or trees that do not agree.

    .. note::
      `value_fn` must return the loss of the whole batch: the penalty is not linear in the loss, so that of a mean is
      not the mean of those of the shards. Under an axis name (`pmap`, `vmap`, `shard_map`) wrap it by
      :func:`optax_igr.mean_over`.

    .. note::
      Inside `optax.masked` or `optax.partition`, wrap `value_fn` by :func:`optax_igr.fill_masked`; or use `mask`.
      Inside `optax.MultiSteps` the penalty would be computed on every mini-step and used once: put it before
      `MultiSteps` in the chain (it then acts on the mean of :math:`\|\nabla L_b\|^2`), or make one update with
      the whole batch through :func:`optax_igr.microbatched` (then on :math:`\|\nabla L\|^2`).
      Inside `optax.inject_hyperparams`, name a callable `mask` in `static_args`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: (0.6 - p["a"] * p["b"]) ** 2 / 2
      >>> optimizer = optax.chain(optax_igr.add_gradient_penalty(0.1), optax.sgd(0.01))
      >>> params = {"a": jnp.array(2.8), "b": jnp.array(3.5)}
      >>> state = optimizer.init(params)
      >>> for _ in range(5):
      ...     value, grad = jax.value_and_grad(value_fn)(params)
      ...     updates, state = optimizer.update(grad, state, params, value_fn=value_fn)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{value:.2E}")
      4.23E+01
      1.50E-01
      1.34E-01
      1.21E-01
      1.09E-01

    References:
      Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021, section 6
      Zhao et al, `Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning
      <https://arxiv.org/abs/2202.03599>`_, 2022, equation 8
    """
    coefficient = hyperparameters.checked("add_gradient_penalty", "coefficient", coefficient)
    options = PenaltyOptions(norm, hvp, radius, mask, safeguard)
    return gradient_penalty("add_gradient_penalty", coefficient, options)


def gradient_penalty(
    name: str, coefficient: optax.ScalarOrSchedule, options: PenaltyOptions
) -> optax.GradientTransformationExtraArgs:
    """Makes the transform of :func:`add_gradient_penalty` under the public name `name`."""
    options.check(name)

    def update(updates, state, params, *, value_fn, gradient, **unused):
        del unused
        penalized, fill = trees.select(name, params, options.mask)
        direction = gradient_of_norm(
            lambda p: value_fn(fill(p)),
            penalized,
            trees.part_of(gradient, penalized),
            norm=options.norm,
            hvp=options.hvp,
            radius=hyperparameters.optional_value_at(options.radius, state.count),
            name=name,
        )
        penalty = trees.scale(hyperparameters.value_at(coefficient, state.count), direction)
        return add_penalty(updates, gradient, penalty, state, options.safeguard)

    return transform.transform(name, init, update, needs=("params", "value_fn"))


def init(params: optax.Params) -> GradientPenaltyState:
    """Makes the state of every penalty; it holds nothing of the size of the parameters."""
    del params
    return GradientPenaltyState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32))


def add_penalty(
    updates: chex.ArrayTree,
    gradient: chex.ArrayTree,
    penalty: Any,
    state: GradientPenaltyState,
    safeguard: bool,
) -> tuple[chex.ArrayTree, GradientPenaltyState]:
    """Adds a penalty that is None where a leaf was left out; a safeguard drops it where it ascends."""

    def add(p, update):
        return update if p is None else (update.astype(p.dtype) + p).astype(update.dtype)

    penalised = jax.tree.map(add, penalty, updates, is_leaf=lambda x: x is None)
    dropped = jnp.zeros([], bool)
    if safeguard:
        # An overflow is no direction of descent either. At a zero gradient there is nothing to ascend.
        descends = (trees.inner_product(gradient, penalised) > 0) & trees.all_finite(penalised)
        dropped = ~descends & (trees.squared_norm(gradient) > 0)
        penalised = jax.tree.map(lambda p, u: jnp.where(dropped, u, p), penalised, updates)
    return penalised, GradientPenaltyState(
        count=optax.safe_increment(state.count),
        dropped_count=state.dropped_count + dropped.astype(jnp.int32),
    )
