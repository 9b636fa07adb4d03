"""The train state of Linen whose updates take extra arguments."""

import functools
from collections.abc import Mapping
from typing import Any, Self

import optax
from flax.training import train_state

from optax_igr.flax._extra_args import takes_extra_args


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
          **fields: other fields to replace, as `batch_stats`.

        Returns:
          The state after the step.
        """
        tx = self.tx
        if not extra_args or not takes_extra_args(tx):
            return super().apply_gradients(grads=grads, **fields)
        bound = optax.GradientTransformation(tx.init, functools.partial(tx.update, **extra_args))
        # The parent takes the step, then puts `tx` back among the fields that it replaces.
        return super(TrainState, self.replace(tx=bound)).apply_gradients(
            grads=grads, **{"tx": tx, **fields}
        )
