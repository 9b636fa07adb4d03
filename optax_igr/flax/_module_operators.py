"""What the kernel of a Flax module is as an operator: the same rules for NNX and Linen, whose fields have one name."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax

import optax_igr
from optax_igr import operators


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A parameter that is no operator known here, and why."""

    reason: str


def by_axes(name: str, num_axes: int) -> Any:
    """Returns what a parameter of an unknown module is: one of two axes counts as a matrix."""
    if num_axes < 2 or name in ("bias", "scale"):
        return None
    if num_axes == 2:
        return optax_igr.matrix_operator()
    return Unknown("its module is not known")


def general(module: Any) -> Any:
    """`LinearGeneral` and `DenseGeneral`: the first axes are batches, each with a matrix of its own."""
    # NNX turns the features into tuples; in Linen the axes of the input count them.
    num_inputs = len(as_tuple(module.axis))
    num_outputs = len(as_tuple(getattr(module, "out_features", getattr(module, "features", None))))
    num_axes = num_inputs + num_outputs
    return optax_igr.matrix_operator(
        tuple(range(-num_axes, -num_outputs)), tuple(range(-num_outputs, 0))
    )


def einsum(equation: str) -> Any:
    """Returns the operator of the second operand of an equation `inputs,kernel->outputs`.

    An axis of the kernel that meets the input and is summed over is an input of the matrix; one that meets the output
    alone is an output. One that meets both counts separate matrices.
    """
    operands, _, outputs = equation.replace(" ", "").partition("->")
    inputs, _, kernel = operands.partition(",")
    has_batch = "..." in inputs, "..." in outputs
    inputs, outputs = inputs.replace("...", ""), outputs.replace("...", "")
    is_repeated = any(len(set(axes)) < len(axes) for axes in (inputs, kernel, outputs))
    summed = set(inputs) - set(kernel) - set(outputs) | set(kernel) - set(inputs) - set(outputs)
    if is_repeated or summed or "..." in kernel or has_batch[0] != has_batch[1]:
        return Unknown(f"the equation {equation!r} is no plain product with its kernel")
    places = range(-len(kernel), 0)
    in_axes = [i for i, c in zip(places, kernel, strict=True) if c not in outputs]
    out_axes = [i for i, c in zip(places, kernel, strict=True) if c not in inputs]
    if not in_axes and not out_axes:
        # Every entry scales an entry of the input, as a normalization does.
        return None
    return optax_igr.matrix_operator(tuple(in_axes), tuple(out_axes))


def conv(path: Any, module: Any, input_shape: Sequence[int]) -> Any:
    """`Conv`, for an input of this spatial shape."""
    num_axes = len(input_shape)
    padding = module.padding
    if padding == "CAUSAL":
        extent = (as_tuple(module.kernel_size)[0] - 1) * per_axis(module.kernel_dilation, 1)[0]
        padding = ((extent, 0),)
    is_dilated = set(per_axis(module.input_dilation, num_axes)) != {1}
    if is_dilated or module.mask is not None or padding == "REFLECT":
        raise ValueError(
            f"operators: the convolution at {path} has an input dilation, a mask or reflecting padding, for which "
            f"there is no operator."
        )
    return optax_igr.conv_operator(
        input_shape,
        strides=per_axis(module.strides, num_axes),
        padding=_pairs(padding, num_axes),
        kernel_dilation=per_axis(module.kernel_dilation, num_axes),
        feature_group_count=module.feature_group_count,
    )


def conv_transpose(path: Any, module: Any, input_shape: Sequence[int]) -> Any:
    """`ConvTranspose`, for an input of this spatial shape."""
    if module.mask is not None:
        raise ValueError(
            f"operators: the convolution at {path} has a mask, for which there is no operator."
        )
    num_axes = len(input_shape)
    return operators.conv_transpose_operator(
        input_shape,
        strides=per_axis(module.strides, num_axes),
        padding=_pairs(module.padding, num_axes),
        kernel_dilation=per_axis(module.kernel_dilation, num_axes),
        transpose_kernel=module.transpose_kernel,
    )


def stacked(operator: Any, num_axes: int, positions: Sequence[int]) -> Any:
    """Returns the operator of a stack of kernels.

    Args:
      operator: of one kernel; None and :class:`Unknown` stay as they are.
      num_axes: of the stack of kernels.
      positions: its axes that count the kernels.
    """
    if not positions or operator is None or isinstance(operator, Unknown):
        return operator
    if not isinstance(operator, operators.MatrixOperator):
        return operators.stacked_operator(operator, tuple(positions))
    kept = [axis for axis in range(num_axes) if axis not in positions]
    in_axes, out_axes = (
        tuple(kept[axis] - num_axes for axis in axes)
        for axes in (operator.in_axes, operator.out_axes)
    )
    return optax_igr.matrix_operator(in_axes, out_axes)


def stack_positions(shape: Sequence[int], inner: Sequence[int]) -> tuple[int, ...] | None:
    """Returns which axes a stack has more than one of its members, and None where it is no such stack.

    The leading ones where they may be, since `nnx.vmap` and `nnx.scan` put them there by default.
    """
    num_more = len(shape) - len(inner)
    if num_more < 0:
        return None
    for positions in itertools.combinations(range(len(shape)), num_more):
        if tuple(n for axis, n in enumerate(shape) if axis not in positions) == tuple(inner):
            return positions
    return None


class InputShapes:
    """The spatial shape of the input of every convolution, as an abstract evaluation shows it."""

    def __init__(self):
        self._shapes: dict[Any, tuple[int, ...]] = {}

    def record(self, path: Any, shape: Sequence[int]) -> None:
        """Keeps a shape; a convolution that sees two has two norms."""
        if self._shapes.setdefault(path, tuple(shape)) != tuple(shape):
            raise ValueError(
                f"operators: the convolution at {path} sees inputs of two shapes, {self._shapes[path]} and "
                f"{tuple(shape)}; its norm depends on the shape."
            )

    def at(self, path: Any) -> tuple[int, ...]:
        """Returns the shape that the convolution at a path saw."""
        if path not in self._shapes:
            raise ValueError(
                f"operators: the convolution at {path} is not reached by the inputs given; its norm depends on the "
                f"shape of its input: call `operators(model, *inputs)`."
            )
        return self._shapes[path]


def evaluate_abstractly(function: Any, *arguments: Any) -> Any:
    """Returns the shapes of a result. Arguments that are no arrays, such as `train=True`, stay what they are."""
    leaves, structure = jax.tree.flatten(arguments)
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]
    arrays = [leaf for leaf, is_one in zip(leaves, is_array, strict=True) if is_one]

    def of_arrays(arrays):
        remaining = iter(arrays)
        merged = [
            next(remaining) if is_one else leaf
            for leaf, is_one in zip(leaves, is_array, strict=True)
        ]
        return function(*structure.unflatten(merged))

    return jax.eval_shape(of_arrays, arrays)


def as_tuple(value: Any) -> tuple[int, ...]:
    """Returns a field that is an integer or a sequence of them as a tuple."""
    return (value,) if isinstance(value, int) else tuple(value)


def per_axis(value: Any, num_axes: int) -> tuple[Any, ...]:
    """Returns a field for every spatial axis; None stands for 1."""
    if value is None or isinstance(value, int):
        return (1 if value is None else value,) * num_axes
    return tuple(value)


def _pairs(padding, num_axes):
    if isinstance(padding, str):
        return padding
    pads = per_axis(padding, num_axes)
    return tuple((pad, pad) if isinstance(pad, int) else tuple(pad) for pad in pads)
