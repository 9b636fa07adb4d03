r"""A weight as the linear operator by which a layer acts on its input.

The norm that bounds a layer is that of its operator, not that of its array of weights: a convolution with a
:math:`3 \times 3` kernel of ones has the norm 9, while the kernel flattened to a matrix has the norm 3.

An operator is described by *blocks*, matrices whose singular values together are those of the operator. For a
matrix there is one. A convolution with circular padding is block-diagonal in the Fourier basis, one block
:math:`\hat K(\omega) = \sum_\tau K_\tau e^{-2\pi i \langle \omega, \tau \rangle}` for each frequency; a stride s
joins the s frequencies that fall on one another into one wider block, divided by :math:`\sqrt s`, and groups are
further blocks. Zero padding breaks the symmetry. But a zero-padded convolution keeps some of the rows and columns
of the circular one on a grid that is larger by the padding, so the blocks of that one bound it, in every Schatten
norm.

References:
  Sedghi, Gupta, Long, `The Singular Values of Convolutional Layers <https://arxiv.org/abs/1805.10408>`_, 2019
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_igr._core import hyperparameters, trees

PADDINGS = ("SAME", "VALID", "CIRCULAR")


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


@dataclasses.dataclass(frozen=True)
class ConvOperator:
    """See :func:`conv_operator`."""

    input_shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    kernel_dilation: tuple[int, ...]
    feature_group_count: int

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """Says why a weight of this shape is no such operator, or None."""
        if len(shape) != len(self.input_shape) + 2:
            return (
                f"is no kernel of {len(self.input_shape)} spatial axes, input and output features"
            )
        if shape[-1] % self.feature_group_count:
            return f"has output features that {self.feature_group_count} groups do not divide"
        if self.padding != "CIRCULAR" and min(self._outputs(shape)) < 1:
            return f"is larger than the padded input of shape {self.input_shape}"
        return None

    def is_exact(self, shape: tuple[int, ...]) -> bool:
        """Says whether the blocks hold the singular values themselves, and not those of a larger operator."""
        del shape
        return self.padding == "CIRCULAR" and not any(
            n % s for n, s in zip(self.input_shape, self.strides, strict=True)
        )

    def contains_every_clip(self, shape: tuple[int, ...]) -> bool:
        """Says whether an operator with clipped singular values is again one of a weight of this shape."""
        has_steps = set(self.strides) | set(self.kernel_dilation) != {1}
        return self.padding == "CIRCULAR" and not has_steps and shape[:-2] == self.input_shape

    def stack_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the axes that count separate operators: a kernel is one."""
        del shape
        return ()

    def domain_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of an input: spatial axes and features."""
        return (*self.input_shape, shape[-2] * self.feature_group_count)

    def apply(self, weight: jax.Array, x: jax.Array) -> jax.Array:
        """Convolves an input of shape `[*spatial, features]`."""
        padding = self.padding
        if padding == "CIRCULAR":
            extents = self._extents(weight.shape)
            x = jnp.pad(x, [*(((k - 1) // 2, k // 2) for k in extents), (0, 0)], mode="wrap")
            padding = "VALID"
        letters = "XYZUVW"[: len(self.input_shape)]
        convolved = jax.lax.conv_general_dilated(
            x[None],
            weight,
            self.strides,
            padding,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            feature_group_count=self.feature_group_count,
        )
        return convolved[0]

    def blocks(self, weight: jax.Array) -> Blocks:
        """Returns the Fourier transform of the kernel on the grid, strides and groups as blocks."""
        groups, num_axes = self.feature_group_count, len(self.input_shape)
        is_real = not jnp.iscomplexobj(weight)
        dtype = jnp.result_type(weight.dtype, jnp.complex64)
        grid, strides = self._grid(weight.shape)
        transformed = jnp.reshape(weight, (*weight.shape[:-1], groups, -1)).astype(dtype)
        multiplicity = np.ones(())
        for axis, (n, stride) in enumerate(zip(grid, strides, strict=True)):
            # The blocks at ω and -ω of a real kernel are conjugates: one of them stands for both.
            halve = is_real and axis == num_axes - 1
            size = n // stride
            aliased = np.arange(size // 2 + 1 if halve else size)
            occurs = np.where(halve & (aliased > 0) & (2 * aliased < size), 2.0, 1.0)
            multiplicity = np.multiply.outer(multiplicity, occurs)
            frequencies = aliased[:, None] + size * np.arange(stride)
            taps = self.kernel_dilation[axis] * np.arange(weight.shape[axis])
            wave = np.exp(-2j * np.pi * (frequencies[..., None] * taps % n) / n) / math.sqrt(stride)
            # Taken from the front, put at the end: after all axes their order is restored.
            transformed = jnp.tensordot(transformed, jnp.asarray(wave, dtype), ((0,), (2,)))
        # [input, group, output, ω₁, alias₁, ω₂, alias₂, ...] to [ω..., group, alias..., input, output]
        omegas, aliases = range(3, 3 + 2 * num_axes, 2), range(4, 4 + 2 * num_axes, 2)
        ordered = jnp.transpose(transformed, (*omegas, 1, *aliases, 0, 2))
        columns = weight.shape[-1] // groups
        rows = math.prod(strides) * weight.shape[-2]
        matrices = jnp.reshape(ordered, (-1, rows, columns))
        num_places = math.prod(grid) // math.prod(strides)
        return Blocks(matrices, np.repeat(multiplicity.ravel(), groups), num_places)

    def _extents(self, shape):
        return tuple((k - 1) * d + 1 for k, d in zip(shape, self.kernel_dilation, strict=False))

    def _pads(self, shape):
        if isinstance(self.padding, tuple):
            return self.padding
        extents = self._extents(shape)
        if self.padding == "VALID":
            return ((0, 0),) * len(extents)
        # The rule of TensorFlow, which JAX follows: ⌈n/s⌉ outputs, the odd element after.
        totals = (
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, s, k in zip(self.input_shape, self.strides, extents, strict=True)
        )
        return tuple((total // 2, total - total // 2) for total in totals)

    def _outputs(self, shape):
        return tuple(
            (n + sum(pads) - k) // s + 1
            for n, pads, k, s in zip(
                self.input_shape, self._pads(shape), self._extents(shape), self.strides, strict=True
            )
        )

    def _grid(self, shape):
        """The circular grid whose convolution is this one, or contains it, and its strides."""
        if self.padding == "CIRCULAR":
            # A stride that does not divide the grid keeps some rows of the convolution without it.
            pairs = zip(self.input_shape, self.strides, strict=True)
            return self.input_shape, tuple(1 if n % s else s for n, s in pairs)
        # Large enough that nothing wraps round onto an input, and every output has a row of its own.
        needed = (
            max(n + max(pads), (outputs - 1) * s + 1)
            for n, pads, outputs, s in zip(
                self.input_shape, self._pads(shape), self._outputs(shape), self.strides, strict=True
            )
        )
        return tuple(
            -(-n // s) * s for n, s in zip(needed, self.strides, strict=True)
        ), self.strides


Operator = MatrixOperator | ConvOperator


def matrix_operator(
    in_axes: int | Sequence[int] = -2, out_axes: int | Sequence[int] = -1
) -> MatrixOperator:
    """Describes a weight as a matrix, or as a stack of separate matrices.

    Args:
      in_axes: the axes that are summed over with the input.
      out_axes: the axes of the output. Every axis in neither counts separate matrices, each with its own norm.

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
        _integers("matrix_operator", name, axes, at_least=None)
        for name, axes in (("in_axes", in_axes), ("out_axes", out_axes))
    )
    return MatrixOperator(in_axes, out_axes)


def conv_operator(
    input_shape: int | Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
) -> ConvOperator:
    """Describes a weight as the kernel of a convolution, with its axes in the order of Flax (HWIO).

    With circular padding, and strides that divide the grid, norms are exact. Otherwise
    :func:`optax_igr.add_spectral_decay` and :func:`optax_igr.diagnostics.spectral_norm` iterate with the
    convolution itself, and :func:`optax_igr.add_schatten_decay` and :func:`optax_igr.diagnostics.lipschitz_bounds`
    take the norm of the circular convolution that contains it, which is an upper bound.

    Args:
      input_shape: the spatial shape of the input, `(height, width)` for images, without batch and features.
      strides: one for all spatial axes, or one for each; so is `kernel_dilation`.
      padding: `SAME` and `VALID` as in `jax.lax`, `CIRCULAR` as in Flax, or zeros before and after each spatial axis.
      kernel_dilation: the distance of the taps.
      feature_group_count: the number of groups; the kernel's input features are those of one group.

    Returns:
      A frozen, hashable description, for the argument `operator` of :func:`optax_igr.add_schatten_decay` and others.

    Raises:
      ValueError: for an argument out of range.

    Examples:
      >>> import jax.numpy as jnp, optax_igr.diagnostics
      >>> laplacian = jnp.array([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[:, :, None, None]
      >>> for padding in ("CIRCULAR", "SAME"):
      ...     operator = optax_igr.conv_operator((8, 8), padding=padding)
      ...     print(f"{optax_igr.diagnostics.spectral_norm(laplacian, operator=operator):.4f}")
      8.0000
      7.7588

    References:
      Sedghi, Gupta, Long, `The Singular Values of Convolutional Layers <https://arxiv.org/abs/1805.10408>`_, 2019
    """
    name = "conv_operator"
    shape = _integers(name, "input_shape", input_shape, at_least=1)
    per_axis = functools.partial(_integers, name, at_least=1, length=len(shape))
    hyperparameters.check_positive_integer(name, "feature_group_count", feature_group_count)
    if isinstance(padding, str):
        hyperparameters.check_choice(name, "padding", padding, PADDINGS)
    else:
        pairs = [_integers(name, "padding", pair, at_least=0, length=2) for pair in padding]
        padding = tuple((before, after) for before, after in pairs)
        if len(padding) != len(shape):
            raise ValueError(
                f"{name}: `padding` must be one of {', '.join(map(repr, PADDINGS))} or "
                f"{len(shape)} pairs, got {padding!r}."
            )
    return ConvOperator(
        shape,
        per_axis("strides", strides),
        padding,
        per_axis("kernel_dilation", kernel_dilation),
        int(feature_group_count),
    )


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
    selected, _ = trees.select(transform, tree, mask)
    leaves, structure = jax.tree_util.tree_flatten_with_path(selected)
    if not leaves:
        return selected
    choices = (
        [operator] * len(leaves) if operator is None else _broadcast(transform, operator, selected)
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
            f"{name}: `operator` must be one of optax_igr.matrix_operator() and "
            f"optax_igr.conv_operator(), got {choice!r}."
        )
    complaint = choice.complaint(leaf.shape)
    if complaint is not None:
        raise ValueError(f"{name} {complaint}, as {choice} expects.")
    return choice


def _integers(transform, name, values, *, at_least, length=None):
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
