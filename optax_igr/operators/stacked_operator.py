"""A weight as a stack of separate operators, such as the convolutions of scanned layers."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from optax_igr.operators.conv_operator import ConvOperator
from optax_igr.operators.conv_transpose_operator import ConvTransposeOperator
from optax_igr.operators.matrix_operator import Blocks, MatrixOperator, integers

Single = MatrixOperator | ConvOperator | ConvTransposeOperator


@dataclasses.dataclass(frozen=True)
class StackedOperator:
    """See :func:`stacked_operator`."""

    operator: Single
    axes: tuple[int, ...]

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """Says why a weight of this shape is no such operator, or None."""
        if not all(-len(shape) <= axis < len(shape) for axis in self.axes):
            return f"has no axes {self.axes}"
        if len(set(self._positions(shape))) < len(self.axes):
            return f"has one axis twice among {self.axes}"
        complaint = self.operator.complaint(self._inner(shape))
        return None if complaint is None else f"with the axes {self.axes} taken out {complaint}"

    def is_exact(self, shape: tuple[int, ...]) -> bool:
        """Says whether the blocks hold the singular values themselves, and not those of a larger operator."""
        return self.operator.is_exact(self._inner(shape))

    def contains_every_clip(self, shape: tuple[int, ...]) -> bool:
        """Says whether an operator with clipped singular values is again one of a weight of this shape."""
        return self.operator.contains_every_clip(self._inner(shape))

    def stack_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the axes that count separate operators."""
        stack = tuple(shape[axis] for axis in self.axes)
        return stack + self.operator.stack_shape(self._inner(shape))

    def domain_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of an input of one operator."""
        return self.operator.domain_shape(self._inner(shape))

    def apply(self, weight: jax.Array, x: jax.Array) -> jax.Array:
        """Applies every operator of the stack to its input, of shape `[*stack, *domain]`."""
        apply = self.operator.apply
        for _ in self.axes:
            apply = jax.vmap(apply)
        return apply(self._in_front(weight), x)

    def blocks(self, weight: jax.Array) -> Blocks:
        """Returns the blocks of every operator, of shape `[*stack, block, m, n]`."""
        of_one = []

        def matrices(weight):
            # Multiplicity and places are numbers, which a `vmap` would turn into arrays of the stack.
            of_one.append(self.operator.blocks(weight))
            return of_one[-1].matrices

        for _ in self.axes:
            matrices = jax.vmap(matrices)
        stacked = matrices(self._in_front(weight))
        return of_one[-1]._replace(matrices=stacked)

    def _positions(self, shape):
        return [axis % len(shape) for axis in self.axes]

    def _inner(self, shape):
        taken = self._positions(shape)
        return tuple(size for axis, size in enumerate(shape) if axis not in taken)

    def _in_front(self, weight):
        return jnp.moveaxis(weight, self.axes, range(len(self.axes)))


def stacked_operator(operator: Single, axes: int | Sequence[int] = 0) -> StackedOperator:
    """Describes a weight as a stack of separate operators, each with its own norm.

    Args:
      operator: what one of them is: :func:`optax_igr.operators.conv_operator`,
        :func:`optax_igr.operators.conv_transpose_operator` or :func:`optax_igr.operators.matrix_operator`.
      axes: the axes that count them, as those of `nn.scan` and `nn.vmap` in Flax.

    Returns:
      A frozen, hashable description, for the argument `operator` of :func:`optax_igr.add_schatten_decay` and others.

    Raises:
      ValueError: for axes that are no integers, or another operator.

    Examples:
      >>> import jax.numpy as jnp, optax_igr.operators
      >>> conv = optax_igr.conv_operator((8, 8), padding="CIRCULAR")
      >>> kernels = jnp.stack([jnp.ones([3, 3, 1, 1]), 2 * jnp.ones([3, 3, 1, 1])])
      >>> both = optax_igr.operators.stacked_operator(conv)
      >>> print(optax_igr.operators.spectral_norm(kernels, operator=both).round(3))
      [ 9. 18.]

    References:
      Sedghi, Gupta, Long, `The Singular Values of Convolutional Layers <https://arxiv.org/abs/1805.10408>`_, 2019
    """
    name = "stacked_operator"
    if not isinstance(operator, Single):
        raise ValueError(
            f"{name}: `operator` must be one of matrix_operator(), conv_operator() and conv_transpose_operator(), got "
            f"{operator!r}."
        )
    return StackedOperator(operator, integers(name, "axes", axes, at_least=None))
