"""Pytrees as vectors: inner products in float32 or wider, masks, casts and checks.

An inner product is `sum(x * y)` leaf by leaf, never a ravel: a sharded leaf stays sharded.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

# A tree of arrays. `chex.ArrayTree` is a union of which a type checker cannot tell leaves from branches.
Tree = Any


def widened(dtype: Any) -> Any:
    """Returns float32 for a narrower floating dtype, and the dtype itself otherwise."""
    dtype = jnp.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        return jnp.dtype(jnp.float32)
    return dtype


def widen(tree: Tree) -> Tree:
    """Casts bfloat16 and float16 leaves to float32 and leaves the others alone."""
    return jax.tree.map(lambda x: jnp.asarray(x, widened(jnp.asarray(x).dtype)), tree)


def is_narrow(tree: Tree) -> bool:
    """Says whether any leaf has fewer bits than float32."""
    return any(widened(x.dtype) != x.dtype for x in jax.tree.leaves(tree))


def scalar_dtype(tree: Tree) -> Any:
    """Returns the real dtype of an inner product over the tree: float32, or the widest of its leaves."""
    dtypes = [jnp.finfo(x.dtype).dtype for x in jax.tree.leaves(tree) if is_inexact(x)]
    return jnp.result_type(jnp.float32, *dtypes)


def is_inexact(x: Any) -> bool:
    """Says whether a leaf holds real or complex numbers."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


def cast_like(tree: Tree, reference: Tree) -> Tree:
    """Casts every leaf to the dtype of its counterpart."""
    return jax.tree.map(lambda x, r: x.astype(r.dtype), tree, reference)


def inner_product(x: Tree, y: Tree) -> jax.Array:
    r"""Returns :math:`\mathrm{Re}\,\langle x, y \rangle`, accumulated in float32 or wider."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(widened(a.dtype), widened(b.dtype))
        return jnp.sum(jnp.real(jnp.conj(a.astype(dtype)) * b.astype(dtype)))

    products = jax.tree.leaves(jax.tree.map(leaf, x, y))
    dtype = jnp.result_type(jnp.float32, *products) if products else jnp.float32
    return sum((product.astype(dtype) for product in products), jnp.zeros([], dtype))


def squared_norm(x: Tree) -> jax.Array:
    r"""Returns :math:`\|x\|^2` over all leaves, accumulated in float32 or wider."""
    return inner_product(x, x)


def unit(x: Tree) -> tuple[Tree, jax.Array]:
    r"""Returns :math:`x / \|x\|` in float32 or wider, and :math:`\|x\|`; zero for a zero tree."""
    norm = jnp.sqrt(squared_norm(x))
    # Dividing by one where the norm is zero keeps a zero gradient a zero, where 0/0 is NaN.
    safe = jnp.where(norm > 0, norm, 1)
    return scale(1 / safe, widen(x)), norm


def scale(factor: ArrayLike, tree: Tree) -> Tree:
    """Multiplies every leaf by a real scalar, in the leaf's own dtype."""
    return jax.tree.map(lambda x: jnp.asarray(factor).astype(jnp.finfo(x.dtype).dtype) * x, tree)


def add(x: Tree, y: Tree) -> Tree:
    """Adds two trees in the wider dtype of each pair of leaves."""
    return jax.tree.map(jnp.add, x, y)


def subtract(x: Tree, y: Tree) -> Tree:
    """Subtracts two trees in the wider dtype of each pair of leaves."""
    return jax.tree.map(jnp.subtract, x, y)


def all_finite(tree: Tree) -> jax.Array:
    """Says whether every entry of every leaf is finite."""
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.asarray(finite))


def mask_like(tree: Any, params: Any) -> Any:
    """Puts `optax.MaskedNode` where `params` has it, as `optax.masked` does to the updates alone.

    An extra argument such as `grad` arrives there with all its leaves.
    """

    def is_masked(x):
        return isinstance(x, optax.MaskedNode)

    try:
        return jax.tree.map(lambda p, x: p if is_masked(p) else x, params, tree, is_leaf=is_masked)
    except ValueError:
        # Trees that do not match are for `check_like` to report.
        return tree


def select(transform: str, tree: Tree, mask: Any = None) -> tuple[Tree, Callable[[Tree], Tree]]:
    """Splits off the leaves that a derivative is taken with respect to.

    Args:
      transform: the public name, for the error.
      tree: the parameters.
      mask: None (all leaves), a pytree prefix of booleans, or a function that makes one from `tree`.

    Returns:
      The tree with `None` in the place of every leaf that is masked out or is not a real or complex
      number, and a function that puts the leaves left out back into a tree of that kind.
    """
    mask = mask(tree) if callable(mask) else mask
    mask = True if mask is None else mask
    try:
        selected = jax.tree.map(
            lambda keep, branch: jax.tree.map(
                lambda x: x if keep and jnp.issubdtype(x.dtype, jnp.inexact) else None, branch
            ),
            mask,
            tree,
        )
    except ValueError as error:
        raise ValueError(
            f"{transform}: `mask` must be a pytree prefix of the parameters: {error}"
        ) from error

    def fill(replacement: Tree) -> Tree:
        pairs = zip(jax.tree.leaves(replacement), jax.tree.leaves(selected), strict=True)
        # A difference takes narrow parameters in float32: the ones held constant follow, so that the loss sees
        # one dtype.
        is_widened = any(new.dtype != old.dtype for new, old in pairs)
        return jax.tree.map(
            lambda new, old: old if new is None else new,
            replacement,
            widen(tree) if is_widened else tree,
            is_leaf=lambda x: x is None,
        )

    return selected, fill


def part_of(tree: Tree, selected: Tree) -> Tree:
    """Returns a tree with `None` where `selected`, a result of :func:`select`, has it."""
    return jax.tree.map(
        lambda s, x: None if s is None else x, selected, tree, is_leaf=lambda x: x is None
    )


def check_like(transform: str, params: Any, **trees: Any) -> None:
    """Raises a `ValueError` that names the leaf where a tree differs from the parameters.

    Structure, shape and dtype are static under `jax.jit`, so this costs nothing at run time.
    """
    for name, tree in trees.items():
        try:
            chex.assert_trees_all_equal_shapes_and_dtypes(params, tree)
        except AssertionError as error:
            raise ValueError(
                f"{transform}: `{name}` must agree with `params` in structure, shape and dtype; "
                f"{_first_difference(params, tree, _shape_and_dtype)}"
            ) from error


def check_state_like(transform: str, params: Any, **trees: Any) -> None:
    """Raises a `ValueError` that names the leaf where a part of the state differs from the parameters.

    In structure and shape alone: a state may be wider than its parameters.
    """
    for name, tree in trees.items():
        try:
            chex.assert_trees_all_equal_shapes(params, tree)
        except AssertionError as error:
            raise ValueError(
                f"{transform}: `{name}` of the state must agree with `params` in structure and shape; "
                f"{_first_difference(params, tree, _shape)}"
            ) from error


def _shape(x: Any) -> str:
    return f"of shape {list(jnp.shape(x))}"


def _shape_and_dtype(x: Any) -> str:
    return f"{jnp.asarray(x).dtype}{list(jnp.shape(x))}"


def _first_difference(params: Tree, tree: Tree, describe: Callable) -> str:
    expected, found = (
        {
            jax.tree_util.keystr(path): "None" if x is None else describe(x)
            for path, x in jax.tree_util.tree_leaves_with_path(t, is_leaf=lambda x: x is None)
        }
        for t in (params, tree)
    )
    for path in expected | found:
        if expected.get(path) != found.get(path):
            return (
                f"leaf {path or 'at the root'} is {found.get(path, 'missing')}, "
                f"expected {expected.get(path, 'no such leaf')}."
            )
    return f"got {jax.tree.structure(tree)}, expected {jax.tree.structure(params)}."
