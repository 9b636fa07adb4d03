"""Which extra arguments an optimizer is given."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import optax


def takes_extra_args(tx: Any) -> bool:
    """Says whether `tx.update` takes extra arguments."""
    # `optax.MultiSteps` is no GradientTransformation, and takes them.
    return isinstance(tx, optax.GradientTransformationExtraArgs) or not isinstance(
        tx, optax.GradientTransformation
    )


def accumulates(tx: Any, opt_state: Any) -> bool:
    """Says whether there is an `optax.MultiSteps` in the optimizer."""

    def is_state(node):
        return isinstance(node, optax.MultiStepsState)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_state)
    return isinstance(tx, optax.MultiSteps) or any(map(is_state, nodes))


def without_microbatch(tx: Any, opt_state: Any, extra_args: dict[str, Any]) -> dict[str, Any]:
    """Leaves out `value` and `grad` inside `optax.MultiSteps`, where they are those of one micro-batch.

    The incoming updates are the mean gradient there, which every transform takes where it is given no `grad`.
    """
    if not accumulates(tx, opt_state):
        return extra_args
    return {name: x for name, x in extra_args.items() if name not in ("value", "grad")}


@contextlib.contextmanager
def explained_in_multi_steps(tx: Any, opt_state: Any) -> Iterator[None]:
    """Explains what a transform that requires `value` or `grad`, such as a line search, meets there."""
    try:
        yield
    except TypeError as error:
        requires = any(f"keyword-only argument{s}" in str(error) for s in (":", "s:"))
        if not (accumulates(tx, opt_state) and requires):
            raise
        raise ValueError(
            f"train_step: a transform inside `optax.MultiSteps` requires what belongs to one micro-batch alone "
            f"({error}). Take optax_igr.microbatched instead of MultiSteps."
        ) from error
