r"""A weight as the linear operator by which a layer acts on its input, for every leaf of a tree.

The norm that bounds a layer is that of its operator, not that of its array of weights: a convolution with a
:math:`3 \times 3` kernel of ones has the norm 9, while the kernel flattened to a matrix has the norm 3.

An operator is described by *blocks*, matrices whose singular values together are those of the operator: for a matrix
there is one, for a convolution one for each frequency.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_igr._core import hyperparameters, paths, trees
from optax_igr.operators.conv_operator import ConvOperator
from optax_igr.operators.conv_transpose_operator import ConvTransposeOperator
from optax_igr.operators.matrix_operator import MatrixOperator
from optax_igr.operators.stacked_operator import StackedOperator

Operator = MatrixOperator | ConvOperator | ConvTransposeOperator | StackedOperator


def resolve(transform: str, tree: Any, operator: Any = None, mask: Any = None) -> Any:
    """Returns the operator of every leaf, and None for a leaf that is left alone.

    Args:
      transform: the public name, for the errors.
      tree: the parameters.
      operator: None for the default: a leaf of two axes is a matrix, one of more is an error. Else an operator, a
        function `(path, leaf) -> operator or None`, or a pytree prefix of these and of None. Whoever gives one
        decides for all leaves: None leaves a leaf alone. So is one of fewer than two axes, in any case.
      mask: a pytree prefix of booleans, or a function that makes one; a leaf where it is False is left alone.

    Returns:
      A tree like `tree`.

    Raises:
      ValueError: that names the leaf for which there is no operator.
    """
    selected, _ = trees.select(transform, trees.as_arrays(tree), mask)
    structure = jax.tree.structure(selected)
    # NNX hands boxed variables to `init` and their values to `update`. Both must lead to the same operators.
    leaves = paths.leaves_with_path(selected)
    if not leaves:
        return selected
    choices = (
        [operator] * len(leaves)
        if operator is None
        else _broadcast(transform, operator, paths.unboxed(selected))
    )
    return structure.unflatten(
        _resolve_leaf(transform, path, leaf, choice, is_default=operator is None)
        for (path, leaf), choice in zip(leaves, choices, strict=True)
    )


def map_operators(function: Callable[..., Any], chosen: Any, *rest: Any) -> Any:
    """Calls `function(operator, leaf, ...)` where there is an operator; elsewhere the result is None."""
    return jax.tree.map(
        lambda operator, *leaves: None if operator is None else function(operator, *leaves),
        chosen,
        *rest,
        is_leaf=lambda x: x is None,
    )


def unzip(results: Any, chosen: Any, length: int) -> tuple[Any, ...]:
    """Turns a tree of tuples, as `map_operators` makes it, into a tuple of trees."""
    return tuple(
        map_operators(lambda _, result, i=i: result[i], chosen, results) for i in range(length)
    )


def fill(tree: Any, rest: Any) -> Any:
    """Puts the leaves of `rest` where a tree of `map_operators` has None."""
    return jax.tree.map(
        lambda leaf, other: other if leaf is None else leaf,
        tree,
        rest,
        is_leaf=lambda x: x is None,
    )


def as_state(tree: Any) -> Any:
    """Returns a tree of `map_operators`, or a zero in place of one without leaves.

    So the placeholder that `optax.tree.map_params` initialises with does not mark the tree as one like the
    parameters: their shardings do not fit its leaves.
    """
    return tree if jax.tree.leaves(tree) else jnp.zeros([], jnp.float32)


def zero_norm(operator: Operator, weight: jax.Array) -> jax.Array:
    """Returns a zero for each operator of the stack, in the dtype of its norm."""
    dtype = jnp.finfo(trees.widened(weight.dtype)).dtype
    return jnp.zeros(operator.stack_shape(weight.shape), dtype)


def add_decay(updates: Any, factor: hyperparameters.Scalar, gradient: Any) -> Any:
    """Adds a multiple of a gradient that is None where a leaf is left alone, in the gradient's precision."""

    def add(g, update):
        if g is None:
            return update
        scaled = jnp.asarray(factor).astype(g.real.dtype) * g
        return (update.astype(g.dtype) + scaled).astype(update.dtype)

    return jax.tree.map(add, gradient, updates, is_leaf=lambda x: x is None)


def _broadcast(transform, operator, tree):
    choices = []

    def collect(choice, branch):
        choices.extend([choice] * len(jax.tree.leaves(branch)))

    try:
        jax.tree.map(collect, operator, tree, is_leaf=lambda x: x is None)
    except ValueError as error:
        raise ValueError(
            f"{transform}: `operator` must be a pytree prefix of the parameters: {error}"
        ) from error
    return choices


def _resolve_leaf(transform, path, leaf, choice, is_default):
    name = f"{transform}: leaf {jax.tree_util.keystr(path) or 'at the root'} of shape {list(leaf.shape)}"
    if callable(choice):
        choice = choice(path, leaf)
    if leaf.ndim < 2 or leaf.size == 0:
        return None
    if is_default:
        if leaf.ndim > 2:
            raise ValueError(
                f"{name} has more than two axes, and may be an attention kernel, a convolution or a stack of matrices. "
                f"Say which by `operator`: optax_igr.matrix_operator(in_axes, out_axes), "
                f"optax_igr.conv_operator(input_shape, ...), a function `(path, leaf) -> operator or None`, or "
                f"optax_igr.flax.operators(model, inputs); or leave it out by `mask`."
            )
        choice = MatrixOperator((-2,), (-1,))
    if choice is None:
        return None
    if not isinstance(choice, Operator):
        raise ValueError(
            f"{name}: `operator` must be one of optax_igr.matrix_operator(), optax_igr.conv_operator() and the "
            f"operators of optax_igr.operators, got {choice!r}."
        )
    complaint = choice.complaint(leaf.shape)
    if complaint is not None:
        raise ValueError(f"{name} {complaint}, as {choice} expects.")
    return choice
