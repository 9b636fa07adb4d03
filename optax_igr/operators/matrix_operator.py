"""A weight as a matrix, or as a stack of separate matrices."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Blocks(NamedTuple):
    """Matrices of shape `[*stack, block, m, n]`, how often each occurs, and at how many places the weight does."""

    matrices: jax.Array
    multiplicity: np.ndarray
    num_places: int


@dataclasses.dataclass(frozen=True)
class MatrixOperator:
    """See :func:`matrix_operator`."""

    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """Says why a weight of this shape is no such operator, or None."""
        axes = self.in_axes + self.out_axes
        if not all(-len(shape) <= axis < len(shape) for axis in axes):
            return f"has no axes {self.in_axes} and {self.out_axes}"
        if len({axis % len(shape) for axis in axes}) < len(axes):
            return f"has one axis twice among {self.in_axes} and {self.out_axes}"
        return None

    def is_exact(self, shape: tuple[int, ...]) -> bool:
        """Says whether the blocks hold the singular values themselves, and not those of a larger operator."""
        del shape
        return True

    def contains_every_clip(self, shape: tuple[int, ...]) -> bool:
        """Says whether an operator with clipped singular values is again one of a weight of this shape."""
        del shape
        return True

    def stack_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the axes that count separate operators."""
        used = {axis % len(shape) for axis in self.in_axes + self.out_axes}
        return tuple(size for axis, size in enumerate(shape) if axis not in used)

    def domain_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of an input of one operator."""
        return (math.prod(shape[axis] for axis in self.in_axes),)

    def apply(self, weight: jax.Array, x: jax.Array) -> jax.Array:
        """Applies every operator of the stack to its input, of shape `[*stack, *domain]`."""
        return jnp.einsum("...i,...io->...o", x, self._matrices(weight))

    def blocks(self, weight: jax.Array) -> Blocks:
        """Returns the weight as matrices of shape `[*stack, 1, in, out]`."""
        return Blocks(jnp.expand_dims(self._matrices(weight), -3), np.ones(1), 1)

    def _matrices(self, weight):
        sources = tuple(axis % weight.ndim for axis in self.in_axes + self.out_axes)
        if sources == (weight.ndim - 2, weight.ndim - 1):
            return weight
        moved = jnp.moveaxis(weight, sources, range(-len(sources), 0))
        stack = moved.shape[: weight.ndim - len(sources)]
        rows, columns = (
            math.prod(weight.shape[axis] for axis in axes) for axes in (self.in_axes, self.out_axes)
        )
        return jnp.reshape(moved, (*stack, rows, columns))


def matrix_operator(
    in_axes: int | Sequence[int] = -2, out_axes: int | Sequence[int] = -1
) -> MatrixOperator:
    """Describes a weight as a matrix, or as a stack of separate matrices.

    Args:
      in_axes: the axes that are summed over with the input; `()` where there are none.
      out_axes: the axes of the output; `()` where there are none. Every axis in neither counts separate matrices, each
        with its own norm.

    Returns:
      A frozen, hashable description, for the argument `operator` of :func:`optax_igr.add_schatten_decay` and others.

    Raises:
      ValueError: for axes that are no integers.

    Examples:
      The kernel of attention, of shape `[features, heads, head_size]`, as one matrix or as one for each head:

      >>> import jax.numpy as jnp, optax_igr.diagnostics
      >>> kernel = jnp.ones([4, 2, 8])
      >>> whole = optax_igr.matrix_operator(in_axes=0, out_axes=(1, 2))
      >>> print(f"{optax_igr.diagnostics.spectral_norm(kernel, operator=whole):.3f}")
      8.000
      >>> per_head = optax_igr.matrix_operator(in_axes=0, out_axes=2)
      >>> print(optax_igr.diagnostics.spectral_norm(kernel, operator=per_head).round(3))
      [5.657 5.657]

    References:
      Vaswani et al, `Attention Is All You Need <https://arxiv.org/abs/1706.03762>`_, 2017
    """
    in_axes, out_axes = (
        () if np.size(axes) == 0 else integers("matrix_operator", name, axes, at_least=None)
        for name, axes in (("in_axes", in_axes), ("out_axes", out_axes))
    )
    if not in_axes + out_axes:
        raise ValueError("matrix_operator: `in_axes` and `out_axes` must not both be empty.")
    return MatrixOperator(in_axes, out_axes)


def integers(
    transform: str, name: str, values: Any, *, at_least: int | None, length: int | None = None
) -> tuple[int, ...]:
    """Returns integers as a tuple, one of them repeated where a length is asked for, or raises an error."""
    is_scalar = np.ndim(values) == 0
    found = (values,) * (length or 1) if is_scalar else tuple(values)
    in_range = all(
        isinstance(v, int | np.integer) and (at_least is None or v >= at_least) for v in found
    )
    if not in_range or not found or (length is not None and len(found) != length):
        expected = "integers" if at_least is None else f"integers >= {at_least}"
        count = "" if length is None else f"{length} "
        raise ValueError(f"{transform}: `{name}` must be {count}{expected}, got {values!r}.")
    return tuple(int(v) for v in found)
