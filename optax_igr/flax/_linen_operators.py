"""The operators of a Linen model, from one abstract initialization.

A parameter of a layer inside `nn.scan` or `nn.vmap` has more axes than the layer knows of. Flax tells them to the boxes
in which parameters may be stored, so every parameter is put in a box that remembers what it is, and where axes came in.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen, struct
from flax.core import meta

from optax_igr.flax import _module_operators as known


class _Box(struct.PyTreeNode, meta.AxisMetadata):
    value: Any
    operator: Any = struct.field(pytree_node=False)
    added: tuple[int, ...] = struct.field(pytree_node=False, default=())

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> Any:
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Any:
        value = meta.add_axis(self.value, index, params)
        return self.replace(value=value, added=(*self.added, index))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Any:
        value = meta.remove_axis(self.value, index, params)
        return self.replace(value=value, added=self.added[:-1])


def table(model: linen.Module, inputs: Any, kwargs: Any) -> dict[tuple[Any, ...], Any]:
    """Returns the operator, None or `Unknown` of every parameter, by its path."""
    shapes = known.InputShapes()
    running = []

    def label(call, args, kwargs, context):
        module = context.module
        # A method that a module calls of itself knows less than the outer one: `Einsum` has its equation there.
        is_inner = module.scope is not None and module.path in running
        running.append(module.path if module.scope is not None else None)
        result = call(*args, **kwargs)
        running.pop()
        if is_inner:
            return result
        # In a scan that shares its parameters they come from outside, where they are labelled.
        if module.scope is not None and module.scope.is_mutable_collection("params"):
            for name, value in module.variables.get("params", {}).items():
                is_new = not isinstance(value, (Mapping, _Box))
                if is_new and hasattr(meta.unbox(value), "ndim"):
                    operator = _operator(
                        module, name, value, context.method_name, args, kwargs, shapes
                    )
                    module.scope.put_variable("params", name, _Box(value, operator))
        return result

    def initialize(inputs, kwargs):
        with linen.intercept_methods(label):
            return model.init(jax.random.key(0), *inputs, **kwargs)

    variables = known.evaluate_abstractly(initialize, inputs, kwargs)
    boxes = jax.tree_util.tree_leaves_with_path(
        variables.get("params", {}), is_leaf=lambda x: isinstance(x, _Box)
    )
    return {
        tuple(entry.key for entry in path): _of_stack(box)
        for path, box in boxes
        if isinstance(box, _Box)
    }


def _operator(module, name, value, method, args, kwargs, shapes):
    if name == "kernel" and method == "__call__":
        inputs = args[0] if args else kwargs.get("inputs")
        if isinstance(module, linen.Conv | linen.ConvTranspose):
            num_axes = len(known.as_tuple(module.kernel_size))
            shapes.record(module.path, inputs.shape[-1 - num_axes : -1])
            is_conv = isinstance(module, linen.Conv)
            of_kernel = known.conv if is_conv else known.conv_transpose
            return of_kernel(module.path, module, shapes.at(module.path))
        if isinstance(module, linen.ConvLocal):
            return known.Unknown(
                "a convolution with another kernel at every place is no operator here"
            )
        if isinstance(module, linen.DenseGeneral):
            return known.general(module)
        if isinstance(module, linen.Einsum):
            later = args[1] if len(args) > 1 else kwargs.get("einsum_str")
            return known.einsum(module.einsum_str or later)
    return known.by_axes(name, meta.unbox(value).ndim)


def _of_stack(box):
    """Returns the operator of a parameter with all its axes."""
    num_axes = len(meta.unbox(box).shape)
    # The axes of the stack among those of one parameter, in the order in which the transformations put them in.
    is_added = [False] * (num_axes - len(box.added))
    for index in box.added:
        is_added.insert(index % (len(is_added) + 1), True)
    positions = [axis for axis, added in enumerate(is_added) if added]
    return known.stacked(box.operator, num_axes, positions)
