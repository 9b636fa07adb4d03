"""What the flows with a state share: their start, their substeps, and many steps in one scan."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_igr._core import derivatives, hyperparameters, trees
from optax_igr._core.trees import Tree


def start(
    name: str, value_fn: derivatives.ValueFn, params: Tree, mask: Any
) -> tuple[Tree, Tree, Callable[[Tree], Tree]]:
    """Returns the parameters in float32 or wider, those that move, and what puts these back.

    Raises:
      ValueError: if the loss is not finite, or differs between two calls at the same parameters.
    """
    params = trees.as_arrays(params)
    selected, fill = trees.select(name, trees.widen(params), mask)
    if not jax.tree.leaves(selected):
        raise ValueError(f"{name}: `params` has no real parameter that moves.")
    params = fill(selected)
    if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(params)):
        first, second = value_fn(params), value_fn(params)
        if not jnp.isfinite(first):
            raise ValueError(f"{name}: the loss at the start is {first}.")
        if first != second:
            raise ValueError(
                f"{name}: `value_fn` returns {first} and then {second} at the same parameters. The "
                "flow is that of full-batch training: close over all data and one random key."
            )
    return params, selected, fill


def value_and_gradient(value_fn: derivatives.ValueFn, params: Tree) -> tuple[jax.Array, Tree]:
    """Returns the loss and its direction of steepest ascent.

    XLA does not merge the forward pass of the loss with that of a gradient taken apart from it.
    """
    value, gradient = jax.value_and_grad(value_fn)(params)
    # `jax.grad` returns the conjugate of the direction of ascent.
    return value, jax.tree.map(lambda g: g.conj() if jnp.iscomplexobj(g) else g, gradient)


def first_of(substep: Callable, state: Any, count: int) -> tuple[Any, Any]:
    """Takes `count` substeps `(state, index) -> (state, info)`; the info is that of the first."""
    if count == 1:
        return substep(state, 0)
    state, infos = jax.lax.scan(substep, state, jnp.arange(count))
    return state, jax.tree.map(lambda x: x[0], infos)


def run(
    name: str,
    init: Callable,
    step: Callable,
    state_type: type,
    params: Any,
    num_steps: int,
    observe: Callable | None = None,
) -> tuple[Any, Any, Any]:
    """Takes `num_steps` steps from parameters or a state in one compiled scan.

    Raises:
      FloatingPointError: if the loss does not stay finite. Not under `jax.jit`.
    """
    hyperparameters.check_positive_integer(name, "num_steps", num_steps)
    state = params if isinstance(params, state_type) else init(params)
    state, info, observed = _scan(step, int(num_steps), observe, state)
    finite = jnp.isfinite(info.loss)
    if not isinstance(finite, jax.core.Tracer) and not jnp.all(finite):
        raise FloatingPointError(
            f"{name}: the flow leaves the finite numbers at step {int(jnp.argmin(finite))}, where even "
            "the average diverges: take a smaller `learning_rate` or more `substeps`."
        )
    return state, info, observed


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _scan(step, num_steps, observe, state):
    def body(state, _):
        following, info = step(state)
        return following, (info, None if observe is None else observe(state.params))

    state, (info, observed) = jax.lax.scan(body, state, length=num_steps)
    return state, info, observed
