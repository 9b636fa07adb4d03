r"""Exponentiated gradient on the positive cone, as the last link of any chain.

.. math:: w \leftarrow w \odot e^{u}

where :math:`u` is the additive update that the chain would have made. With :math:`u = -\eta g` it is EGU, the
unnormalized exponentiated gradient, which is mirror descent with the mirror map
:math:`\sum_i w_i \log w_i - w_i`: the step minimizes :math:`\langle -u, w' \rangle + \mathrm{KL}(w' | w)`, and
:math:`\log w` moves by :math:`u` itself, with no Jacobian. It is gradient flow on :math:`v` with
:math:`w = v^2/4`, to first order in the step.

References:
  Kivinen, Warmuth, `Exponentiated Gradient versus Gradient Descent for Linear Predictors
  <https://doi.org/10.1006/inco.1996.2612>`_, 1997
  Amid, Warmuth, `Reparameterizing Mirror Descent as Gradient Descent <https://arxiv.org/abs/2002.10487>`_, 2020
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_igr._core import processors, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.transform import transform
from optax_igr.geometry import _domain, _rounding


class ExponentiateState(NamedTuple):
    """The logarithms of the weights in float32 or wider, or None where they are not kept."""

    log_weights: Any


def multiplicative_step(weight: jax.Array, exponent: jax.Array) -> jax.Array:
    r"""Returns :math:`w (e^u - 1)` for float32 or wider arrays, infinite only where :math:`w e^u` is.

    It is taken as :math:`w\,m\,(m + 2)` with :math:`m = e^{u/2} - 1`: a tiny weight may be multiplied by
    more than the largest number.
    """
    # Half the exponent has twice the range before its exponential overflows.
    root = processors.expm1(processors.within_range(exponent / 2))
    return weight * root * (root + 2)


def exponentiate(
    *, floor: float = 0.0, log_state: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Turns the additive update of a chain into a factor: positive weights stay positive.

    .. math:: u \mapsto w \odot (e^{u} - 1), \qquad \text{so that } w + u \mapsto w \odot e^{u}

    It comes last: whatever follows it (a scale, a decoupled decay) could make a weight negative. EG is
    `chain(scale_by_learning_rate(lr), exponentiate())`, a multiplicative Adam
    `chain(scale_by_adam(), scale_by_learning_rate(lr), exponentiate())`. The learning rate is now relative: it is the
    change of :math:`\log w`, the same for large and small weights. Any direction suits it, Adam's too: at a positive
    minimum the gradient is zero, and where it is not the weight goes to zero.

    .. note::
      One gradient that is 1e6 times too large sends a weight to the smallest or to the largest number, from where it
      takes hundreds of steps to come back. Put `optax.clip_by_global_norm` first in the chain.

    Args:
      floor: weights are kept at or above it. With 0, a positive weight stays positive and a zero stays zero.
      log_state: keep :math:`\log w` in float32 in the state, and let the parameters be its rounded image. Without it a
        step below half a unit in the last place of a weight is lost (a factor within 2e-3 of one for bfloat16), and
        one step divides a weight by at most 2**23 in float32 and 2**7 in bfloat16. The state then owns the weights:
        a change of the parameters from outside is overwritten.

    Returns:
      A transform whose `update` needs `params`. An entry whose incoming update is not finite does not move.

    Raises:
      ValueError: for a bad argument; in `init`, for a leaf with a negative weight, or one of zeros with `floor=0`,
        where the values are known (not under `jax.jit`).

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> optimizer = optax.chain(optax.scale_by_learning_rate(0.1), optax_igr.exponentiate())
      >>> params = jnp.array([1.0, 1.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...     grads = jnp.array([1.0, -1.0])
      ...     updates, state = optimizer.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{jnp.log(params[0]):.4f} {jnp.log(params[1]):.4f}")
      -0.1000 0.1000
      -0.2000 0.2000
      -0.3000 0.3000

    References:
      Kivinen, Warmuth, `Exponentiated Gradient versus Gradient Descent for Linear Predictors
      <https://doi.org/10.1006/inco.1996.2612>`_, 1997
    """
    _domain.check_constant("exponentiate", "floor", floor, at_least=0)

    def complaint(weight: jax.Array) -> str | None:
        found = _domain.negative_weight(weight)
        return found if found or floor > 0 else _domain.all_zero(weight)

    def init(params: Any) -> ExponentiateState:
        _domain.check_leaves(
            "exponentiate",
            params,
            complaint,
            advice="Use `exponentiate_hypentropy` for signed weights or those that start at zero; leave others "
            "out by `optax.masked` or `optax.partition`.",
        )
        return ExponentiateState(initial_log_weights(params, floor) if log_state else None)

    def update(updates, state, params, **unused):
        del unused
        # One NaN would make a weight NaN for ever.
        exponents = finite_exponents(updates, params)
        if not log_state:
            steps = jax.tree.map(multiplicative_step, trees.widen(params), exponents)
            return jax.tree.map(lambda p, s: _rounding.land(p, s, floor), params, steps), state
        _domain.check_state("exponentiate", params, log_weights=state.log_weights)
        log_weights = jax.tree.map(
            lambda p, log, u: _rounding.representable_log(log + u, p.dtype, floor),
            params,
            state.log_weights,
            exponents,
        )
        # The parameters follow the logarithms as closely as their dtype allows.
        updates = jax.tree.map(
            lambda p, log: _rounding.land(p, jnp.exp(log) - p.astype(log.dtype), floor),
            params,
            log_weights,
        )
        return updates, ExponentiateState(log_weights)

    return transform("exponentiate", init, update, needs=("params",), wider_updates=True)


def initial_log_weights(params: Any, floor: Scalar = 0.0) -> Any:
    """Returns the logarithms of the weights in float32 or wider; that of a zero is the lowest kept."""

    def log_weight(param: jax.Array) -> jax.Array:
        wide = jnp.maximum(param.astype(trees.widened(param.dtype)), 0)
        return _rounding.representable_log(jnp.log(wide), param.dtype, floor)

    return jax.tree.map(log_weight, _domain.with_values(params))


def finite_exponents(updates: Any, params: Any) -> Any:
    """Casts the updates to the wide dtype of the parameters, with zero where they are not finite."""

    def exponent(param: jax.Array, update: jax.Array) -> jax.Array:
        update = update.astype(trees.widened(param.dtype))
        return jnp.where(jnp.isfinite(update), update, 0)

    return jax.tree.map(exponent, params, updates)
