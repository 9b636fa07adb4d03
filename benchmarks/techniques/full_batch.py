"""Techniques on all examples, beside those on batches: each takes the whole training set as its batch."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def penalty_on_full_batch(
    transform: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Lets a penalty see the loss on the whole training set: what extrapolation does for nothing."""
    transform = optax.with_extra_args_support(transform)

    def update(updates, state, params=None, *, full_value_fn: Any = None, **extra):
        full = jax.grad(full_value_fn)(params)
        penalized, state = transform.update(
            full, state, params, **extra | {"grad": full, "value_fn": full_value_fn}
        )
        # The penalty alone is of the whole set; the gradient stays that of the batch.
        return jax.tree.map(lambda u, p, g: u + p - g, updates, penalized, full), state

    return optax.GradientTransformationExtraArgs(transform.init, update)


def on_full_batch_every(
    interval: int, optimizer: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Lets a deterministic optimizer take a step on all examples once in so many steps of the others.

    One of its steps costs as much as an epoch of theirs. So both have taken the same passes at the same step.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return jnp.zeros([], jnp.int32), optimizer.init(params)

    def update(updates, state, params: Any = None, *, full_value_fn: Any = None, **extra):
        count, inner = state
        # `full_outputs_fn` is `outputs_fn` to an optimizer whose batch is the whole set.
        full = {k.removeprefix("full_"): x for k, x in extra.items() if k.startswith("full_")}

        def step():
            value, grad = jax.value_and_grad(full_value_fn)(params)
            return optimizer.update(
                grad, inner, params, value=value, grad=grad, value_fn=full_value_fn, **full
            )

        def wait():
            return jax.tree.map(jnp.zeros_like, updates), inner

        updates, inner = jax.lax.cond(count % interval == 0, step, wait)
        return updates, (count + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)
