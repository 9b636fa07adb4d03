"""Which leaves of a loop's carry `jax.vmap` batches.

Leaves that no run changes on its own (step counts, above all) stay outside the batch: under `jax.vmap` a `lax.cond` on
a batched predicate would take both of its branches at every step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax


def carry_axes(
    begin: Callable[..., Any],
    inputs: Sequence[Any],
    step: Callable[..., Any],
    step_inputs: Sequence[Any],
    step_axes: Sequence[int | None],
) -> Any:
    """Returns the tree of the carry: 0 for a leaf that is batched and None for one that is not.

    A leaf that starts unbatched may be batched by a step, so steps are traced until nothing changes.

    Args:
      begin: `(*inputs) -> carry` of one run.
      inputs: shapes and dtypes, with the leading axis of the runs.
      step: `(carry, *step_inputs) -> carry` of one run.
      step_inputs: shapes and dtypes.
      step_axes: which of them have the leading axis of the runs: 0 or None.
    """
    # What depends on the run at the start already.
    carry, batched = _batched_leaves(begin, (0,) * len(inputs), *inputs)
    leaves, structure = jax.tree.flatten(carry)
    while True:
        axes = jax.tree.unflatten(structure, [0 if b else None for b in batched])
        given = [
            x if b else jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
            for x, b in zip(leaves, batched, strict=True)
        ]
        _, after = _batched_leaves(
            step, (axes, *step_axes), jax.tree.unflatten(structure, given), *step_inputs
        )
        # Only ever from unbatched to batched, so this ends.
        grown = [a or b for a, b in zip(batched, after, strict=True)]
        if grown == batched:
            return axes
        batched = grown


def _batched_leaves(fn, axes, *arguments):
    """Returns the batched result, and for each of its leaves whether it depends on the run."""
    found: list[Any] = []

    @jax.custom_batching.custom_vmap
    def probe(leaves):
        return leaves

    @probe.def_vmap
    def _(axis_size, in_batched, leaves):
        # JAX calls this rule with what it knows of each leaf; there is no public way to ask.
        found.append(in_batched[0])
        return leaves, in_batched[0]

    def probed(*args):
        leaves, structure = jax.tree.flatten(fn(*args))
        return jax.tree.unflatten(structure, probe(leaves))

    result = jax.eval_shape(jax.vmap(probed, axes), *arguments)
    return result, list(found[0]) if found else [False] * len(jax.tree.leaves(result))
