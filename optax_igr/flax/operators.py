"""What each weight of a Flax model is as an operator: a matrix or a convolution.

The modules know it: a convolution's operator depends on the shape of its input, which one abstract evaluation of the
model shows.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen, nnx

import optax_igr


def operators(
    model: nnx.Module | linen.Module, *inputs: Any, **kwargs: Any
) -> Callable[[Any, jax.Array], Any]:
    """Derives from the modules of a model what each of its weights is as an operator.

    A kernel of `Linear`, `Dense`, `LinearGeneral`, `DenseGeneral` (attention is made of them) and `Conv` is known
    from its module; the shape of the input of a convolution from one abstract evaluation of the model. Biases, also
    those of two axes, and scales are left alone. Any other parameter of two axes counts as a matrix.

    Args:
      model: an NNX module, or a Linen one.
      *inputs: of the model, arrays or `jax.ShapeDtypeStruct`; an NNX model without convolutions needs none.
      **kwargs: further arguments of its call.

    Returns:
      A function `(path, leaf) -> operator or None` for the argument `operator` of
      :func:`optax_igr.add_schatten_decay`, :func:`optax_igr.add_spectral_decay`,
      :func:`optax_igr.projection_spectral_ball` and :func:`optax_igr.diagnostics.lipschitz_bounds`. It raises a
      `ValueError` for a kernel of more axes from another module.

    Raises:
      ValueError: for a convolution that has no operator here (input dilation, a mask, reflection), or which
        `inputs` do not reach, or reach in two sizes.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_igr.flax
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Conv(1, 4, (3, 3), padding="CIRCULAR", rngs=rngs), nnx.relu)
      >>> operator = optax_igr.flax.operators(model, jnp.ones([1, 8, 8, 1]))
      >>> decay = optax_igr.add_schatten_decay(1e-3, gram_steps=2, operator=operator)
      >>> optimizer = nnx.Optimizer(model, optax.chain(decay, optax.adam(1e-3)), wrt=nnx.Param)
    """
    if isinstance(model, linen.Module):
        table = _linen_operators(model, inputs, kwargs)
    else:
        table = _nnx_operators(model, inputs, kwargs)

    def operator(path: Any, leaf: jax.Array) -> Any:
        keys = tuple(getattr(entry, "key", getattr(entry, "idx", None)) for entry in path)
        # The leaf of a variable stands under it; Linen's collection stands above.
        keys = tuple(key for key in keys if key is not None)
        keys = keys[1:] if keys[:1] == ("params",) else keys
        if keys in table:
            return table[keys]
        if not keys or keys[-1] in ("bias", "scale") or leaf.ndim < 2:
            return None
        if leaf.ndim == 2:
            return optax_igr.matrix_operator()
        raise ValueError(
            f"operators: nothing is known of the parameter {jax.tree_util.keystr(path)} of shape "
            f"{list(leaf.shape)}. Wrap this function by one that returns its operator, or leave it out by `mask`."
        )

    return operator


def _nnx_operators(model, inputs, kwargs):
    table, shapes = {}, {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.LinearGeneral):
            num_inputs, num_outputs = len(module.in_features), len(module.out_features)
            table[*path, "kernel"] = _general_operator(num_inputs, num_outputs)

    def record(path, convolve):
        def recorded(padded, *args, **kwargs):
            _record_shape(shapes, path, padded.shape[1:-1])
            return convolve(padded, *args, **kwargs)

        return recorded

    graphdef, state = nnx.split(model, graph=True)

    def run(state, inputs, kwargs):
        copied = nnx.merge(graphdef, state, copy=True)
        for path, module in nnx.iter_modules(copied):
            if isinstance(module, nnx.Conv):
                module.conv_general_dilated = record(path, module.conv_general_dilated)
        copied(*inputs, **kwargs)

    if inputs or kwargs:
        jax.eval_shape(run, state, inputs, kwargs)
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Conv):
            shape = _reached_shape(shapes, path)
            if module.padding in ("CIRCULAR", "CAUSAL"):
                # NNX pads these itself before the convolution, by as much as the kernel reaches.
                extents = _per_axis(module.kernel_dilation, len(shape))
                taps = zip(shape, module.kernel_size, extents, strict=True)
                shape = tuple(n - (k - 1) * d for n, k, d in taps)
            table[*path, "kernel"] = _conv_operator(path, module, shape)
    return table


def _linen_operators(model, inputs, kwargs):
    table, shapes, convolutions = {}, {}, {}

    def record(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and isinstance(module, linen.Conv):
            convolutions[module.path] = module
            num_axes = len(_as_tuple(module.kernel_size))
            _record_shape(shapes, module.path, args[0].shape[-1 - num_axes : -1])
        elif context.method_name == "__call__" and isinstance(module, linen.DenseGeneral):
            num_inputs, num_outputs = (
                len(_as_tuple(axes)) for axes in (module.axis, module.features)
            )
            table[*module.path, "kernel"] = _general_operator(num_inputs, num_outputs)
        return call(*args, **kwargs)

    with linen.intercept_methods(record):
        jax.eval_shape(
            lambda *inputs, **kwargs: model.init(jax.random.key(0), *inputs, **kwargs),
            *inputs,
            **kwargs,
        )
    for path, module in convolutions.items():
        table[*path, "kernel"] = _conv_operator(path, module, _reached_shape(shapes, path))
    return table


def _general_operator(num_inputs, num_outputs):
    num_axes = num_inputs + num_outputs
    return optax_igr.matrix_operator(
        tuple(range(-num_axes, -num_outputs)), tuple(range(-num_outputs, 0))
    )


def _conv_operator(path, module, input_shape):
    num_axes = len(input_shape)
    padding: Any = module.padding
    if padding == "CAUSAL":
        extent = (_as_tuple(module.kernel_size)[0] - 1) * _per_axis(module.kernel_dilation, 1)[0]
        padding = ((extent, 0),)
    elif not isinstance(padding, str):
        pads = _per_axis(padding, num_axes)
        padding = tuple((pad, pad) if isinstance(pad, int) else tuple(pad) for pad in pads)
    input_dilation = _per_axis(module.input_dilation, num_axes)
    if set(input_dilation) != {1} or module.mask is not None or padding == "REFLECT":
        raise ValueError(
            f"operators: the convolution at {path} has an input dilation, a mask or reflecting padding, for which "
            f"there is no operator."
        )
    return optax_igr.conv_operator(
        input_shape,
        strides=_per_axis(module.strides, num_axes),
        padding=padding,
        kernel_dilation=_per_axis(module.kernel_dilation, num_axes),
        feature_group_count=module.feature_group_count,
    )


def _record_shape(shapes, path, shape):
    if shapes.setdefault(path, tuple(shape)) != tuple(shape):
        raise ValueError(
            f"operators: the convolution at {path} sees inputs of two shapes, {shapes[path]} and {tuple(shape)}; its "
            f"norm depends on the shape."
        )


def _reached_shape(shapes, path):
    if path not in shapes:
        raise ValueError(
            f"operators: the convolution at {path} is not reached by the inputs given; its norm depends on the "
            f"shape of its input: call `operators(model, *inputs)`."
        )
    return shapes[path]


def _as_tuple(value):
    return (value,) if isinstance(value, int) else tuple(value)


def _per_axis(value, num_axes):
    return (
        (1 if value is None else value,) * num_axes
        if value is None or isinstance(value, int)
        else tuple(value)
    )
