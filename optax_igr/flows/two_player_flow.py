r"""The flow of two players that descend their own losses, with unequal learning rates.

Let :math:`F = (F_1, F_2) = (-\alpha\,\partial_\phi L_1, \; -\lambda\,\partial_\theta L_2)` be the
step of the players :math:`\phi` and :math:`\theta`. Time is counted in steps. Up to third order
in the rates

.. math::
  \dot\phi &= F_1 - \tfrac12 (\partial_\phi F_1\, F_1 + \partial_\theta F_1\, F_2) \\
  \dot\theta &= F_2 - \tfrac12 (\pm\,\partial_\phi F_2\, F_1 + \partial_\theta F_2\, F_2)

with plus for simultaneous updates. With alternating updates the second player answers the first
one's move, :math:`\theta \leftarrow \theta + F_2(\phi + F_1, \theta)`, which adds
:math:`\partial_\phi F_2\, F_1` and turns its interaction term to minus.

References:
  Rosca et al, `Discretization Drift in Two-Player Games <https://arxiv.org/abs/2105.13922>`_, 2021
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import chex
import jax

from optax_igr._core import derivatives, hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.flows import _leaves

Updates = Literal["simultaneous", "alternating"]
PlayerValueFn = Callable[[tuple[chex.ArrayTree, chex.ArrayTree]], jax.Array]


def two_player_flow(
    value_fns: Sequence[PlayerValueFn],
    learning_rates: Sequence[Scalar],
    *,
    updates: Updates = "simultaneous",
    order: int = 1,
) -> _leaves.Field:
    r"""The flow that two players' simultaneous or alternating gradient steps follow.

    Time is counted in steps, because two learning rates leave no common unit: over `n` steps the
    players and the flow over the time `n` differ by :math:`n\,O(h^3)`, which is :math:`O(h^2)`
    over `n = T/h` steps.

    Args:
      value_fns: the losses of the first and of the second player, each a function of the pair
        `(first_params, second_params)`, which each player descends in its own parameters.
      learning_rates: the rates of the first and of the second player, two numbers.
      updates: "simultaneous", or "alternating" where the second player's gradient is taken after
        the first player's step.
      order: 1, or 0 for the flow without the correction.

    Returns:
      A field on pairs `(first_params, second_params)`. An integer or boolean leaf has velocity
      zero.

    Raises:
      ValueError: if an argument is out of its range.

    Examples:
      The game :math:`xy` of which one player wants the minimum and the other the maximum:
      simultaneous steps spiral outwards, alternating steps stay on a closed curve.

      >>> from optax_igr import flows
      >>> value_fns = (lambda z: z[0] * z[1], lambda z: -z[0] * z[1])
      >>> for updates in ("simultaneous", "alternating"):
      ...   x, y = flows.two_player_flow(value_fns, (0.1, 0.1), updates=updates)((1.0, 1.0))
      ...   print(f"{x:.3f} {y:.3f}")
      -0.095 0.105
      -0.095 0.095

    References:
      Rosca et al, `Discretization Drift in Two-Player Games <https://arxiv.org/abs/2105.13922>`_,
      2021
    """
    if len(value_fns) != 2 or len(learning_rates) != 2:
        raise ValueError(
            "two_player_flow: `value_fns` and `learning_rates` must each have two elements, got "
            f"{len(value_fns)} and {len(learning_rates)}."
        )
    for rate in learning_rates:
        hyperparameters.check_scalar("two_player_flow", "learning_rates", rate)
    hyperparameters.check_choice("two_player_flow", "updates", updates, get_args(Updates))
    hyperparameters.check_choice("two_player_flow", "order", order, (0, 1))
    sign = 1 if updates == "simultaneous" else -1

    def velocity(params, fill):
        def move(player):
            def descent(pair):
                def value(own):
                    both = (own, pair[1]) if player == 0 else (pair[0], own)
                    return value_fns[player](fill(both))

                gradient = derivatives.gradient(value, pair[player])
                return trees.scale(-learning_rates[player], gradient)

            return descent

        first, second = move(0)(params), move(1)(params)
        if order == 0:
            return first, second
        _, first_change = jax.jvp(move(0), (params,), ((first, second),))
        _, second_change = jax.jvp(move(1), (params,), ((trees.scale(sign, first), second),))
        return (
            trees.subtract(first, trees.scale(0.5, first_change)),
            trees.subtract(second, trees.scale(0.5, second_change)),
        )

    return _leaves.on_whole_tree("two_player_flow", velocity)
