"""The train state of Linen whose updates take extra arguments."""

import functools
from collections.abc import Mapping
from typing import Any, Self, TypeVar

import optax
from flax.training import train_state

from optax_igr.flax._extra_args import (
    explained_in_multi_steps,
    takes_extra_args,
    without_microbatch,
)

_State = TypeVar("_State", bound=train_state.TrainState)


class TrainState(train_state.TrainState):
    """The Linen train state of Flax, whose `apply_gradients` hands extra arguments to the transform.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_igr.flax
      >>> from flax import linen
      >>> model = linen.Dense(1)
      >>> x, y = jnp.eye(2), jnp.ones((2, 1))
      >>> state = optax_igr.flax.TrainState.create(
      ...     apply_fn=model.apply, params=model.init(jax.random.key(0), x), tx=optax.lbfgs()
      ... )
      >>> value_fn = lambda params: jnp.mean((model.apply(params, x) - y) ** 2)
      >>> for _ in range(5):
      ...     value, grads = jax.value_and_grad(value_fn)(state.params)
      ...     extra_args = {"value": value, "grad": grads, "value_fn": value_fn}
      ...     state = state.apply_gradients(grads=grads, extra_args=extra_args)
      >>> print(f"{value_fn(state.params):.1f}")
      0.0
    """

    def apply_gradients(
        self, *, grads: Any, extra_args: Mapping[str, Any] | None = None, **fields: Any
    ) -> Self:
        """Updates `step`, `params`, `opt_state` and `fields`.

        Args:
          grads: gradients with the structure of `params`.
          extra_args: extra arguments of `tx.update` by name; a transform that takes none is given
            none. Where `params` holds a collection to be overwritten by its gradient (float8
            scales), they are functions and trees of `params["params"]`, which is what `tx` updates.
            Inside `optax.MultiSteps`, `value` and `grad` are left out: there they would be those of
            the last micro-batch, and the incoming updates are the mean gradient.
          **fields: other fields to replace, as `batch_stats`.

        Returns:
          The state after the step.
        """
        tx = self.tx
        if not extra_args or not takes_extra_args(tx):
            return super().apply_gradients(grads=grads, **fields)
        given = without_microbatch(tx, self.opt_state, dict(extra_args))
        # The parent takes the step, then puts `tx` back among the fields that it replaces.
        with explained_in_multi_steps(tx, self.opt_state):
            return super(TrainState, with_bound(self, given)).apply_gradients(
                grads=grads, **{"tx": tx, **fields}
            )


def with_bound(state: _State, *extra_args: Mapping[str, Any] | None) -> _State:
    """Returns a train state whose transform is given the extra arguments; the step must put its `tx` back."""
    given = {name: x for arguments in extra_args for name, x in (arguments or {}).items()}
    update = functools.partial(state.tx.update, **given)
    return state.replace(tx=optax.GradientTransformation(state.tx.init, update))
