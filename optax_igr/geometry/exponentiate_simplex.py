r"""Exponentiated gradient on the simplex, as the last link of any chain.

.. math:: w_i \leftarrow U\,\frac{w_i\,e^{u_i}}{\sum_j w_j\,e^{u_j}}

where :math:`u` is the additive update that the chain would have made, and the sum runs along an axis. With
:math:`u = -\eta g` it is EG, the Hedge algorithm for a linear loss: the step minimizes
:math:`\eta \langle g, w' \rangle + \mathrm{KL}(w' | w)` over the simplex of sum :math:`U`. For N experts, losses in
[0, 1] and :math:`\eta = \sqrt{8 \ln N / T}` its regret after T steps is at most :math:`\sqrt{T \ln N / 2}`.

References:
  Kivinen, Warmuth, `Exponentiated Gradient versus Gradient Descent for Linear Predictors
  <https://doi.org/10.1006/inco.1996.2612>`_, 1997
  Freund, Schapire, `A Decision-Theoretic Generalization of On-Line Learning and an Application to Boosting
  <https://doi.org/10.1006/jcss.1997.1504>`_, 1997
  Cesa-Bianchi et al, `Mirror Descent Meets Fixed Share (and feels no regret)
  <https://arxiv.org/abs/1202.3323>`_, 2012
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.transform import transform
from optax_igr.geometry import _domain, _rounding
from optax_igr.geometry.exponentiate import initial_log_weights

# Weights are scaled by this within a sum, so that what underflows there is nothing beside the largest term, even where
# that belongs to the smallest weight. A power of two, which rounds nothing.
_SCALE = 2.0**40


class ExponentiateSimplexState(NamedTuple):
    """The number of updates, and the logarithms of the weights in float32 or wider where they are kept."""

    count: ArrayLike
    log_weights: Any


def simplex_weights(
    weight: jax.Array, exponent: jax.Array, *, axis: _domain.Axis = -1, total: Scalar = 1.0
) -> jax.Array:
    r"""Returns :math:`U\,w_i e^{u_i} / \sum_j w_j e^{u_j}` for float32 or wider arrays.

    Where an exponent of a group is NaN or infinite, the group stays as it is.
    """
    terms, sums = scaled_terms(weight, exponent - maximum(exponent, axis), axis)
    return jnp.where(has_moved(sums), total * terms / sums, weight)


def simplex_log_weights(
    log_weight: jax.Array, exponent: jax.Array, *, axis: _domain.Axis = -1, total: Scalar = 1.0
) -> jax.Array:
    r"""Returns the logarithms of the same weights, :math:`\log w + u - c`."""
    shifted = exponent - maximum(exponent, axis)
    _, sums = scaled_terms(jnp.exp(log_weight), shifted, axis)
    return log_weight + jnp.where(has_moved(sums), shifted - log_normalizer(sums, total), 0)


def maximum(x: jax.Array, axis: _domain.Axis) -> jax.Array:
    """Returns the maximum along `axis`, which may be empty."""
    return jnp.max(x, axis, keepdims=True, initial=-jnp.inf)


def scaled_terms(
    weight: jax.Array, exponent: jax.Array, axis: _domain.Axis
) -> tuple[jax.Array, jax.Array]:
    r"""Returns :math:`w e^u` for exponents of at most zero and its sum, both on one scale."""
    # In two factors, as the weight times the exponential may be a normal number where the exponential is none.
    root = jnp.exp(exponent / 2)
    terms = (weight * _SCALE * root) * root
    return terms, jnp.sum(terms, axis, keepdims=True)


def has_moved(sums: jax.Array) -> jax.Array:
    """Says whether a group has weights to normalize and no exponent that is NaN or infinite."""
    return jnp.isfinite(sums) & (sums > 0)


def log_normalizer(sums: jax.Array, total: Scalar) -> jax.Array:
    r"""Returns :math:`c = \log(\sum_j w_j e^{u_j} / U)`."""
    scaled = sums / total
    plain = scaled / _SCALE
    # The one keeps the digits of a small step; the other does not underflow where the smallest weight has won.
    return jnp.where(plain > 2.0**-60, jnp.log(plain), jnp.log(scaled) - math.log(_SCALE))


def mixed(weight: jax.Array, share: Scalar, *, axis: _domain.Axis, total: Scalar) -> jax.Array:
    r"""Returns :math:`(1 - \alpha) w + \alpha U / N`."""
    return weight + share * (total / _domain.group_size(weight, axis) - weight)


def exponentiate_simplex(
    *,
    axis: _domain.Axis = -1,
    total: float = 1.0,
    fixed_share: optax.ScalarOrSchedule = 0.0,
    log_state: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns the additive update of a chain into a step of exponentiated gradient on the simplex along `axis`.

    .. math::
      w \leftarrow (1 - \alpha)\,U\,\frac{w \odot e^{u}}{\sum_j w_j e^{u_j}} + \alpha\,\frac{U}{N}

    It comes last in the chain. Each step normalizes, so the sum does not drift. In bfloat16 it is right to 1.2 % (to
    0.1 % while steps change weights by less than a half), in float16 to 0.2 %.

    Adding a constant to :math:`u` along the axis changes nothing. A decay that is the same for all weights is therefore
    none. `weight_decay * w` in the additive update pulls towards the uniform weights.

    .. note::
      The direction before it must keep what sets the weights of one group apart. At the minimum the gradient is no zero
      but a constant, and Adam, RMSProp and signs divide each entry by its own size: what is left is the same for all
      weights, and none moves. Subtract the mean of the gradient under the weights first. Of 17 learning rates from 1e-3
      to 10, so many came within 1 % of the minimum in 500 steps (a quadratic of 20 weights, the likelihood of a mixture
      of 12):

      ==================================================== ========= =======
      direction                                            quadratic mixture
      ==================================================== ========= =======
      the gradient                                         6         7
      `optax.trace(0.9)`                                   11        11
      `optax.normalize_by_update_norm()`                   7         8
      `optax.scale_by_adam()`                              0         0
      `optax.scale_by_rms()`, `optax.scale_by_sign()`      0         0
      centered, then `optax.scale_by_adam()`               13        10
      ==================================================== ========= =======

      Centered means `optax.stateless(lambda g, w: g - jnp.sum(w * g) / jnp.sum(w))`.

    .. note::
      One gradient that is 1e6 times too large sends all weights but one to the smallest number. From there they come
      back by the size of a step in :math:`\log w`: hundreds of steps. Put `optax.clip_by_global_norm` first in the
      chain, or give a `fixed_share`.

    Args:
      axis: the axis or axes along which the weights sum to `total`; None is all axes of a leaf.
      total: U, the sum of the weights.
      fixed_share: :math:`\alpha` in [0, 1), a number or a schedule. Every weight stays above :math:`\alpha U / N`,
        so that none is lost for a later time when it is the best (Cesa-Bianchi et al). A value of a schedule outside
        the range is moved into it, and one that is not finite counts as 0.
      log_state: keep :math:`\log w` in float32 in the state, as in :func:`exponentiate`.

    Returns:
      A transform whose `update` needs `params`. Where an incoming update is not finite, its group of weights along
      `axis` does not move.

    Raises:
      ValueError: for a bad argument; in `init`, for a leaf without the axis and, where the values are known (not under
        `jax.jit`), for one with a negative weight or a sum other than `total`.

    .. note::
      Inside `optax.inject_hyperparams`, name `axis` in `static_args`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> losses = jnp.array([1.0, 0.0, 2.0])
      >>> optimizer = optax.chain(optax.scale_by_learning_rate(1.0), optax_igr.exponentiate_simplex())
      >>> params = jnp.ones(3) / 3
      >>> state = optimizer.init(params)
      >>> for _ in range(4):
      ...     updates, state = optimizer.update(losses, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{losses @ params:.2E}")
      4.25E-01
      1.49E-01
      5.20E-02
      1.86E-02

    References:
      Kivinen, Warmuth, `Exponentiated Gradient versus Gradient Descent for Linear Predictors
      <https://doi.org/10.1006/inco.1996.2612>`_, 1997
      Cesa-Bianchi et al, `Mirror Descent Meets Fixed Share (and feels no regret)
      <https://arxiv.org/abs/1202.3323>`_, 2012
    """
    axis = _domain.check_axis("exponentiate_simplex", axis)
    _domain.check_constant("exponentiate_simplex", "total", total, above=0)
    fixed_share = hyperparameters.checked(
        "exponentiate_simplex", "fixed_share", fixed_share, at_least=0, below=1
    )
    shares = callable(fixed_share) or not (isinstance(fixed_share, float) and fixed_share == 0)

    def complaint(weight: jax.Array) -> str | None:
        return _domain.negative_weight(weight) or _domain.sum_other_than(weight, axis, total)

    def init(params: Any) -> ExponentiateSimplexState:
        _domain.check_axes_exist("exponentiate_simplex", params, axis)
        _domain.check_leaves("exponentiate_simplex", params, complaint)
        return ExponentiateSimplexState(
            count=jnp.zeros([], jnp.int32),
            log_weights=initial_log_weights(params) if log_state else None,
        )

    def exponentiated(param: jax.Array, update: jax.Array, share: Scalar) -> jax.Array:
        wide = param.astype(trees.widened(param.dtype))
        weight = simplex_weights(wide, update.astype(wide.dtype), axis=axis, total=total)
        return mixed(weight, share, axis=axis, total=total) if shares else weight

    def moved(
        param: jax.Array, log_weight: jax.Array, update: jax.Array, share: Scalar
    ) -> jax.Array:
        exponent = update.astype(log_weight.dtype)
        log_weight = simplex_log_weights(log_weight, exponent, axis=axis, total=total)
        if shares:
            log_weight = jnp.log(mixed(jnp.exp(log_weight), share, axis=axis, total=total))
        return _rounding.representable_log(log_weight, param.dtype).astype(exponent.dtype)

    def update(updates, state, params, **unused):
        del unused
        share = hyperparameters.value_at(fixed_share, state.count)
        log_weights = None
        if log_state:
            _domain.check_state("exponentiate_simplex", params, log_weights=state.log_weights)
            log_weights = jax.tree.map(
                lambda p, log, u: moved(p, log, u, share), params, state.log_weights, updates
            )
            weights = jax.tree.map(jnp.exp, log_weights)
        else:
            weights = jax.tree.map(lambda p, u: exponentiated(p, u, share), params, updates)
        updates = jax.tree.map(
            lambda p, w: _rounding.land(p, w - p.astype(w.dtype)), params, weights
        )
        return updates, ExponentiateSimplexState(optax.safe_increment(state.count), log_weights)

    return transform("exponentiate_simplex", init, update, needs=("params",), wider_updates=True)
