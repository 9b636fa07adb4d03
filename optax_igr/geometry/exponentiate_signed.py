r"""Exponentiated gradient for weights that keep the sign they start with, as the last link of any chain.

.. math:: w \leftarrow w \odot e^{\operatorname{sign}(w) \odot u}

where :math:`u` is the additive update that the chain would have made. The magnitude moves as a positive weight would
under :func:`optax_igr.exponentiate`: excitatory weights stay excitatory, inhibitory ones inhibitory.

References:
  Cornford et al, `Brain-like learning with exponentiated gradients
  <https://doi.org/10.1101/2024.10.25.620272>`_, 2024
  Bernstein et al, `Learning compositional functions via multiplicative weight updates
  <https://arxiv.org/abs/2006.14560>`_, 2020
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_igr._core.transform import transform
from optax_igr.geometry import _domain, _rounding
from optax_igr.geometry.exponentiate import finite_exponents, multiplicative_step


def signed_step(
    weight: jax.Array, exponent: jax.Array, floor: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    r"""Returns the sign of the new weight and the change of its magnitude, :math:`|w| (e^{\pm u} - 1)`.

    With a floor a zero takes the sign of its update, and steps onto the floor.
    """
    # The magnitude falls where the update points against the sign.
    sign = jnp.sign(weight)
    if not (isinstance(floor, float) and floor == 0):
        sign = jnp.where(sign == 0, jnp.sign(exponent), sign)
    return sign, multiplicative_step(jnp.abs(weight), sign * exponent)


def exponentiate_signed(*, floor: float = 0.0) -> optax.GradientTransformationExtraArgs:
    r"""Turns the additive update of a chain into a factor on weights of either sign, which they keep.

    .. math:: u \mapsto w \odot (e^{\operatorname{sign}(w) \odot u} - 1)

    It comes last in the chain. `weight_decay * w` in the additive update shrinks weights of both signs. A weight of
    zero has no sign and stays; weights that must cross zero belong to :func:`optax_igr.exponentiate_hypentropy`.

    Args:
      floor: magnitudes are kept at or above it; a zero then takes the sign of its first update.

    Returns:
      A stateless transform whose `update` needs `params`. An entry whose incoming update is not finite does not move.

    Raises:
      ValueError: for a bad argument; in `init`, for a leaf of zeros (a fresh bias) with `floor=0`, where the values
        are known (not under `jax.jit`).

    Examples:
      >>> import jax.numpy as jnp, optax, optax_igr
      >>> optimizer = optax.chain(optax.scale_by_learning_rate(0.1), optax_igr.exponentiate_signed())
      >>> params = jnp.array([1.0, -1.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...     updates, state = optimizer.update(jnp.array([1.0, 1.0]), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{params[0]:.4f} {params[1]:.4f}")
      0.9048 -1.1052
      0.8187 -1.2214
      0.7408 -1.3499

    References:
      Cornford et al, `Brain-like learning with exponentiated gradients
      <https://doi.org/10.1101/2024.10.25.620272>`_, 2024
    """
    _domain.check_constant("exponentiate_signed", "floor", floor, at_least=0)

    def init(params: Any) -> optax.EmptyState:
        _domain.check_leaves(
            "exponentiate_signed",
            params,
            lambda weight: None if floor > 0 else _domain.all_zero(weight),
            advice="Give a `floor`, start it away from zero, or use `exponentiate_hypentropy`.",
        )
        return optax.EmptyState()

    def step(param: jax.Array, exponent: jax.Array) -> jax.Array:
        sign, change = signed_step(param.astype(exponent.dtype), exponent, floor)
        sign = sign.astype(param.dtype)
        # A zero that has no update to take a sign from keeps its floor for later.
        return sign * _rounding.land(jnp.abs(param), change, floor)

    def update(updates, state, params, **unused):
        del unused
        return jax.tree.map(step, params, finite_exponents(updates, params)), state

    return transform("exponentiate_signed", init, update, needs=("params",), wider_updates=True)
