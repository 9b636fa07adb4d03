r"""Exponentiated gradient for signed weights by the hyperbolic entropy, as the last link of any chain.

.. math:: w \leftarrow \beta \sinh\!\big(\operatorname{arcsinh}(w / \beta) + u\big)

where :math:`u` is the additive update that the chain would have made: mirror descent with
:math:`\nabla \Phi(w) = \operatorname{arcsinh}(w/\beta)`. It equals the unnormalized EG± whose two weights have the
product :math:`w_+ w_- = \beta^2/4`, at no state. Weights well below :math:`\beta` move additively, by
:math:`\beta u`; weights well above it multiplicatively, by :math:`e^{\pm u}`; and nothing sticks at zero.

References:
  Ghai, Hazan, Singer, `Exponentiated Gradient Meets Gradient Descent <https://arxiv.org/abs/1902.01903>`_, 2020
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_igr._core import processors
from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.transform import transform
from optax_igr.geometry import _domain, _rounding
from optax_igr.geometry.exponentiate import finite_exponents


def hypentropy_step(weight: jax.Array, exponent: jax.Array, beta: Scalar) -> jax.Array:
    r"""Returns :math:`\beta \sinh(\operatorname{arcsinh}(w / \beta) + u) - w` for float32 or wider arrays.

    It is taken as :math:`(e^u - 1) (w_+ + w_- e^{-u})` with :math:`w_\pm = (\sqrt{w^2 + \beta^2} \pm w)/2`, where
    nothing cancels: not a small step, nor one that brings a large weight back through zero.
    """
    larger = (jnp.sqrt(weight**2 + beta**2) + jnp.abs(weight)) / 2
    sign = jnp.where(weight < 0, -1, 1).astype(weight.dtype)
    outward = processors.within_range(sign * exponent)
    # One division for the two that give w_- and the inverse of e^u; its denominator may underflow, and may overflow.
    shrunk = jnp.maximum(larger * jnp.exp(outward), float(jnp.finfo(weight.dtype).tiny))
    return sign * (processors.expm1(outward) * (larger + (beta / 2) ** 2 / shrunk))


def exponentiate_hypentropy(beta: float = 1.0) -> optax.GradientTransformationExtraArgs:
    r"""Turns the additive update of a chain into a step in the geometry of the hyperbolic entropy.

    .. math:: w \leftarrow \beta \sinh\!\big(\operatorname{arcsinh}(w / \beta) + u\big)

    It comes last in the chain. For large :math:`\beta` it is additive with the learning rate :math:`\beta \eta`; for
    small :math:`\beta` it favours sparse weights as EG± does.

    Args:
      beta: :math:`\beta > 0`, in the unit of the weights: the size at which a weight's step turns from additive to
        relative. Below the size of the weights that matter, above that of the noise.

    Returns:
      A stateless transform whose `update` needs `params`. An entry whose incoming update is not finite does not move,
      and one that would overflow saturates at a finite weight.

    Raises:
      ValueError: for a bad argument; in `init`, for a leaf that is not real.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda w: jnp.sum((w - jnp.array([3.0, -2.0, 0.0])) ** 2) / 2
      >>> optimizer = optax.chain(optax.scale_by_learning_rate(0.2), optax_igr.exponentiate_hypentropy())
      >>> params = jnp.zeros(3)
      >>> state = optimizer.init(params)
      >>> for _ in range(4):
      ...     updates, state = optimizer.update(jax.grad(value_fn)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{value_fn(params):.2E}")
      4.06E+00
      2.20E+00
      9.56E-01
      3.33E-01

    References:
      Ghai, Hazan, Singer, `Exponentiated Gradient Meets Gradient Descent <https://arxiv.org/abs/1902.01903>`_, 2020
    """
    _domain.check_constant("exponentiate_hypentropy", "beta", beta, above=0)

    def init(params: Any) -> optax.EmptyState:
        _domain.check_leaves("exponentiate_hypentropy", params)
        return optax.EmptyState()

    def step(param: jax.Array, exponent: jax.Array) -> jax.Array:
        wide = param.astype(exponent.dtype)
        # The square of a weight must be finite too.
        limit = min(_rounding.largest(param.dtype), math.sqrt(_rounding.largest(wide.dtype)))
        change = hypentropy_step(wide, exponent, jnp.asarray(beta, wide.dtype))
        return _rounding.rounded(
            _rounding.bounded(change, -limit - wide, limit - wide), param.dtype
        )

    def update(updates, state, params, **unused):
        del unused
        return jax.tree.map(step, params, finite_exponents(updates, params)), state

    return transform("exponentiate_hypentropy", init, update, needs=("params",), wider_updates=True)
