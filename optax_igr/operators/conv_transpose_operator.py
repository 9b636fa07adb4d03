r"""A weight as the kernel of a transposed convolution, which is the adjoint of a convolution.

.. math:: \langle T_K x, y \rangle = \langle x, C_{\bar K} y \rangle

with :math:`C_{\bar K}` the strided convolution of the outputs by the kernel turned round: flipped in space, with input
and output features exchanged. An operator and its adjoint have the same singular values.

References:
  Dumoulin, Visin, `A guide to convolution arithmetic for deep learning <https://arxiv.org/abs/1603.07285>`_, 2016,
  chapter 4
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from optax_igr._core import hyperparameters
from optax_igr.operators.conv_operator import PADDINGS, ConvOperator, conv_operator
from optax_igr.operators.matrix_operator import Blocks, integers


@dataclasses.dataclass(frozen=True)
class ConvTransposeOperator:
    """See :func:`conv_transpose_operator`."""

    input_shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    kernel_dilation: tuple[int, ...]
    transpose_kernel: bool

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """Says why a weight of this shape is no such operator, or None."""
        if len(shape) != len(self.input_shape) + 2:
            return (
                f"is no kernel of {len(self.input_shape)} spatial axes, input and output features"
            )
        if min(self._adjoint(shape).input_shape) < 1:
            return f"has no output for an input of shape {self.input_shape}"
        return self._adjoint(shape).complaint(self._turned_shape(shape))

    def is_exact(self, shape: tuple[int, ...]) -> bool:
        """Says whether the blocks hold the singular values themselves, and not those of a larger operator."""
        return self._adjoint(shape).is_exact(self._turned_shape(shape))

    def contains_every_clip(self, shape: tuple[int, ...]) -> bool:
        """Says whether an operator with clipped singular values is again one of a weight of this shape."""
        return self._adjoint(shape).contains_every_clip(self._turned_shape(shape))

    def stack_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the axes that count separate operators: a kernel is one."""
        del shape
        return ()

    def domain_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of an input: spatial axes and features."""
        return (*self.input_shape, self._turned_shape(shape)[-1])

    def apply(self, weight: jax.Array, x: jax.Array) -> jax.Array:
        """Applies the adjoint of the convolution to an input of shape `[*spatial, features]`."""
        convolution, kernel = self._adjoint(weight.shape), self._turned(weight)
        domain = jax.ShapeDtypeStruct(convolution.domain_shape(kernel.shape), x.dtype)
        transpose = jax.linear_transpose(lambda y: convolution.apply(kernel, y), domain)
        return transpose(x)[0]

    def blocks(self, weight: jax.Array) -> Blocks:
        """Returns the blocks of the convolution whose adjoint this is, which have the same singular values."""
        return self._adjoint(weight.shape).blocks(self._turned(weight))

    def _turned(self, weight):
        if self.transpose_kernel:
            return weight
        return jnp.swapaxes(jnp.flip(weight, tuple(range(weight.ndim - 2))), -1, -2)

    def _turned_shape(self, shape):
        return shape if self.transpose_kernel else (*shape[:-2], shape[-1], shape[-2])

    def _adjoint(self, shape) -> ConvOperator:
        """Returns the convolution of the outputs by the turned kernel."""
        options = {"strides": self.strides, "kernel_dilation": self.kernel_dilation}
        if self.padding == "CIRCULAR":
            sizes = [n * s for n, s in zip(self.input_shape, self.strides, strict=True)]
            return ConvOperator(tuple(sizes), padding="CIRCULAR", feature_group_count=1, **options)
        sizes, pads = [], []
        axes = zip(self.input_shape, self.strides, self._pads(shape), strict=True)
        for (n, s, around), k in zip(axes, self._extents(shape), strict=True):
            # Outputs beyond the reach of the kernel are zero, and count for no norm: a negative padding is left out.
            pads.append(tuple(max(k - 1 - pad, 0) for pad in around))
            sizes.append((n - 1) * s + k - sum(pads[-1]))
        return ConvOperator(tuple(sizes), padding=tuple(pads), feature_group_count=1, **options)

    def _extents(self, shape):
        return [(k - 1) * d + 1 for k, d in zip(shape, self.kernel_dilation, strict=False)]

    def _pads(self, shape):
        """The padding of the dilated input, by the rule of `jax.lax.conv_transpose`."""
        if not isinstance(self.padding, str):
            return self.padding
        pads = []
        for k, s in zip(self._extents(shape), self.strides, strict=True):
            total = k + s - 2 + (max(k - s, 0) if self.padding == "VALID" else 0)
            before = k - 1 if self.padding == "VALID" or s > k - 1 else -(-total // 2)
            pads.append((before, total - before))
        return pads


def conv_transpose_operator(
    input_shape: int | Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    transpose_kernel: bool = False,
) -> ConvTransposeOperator:
    """Describes a weight as the kernel of a transposed convolution, as `ConvTranspose` of Flax applies it.

    With circular padding, norms are exact. Otherwise some are upper bounds, as in
    :func:`optax_igr.operators.conv_operator`.

    Args:
      input_shape: the spatial shape of the input, without batch and features.
      strides: one for all spatial axes, or one for each; so is `kernel_dilation`.
      padding: `SAME` and `VALID` as in `jax.lax.conv_transpose`, `CIRCULAR` as in Flax, or zeros before and after each
        spatial axis of the dilated input.
      kernel_dilation: the distance of the taps.
      transpose_kernel: whether the kernel is that of the convolution whose gradient this is, with the axes `[*spatial,
        outputs, inputs]`, and not `[*spatial, inputs, outputs]`.

    Returns:
      A frozen, hashable description, for the argument `operator` of :func:`optax_igr.add_schatten_decay` and others.

    Raises:
      ValueError: for an argument out of range.

    Examples:
      Without overlap of the taps, each input is stretched by the norm of the kernel:

      >>> import jax.numpy as jnp, optax_igr.operators
      >>> upsampling = optax_igr.operators.conv_transpose_operator((4, 4), strides=2)
      >>> print(optax_igr.operators.spectral_norm(jnp.ones([2, 2, 1, 1]), operator=upsampling).round(3))
      2.0

    References:
      Dumoulin, Visin, `A guide to convolution arithmetic for deep learning <https://arxiv.org/abs/1603.07285>`_, 2016
    """
    name = "conv_transpose_operator"
    shape = integers(name, "input_shape", input_shape, at_least=1)
    per_axis = functools.partial(integers, name, at_least=1, length=len(shape))
    if isinstance(padding, str):
        hyperparameters.check_choice(name, "padding", padding, PADDINGS)
    else:
        padding = conv_operator(shape, padding=padding).padding
    if not isinstance(transpose_kernel, bool | np.bool_):
        raise ValueError(f"{name}: `transpose_kernel` must be a boolean, got {transpose_kernel!r}.")
    return ConvTransposeOperator(
        shape,
        per_axis("strides", strides),
        padding,
        per_axis("kernel_dilation", kernel_dilation),
        bool(transpose_kernel),
    )
