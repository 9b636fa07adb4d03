"""The exact modes of a Hessian-vector product and of a Jacobian-vector product, as JAX composes them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from optax_igr._core import extra_args, trees
from optax_igr._core.trees import Tree

ValueFn = Callable[[Tree], jax.Array]


def gradient(value_fn: ValueFn, params: Tree) -> Tree:
    """Returns the direction of steepest ascent at `params`, in the dtypes of `params`."""
    return conjugate(jax.grad(scalar(value_fn))(params))


def gradient_fn_of(value_fn: ValueFn) -> Callable[[Tree], Tree]:
    """Returns the gradient as a function of the parameters."""
    return lambda params: gradient(value_fn, params)


def _forward_over_reverse(value_fn, params, vector):
    return jax.jvp(gradient_fn_of(value_fn), (params,), (vector,))[1]


def _reverse_over_forward(value_fn, params, vector):
    return gradient(lambda p: jax.jvp(value_fn, (p,), (vector,))[1], params)


def _reverse_over_reverse(value_fn, params, vector):
    return gradient(lambda p: trees.inner_product(gradient(value_fn, p), vector), params)


PRODUCTS = {
    "forward_over_reverse": _forward_over_reverse,
    "reverse_over_forward": _reverse_over_forward,
    "reverse_over_reverse": _reverse_over_reverse,
}


def _linearized(value_fn, params):
    return jax.linearize(gradient_fn_of(value_fn), params)[1]


def _transposed(value_fn, params):
    # The Hessian of the pairs of real and imaginary parts is symmetric: its transpose is its product.
    _, transpose = jax.vjp(gradient_fn_of(value_fn), params)
    return lambda vector: conjugate(transpose(conjugate(vector))[0])


def _anew(mode):
    return lambda value_fn, params: lambda vector: PRODUCTS[mode](value_fn, params, vector)


# Within a mode the cheaper comes first. A derivative can have a product and no linearization (Pallas).
OPERATORS = {
    "forward_over_reverse": (_linearized, _anew("forward_over_reverse")),
    "reverse_over_forward": (_anew("reverse_over_forward"),),
    "reverse_over_reverse": (_transposed, _anew("reverse_over_reverse")),
}


def _transpose_of_backward_pass(outputs_fn, params):
    outputs, transpose = jax.vjp(outputs_fn, params)
    forward = jax.linear_transpose(lambda cotangent: transpose(cotangent)[0], outputs)
    return lambda vector: forward(vector)[0]


JACOBIAN_PRODUCTS = {
    "forward": lambda outputs_fn, params: jax.linearize(outputs_fn, params)[1],
    "transposed backward": _transpose_of_backward_pass,
}


def scalar(value_fn: ValueFn) -> ValueFn:
    """Returns the function with a check that it returns one real number."""

    def checked(params):
        value = value_fn(params)
        is_array = hasattr(value, "shape") and hasattr(value, "dtype")
        if not is_array or value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise extra_args.ValueFunctionError(value)
        return value

    return checked


def conjugate(tree: Tree) -> Tree:
    """Conjugates the complex leaves: JAX's gradients are conjugate to the direction of ascent."""
    return jax.tree.map(lambda x: x.conj() if jnp.iscomplexobj(x) else x, tree)
