"""Pytrees as vectors: inner products in float32 or wider, masks, casts and checks.

An inner product is `sum(x * y)` leaf by leaf, never a ravel: a sharded leaf stays sharded.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optax_igr._core import paths

# A tree of arrays. `chex.ArrayTree` is a union of which a type checker cannot tell leaves from branches.
Tree = Any


def widened(dtype: Any) -> Any:
    """Returns float32 for a narrower floating dtype, and the dtype itself otherwise."""
    dtype = jnp.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        return jnp.dtype(jnp.float32)
    return dtype


def widest(*dtypes: Any) -> Any:
    """Returns the narrowest dtype that holds all of these.

    Also where JAX is told to promote nothing by itself (`jax_numpy_dtype_promotion=strict`): this library chooses the
    dtypes of its own accumulations, and that setting is about what a program promotes without choosing.
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def widen(tree: Tree) -> Tree:
    """Casts bfloat16 and float16 leaves to float32 and leaves the others alone."""
    return jax.tree.map(lambda x: jnp.asarray(x, widened(jnp.asarray(x).dtype)), tree)


def is_narrow(tree: Tree) -> bool:
    """Says whether any leaf has fewer bits than float32."""
    return any(widened(x.dtype) != x.dtype for x in jax.tree.leaves(tree))


def scalar_dtype(tree: Tree) -> Any:
    """Returns the real dtype of an inner product over the tree: float32, or the widest of its leaves."""
    dtypes = [jnp.finfo(x.dtype).dtype for x in jax.tree.leaves(tree) if is_inexact(x)]
    return widest(jnp.float32, *dtypes)


def is_inexact(x: Any) -> bool:
    """Says whether a leaf holds real or complex numbers."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def as_array(x: Any) -> Any:
    """Returns a NumPy array or a Python number as a JAX array, and any array without its weak type.

    What is no number (an abstract array, a random key, a function in a module's tree) stays as it is.
    """
    if isinstance(x, jax.Array):
        # A random key has no weak type.
        is_weak = getattr(x, "weak_type", False)
        return jax.lax.convert_element_type(x, x.dtype) if is_weak else x
    if isinstance(x, bool | int | float | complex):
        return jnp.asarray(x, jnp.asarray(x).dtype)
    if isinstance(x, np.ndarray | np.generic) and (
        jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool
    ):
        return jnp.asarray(x)
    return x


def as_arrays(tree: Tree) -> Tree:
    """Applies :func:`as_array` to every leaf, so that Optax's NumPy trees and restored states are accepted."""
    return jax.tree.map(as_array, tree)


def cast_like(tree: Tree, reference: Tree) -> Tree:
    """Casts every leaf to the dtype of its counterpart."""
    return jax.tree.map(lambda x, r: x.astype(r.dtype), tree, reference)


def inner_product(x: Tree, y: Tree) -> jax.Array:
    r"""Returns :math:`\mathrm{Re}\,\langle x, y \rangle`, accumulated in float32 or wider."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        dtype = widest(widened(a.dtype), widened(b.dtype))
        return jnp.sum(jnp.real(jnp.conj(a.astype(dtype)) * b.astype(dtype)))

    products = jax.tree.leaves(jax.tree.map(leaf, x, y))
    dtype = widest(jnp.float32, *(product.dtype for product in products))
    return sum((product.astype(dtype) for product in products), jnp.zeros([], dtype))


def squared_norm(x: Tree) -> jax.Array:
    r"""Returns :math:`\|x\|^2` over all leaves, accumulated in float32 or wider."""
    return inner_product(x, x)


def norm(x: Tree) -> jax.Array:
    r"""Returns :math:`\|x\|` over all leaves, accumulated in float32 or wider; its derivative at zero is zero."""
    squared = squared_norm(x)
    # The root has an infinite derivative at zero, and 0 times that is NaN in every outer derivative.
    is_zero = squared == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squared)))


def unit(x: Tree) -> tuple[Tree, jax.Array]:
    r"""Returns :math:`x / \|x\|` in float32 or wider, and :math:`\|x\|`; zero for a zero tree."""
    length = norm(x)
    # Dividing by one where the norm is zero keeps a zero gradient a zero, where 0/0 is NaN.
    safe = jnp.where(length == 0, 1, length)
    return scale(1 / safe, widen(x)), length


def scale(factor: ArrayLike, tree: Tree) -> Tree:
    """Multiplies every leaf by a real scalar, in the leaf's own dtype."""
    return jax.tree.map(lambda x: jnp.asarray(factor).astype(jnp.finfo(x.dtype).dtype) * x, tree)


def add(x: Tree, y: Tree) -> Tree:
    """Adds two trees in the wider dtype of each pair of leaves."""
    return jax.tree.map(functools.partial(_in_wider_dtype, jnp.add), x, y)


def subtract(x: Tree, y: Tree) -> Tree:
    """Subtracts two trees in the wider dtype of each pair of leaves."""
    return jax.tree.map(functools.partial(_in_wider_dtype, jnp.subtract), x, y)


def _in_wider_dtype(operation, x, y):
    dtype = widest(x.dtype, y.dtype)
    return operation(x.astype(dtype), y.astype(dtype))


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
    # A mask is made from values and is one of values, whether or not the parameters come in boxes.
    mask = paths.unboxed(mask(paths.unboxed(tree)) if paths.is_function(mask) else mask)
    mask = True if mask is None else mask
    try:
        selected = jax.tree.map(
            lambda keep, branch: jax.tree.map(
                lambda x: x if keep and is_inexact(x) else None, branch
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


def narrowed_like(tree: Tree, reference: Tree) -> Tree:
    """Gives every leaf that is wider than its counterpart the dtype of that, for :func:`check_like`."""

    def dtype(x, r):
        return r.dtype if widest(x.dtype, r.dtype) == x.dtype else x.dtype

    if jax.tree.structure(tree) != jax.tree.structure(reference):
        return tree
    return jax.tree.map(lambda x, r: jax.ShapeDtypeStruct(x.shape, dtype(x, r)), tree, reference)


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
    x = x if hasattr(x, "dtype") else jnp.asarray(x)
    return f"{x.dtype}{list(x.shape)}"


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
