"""Paths of leaves, and the boxes around them that are no step of a path.

NNX keeps a parameter in a variable, and Linen may keep one in a box with the names of its axes. A program hands boxes
to `init` and their values to `update`. A rule on paths, a mask or a state must come out the same for both.
"""

from collections.abc import Callable
from typing import Any

import jax

Path = tuple[Any, ...]


def is_box(x: Any) -> bool:
    """Says whether a node only holds a value and metadata: a variable of NNX, or a box of Linen.

    They are known by their methods, since this package does not need Flax.
    """
    return all(hasattr(x, name) for name in ("get_value", "get_metadata")) or all(
        hasattr(x, name) for name in ("unbox", "replace_boxed")
    )


def unboxed(tree: Any) -> Any:
    """Puts its value in the place of every box, however many there are around it."""

    def value(x):
        if not is_box(x):
            return x
        return unboxed(jax.tree.leaves(x, is_leaf=lambda child: child is not x)[0])

    return jax.tree.map(value, tree, is_leaf=is_box)


def leaves_with_path(tree: Any) -> list[tuple[Path, Any]]:
    """Returns the leaves with their paths, in which a box is no step.

    NNX hands variables to `init` and their values to `update`. A rule on paths must see the same in both.
    """
    return jax.tree_util.tree_leaves_with_path(unboxed(tree))


def map_with_path(function: Callable, tree: Any, *rest: Any) -> Any:
    """Maps `function(path, leaf, *others)` over a tree, with the paths of :func:`leaves_with_path`."""
    leaves, structure = jax.tree.flatten(tree)
    others = [structure.flatten_up_to(other) for other in rest]
    paths = [path for path, _ in leaves_with_path(tree)]
    return structure.unflatten(
        [function(*arguments) for arguments in zip(paths, leaves, *others, strict=True)]
    )


def is_function(x: Any) -> bool:
    """Says whether an argument that may be a tree or a function of one is the function.

    A module of Equinox is both: a tree that can be called. It counts as the tree that it is.
    """
    return callable(x) and jax.tree_util.treedef_is_leaf(jax.tree.structure(x))


def spell(path: Path) -> str:
    """Writes a path for an error message or a table: `layers/0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "at the root"
