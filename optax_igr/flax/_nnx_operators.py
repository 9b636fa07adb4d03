"""The operators of an NNX model, from the fields of its modules and one abstract evaluation."""

from typing import Any

from flax import nnx

from optax_igr.flax import _module_operators as known


def table(model: nnx.Module, inputs: Any, kwargs: Any) -> dict[tuple[Any, ...], Any]:
    """Returns the operator, None or `Unknown` of every parameter of the model's modules, by its path."""
    shapes, equations = _seen(model, inputs, kwargs)
    found, depths = {}, {}
    modules = list(nnx.iter_modules(model))
    for path, module in modules:
        for name, (operator, inner) in _kernels(path, module, shapes, equations).items():
            shape = getattr(module, name).shape
            positions = known.stack_positions(shape, inner)
            if positions is None:
                operator = known.Unknown(f"its module expects the shape {list(inner)}")
            depths[path] = len(positions or ())
            found[*path, name] = known.stacked(operator, len(shape), positions or ())
    for path, module in modules:
        for name, value in vars(module).items():
            if isinstance(value, nnx.Variable) and (*path, name) not in found:
                found[*path, name] = _of_unknown(path, name, value, depths)
    return found


def _kernels(path, module, shapes, equations):
    """Returns for each kernel of a module of Flax what it is, and the shape that the module expects of it."""
    if isinstance(module, nnx.LinearGeneral):
        sizes = tuple(module.in_features) + tuple(module.out_features)
        # The batches are those of the module, not of a stack of modules.
        num_batches = len(module.batch_axis)
        batches = module.kernel.shape[-len(sizes) - num_batches : -len(sizes)]
        return {"kernel": (known.general(module), batches + sizes)}
    if isinstance(module, nnx.Linear):
        sizes = (module.in_features, module.out_features)
        return {"kernel": (known.by_axes("kernel", 2), sizes)}
    if isinstance(module, nnx.Embed):
        sizes = (module.num_embeddings, module.features)
        return {"embedding": (known.by_axes("embedding", 2), sizes)}
    if isinstance(module, nnx.LoRA):
        matrix, shapes_of_factors = known.by_axes("kernel", 2), module.lora_a.shape
        rank = shapes_of_factors[-1]
        return {
            "lora_a": (matrix, (module.in_features, rank)),
            "lora_b": (matrix, (rank, module.out_features)),
        }
    if isinstance(module, nnx.Conv):
        return {"kernel": (known.conv(path, module, shapes.at(path)), module.kernel_shape)}
    if isinstance(module, nnx.ConvTranspose):
        return {
            "kernel": (known.conv_transpose(path, module, shapes.at(path)), module.kernel_shape)
        }
    if isinstance(module, nnx.Einsum):
        equation = module.einsum_str or equations.get(path)
        unknown = known.Unknown("the inputs given do not show its equation")
        operator = known.einsum(equation) if equation else unknown
        return {"kernel": (operator, module.kernel_shape)}
    return {}


def _of_unknown(path, name, value, depths):
    """A parameter of a module that is not one of Flax, or no kernel."""
    operator = known.by_axes(name, len(value.shape))
    # Inside a stack a bias has two axes, and nothing says so.
    has_stack_nearby = any(
        depth and (other[: len(path)] == path or (other and other[:-1] == path[:-1]))
        for other, depth in depths.items()
    )
    if operator is None or not has_stack_nearby:
        return operator
    return known.Unknown("it stands among stacked modules, and its own module is not known")


def _seen(model, inputs, kwargs):
    """Evaluates the model abstractly: the input shapes of convolutions, and the equations given in a call."""
    shapes, equations = known.InputShapes(), {}
    if not inputs and not kwargs:
        return shapes, equations
    graphdef, state = nnx.split(model, graph=True)

    def run(state, inputs, kwargs):
        copied = nnx.merge(graphdef, state, copy=True)
        for path, module in nnx.iter_modules(copied):
            _watch(path, module, shapes, equations)
        copied(*inputs, **kwargs)

    known.evaluate_abstractly(run, state, inputs, kwargs)
    return shapes, equations


def _watch(path, module, shapes, equations):
    """Replaces a function that a module is given by one that also looks at its arguments."""
    if isinstance(module, nnx.Conv):
        convolve = module.conv_general_dilated

        def convolve_and_record(padded, *args, **kwargs):
            shape = padded.shape[1:-1]
            if module.padding in ("CIRCULAR", "CAUSAL"):
                # NNX pads these itself before the convolution, by as much as the kernel reaches.
                dilations = known.per_axis(module.kernel_dilation, len(shape))
                taps = zip(shape, module.kernel_size, dilations, strict=True)
                shape = tuple(n - (k - 1) * d for n, k, d in taps)
            shapes.record(path, shape)
            return convolve(padded, *args, **kwargs)

        module.conv_general_dilated = convolve_and_record
    elif isinstance(module, nnx.ConvTranspose):
        promote = module.promote_dtype

        def promote_and_record(arrays, *args, **kwargs):
            shapes.record(path, arrays[0].shape[1:-1])
            return promote(arrays, *args, **kwargs)

        module.promote_dtype = promote_and_record
    elif isinstance(module, nnx.Einsum):
        multiply = module.einsum_op

        def multiply_and_record(equation, *args, **kwargs):
            equations[path] = equation
            return multiply(equation, *args, **kwargs)

        module.einsum_op = multiply_and_record
