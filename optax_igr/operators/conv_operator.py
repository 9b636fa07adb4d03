r"""A weight as the kernel of a convolution.

Circular padding makes the convolution block-diagonal in the Fourier basis, one block
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
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from optax_igr._core import hyperparameters
from optax_igr.operators.matrix_operator import Blocks, integers

PADDINGS = ("SAME", "VALID", "CIRCULAR")


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
        dtype = np.result_type(weight.dtype, np.complex64)
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
    shape = integers(name, "input_shape", input_shape, at_least=1)
    per_axis = functools.partial(integers, name, at_least=1, length=len(shape))
    hyperparameters.check_positive_integer(name, "feature_group_count", feature_group_count)
    if isinstance(padding, str):
        hyperparameters.check_choice(name, "padding", padding, PADDINGS)
    else:
        pairs = [integers(name, "padding", pair, at_least=0, length=2) for pair in padding]
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
