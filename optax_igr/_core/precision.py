"""The precision and smoothness of a function, from the program that JAX traces of it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp

from optax_igr._core import jumps, trees

# What the accelerators do with float32 in a matrix product or a convolution, unless they are told otherwise:
# TensorFloat-32 keeps 10 bits of the fraction, one pass of a TPU the 7 bits of bfloat16.
_DEFAULT_PRODUCTS = {"gpu": ("TensorFloat-32", 2.0**-10), "tpu": ("bfloat16", 2.0**-7)}
_PRODUCTS = ("dot_general", "conv_general_dilated")


class Precision(NamedTuple):
    """What a function's program says about differences of it.

    Attributes:
      name: the least precise format through which the parameters reach the result.
      epsilon: its machine epsilon.
      has_kinks: whether the gradient may jump as the parameters move, as at the kink of a ReLU.
    """

    name: str
    epsilon: float
    has_kinks: bool


def of(
    function: Callable[[Any], Any],
    params: Any,
    gradient_fn: Callable[[Any], Any] | None = None,
) -> Precision:
    """Returns how precisely a function is computed.

    Flax's `dtype=bfloat16` keeps parameters in float32 and computes in bfloat16: the parameters do not tell. Data
    that are stored in few bits do not count, as they are the same in every evaluation.

    Args:
      function: of the parameters; it is traced and not computed.
      params: a pytree of arrays.
      gradient_fn: its gradient; None takes that of JAX.
    """
    formats = (
        [("float32", float(jnp.finfo(jnp.float32).eps))] if not jax.tree.leaves(params) else []
    )
    formats += [_format(x.dtype) for x in jax.tree.leaves(params)]
    equations = []
    # Python that looks at numbers cannot be traced. The parameters tell what they can, and its branches are kinks.
    has_kinks = True
    try:
        jaxpr = jax.make_jaxpr(function)(params).jaxpr
        equations = list(_dependent_equations(jaxpr, [True] * len(jaxpr.invars)))
        # A kink of the loss is a jump of its gradient. The largest logit of a softmax is a kink of the program alone.
        gradient = jax.make_jaxpr(gradient_fn or jax.grad(function))(params)
        has_kinks = jumps.has_jumps(gradient)
    except Exception:
        pass
    for equation, _ in equations:
        formats += [_format(v.aval.dtype) for v in equation.outvars if trees.is_inexact(v.aval)]
        formats += _of_product(equation)
    name, epsilon = max(formats, key=lambda f: f[1])
    return Precision(name, epsilon, has_kinks)


def _format(dtype: Any) -> tuple[str, float]:
    return str(jnp.dtype(dtype)), float(jnp.finfo(dtype).eps)


def _dependent_equations(jaxpr: Any, depends: list[bool]) -> Iterator[tuple[Any, list[bool]]]:
    """Yields the equations that depend on the marked inputs, and which of their own inputs do."""
    dependent = {v for v, does in zip(jaxpr.invars, depends, strict=True) if does}
    for equation in jaxpr.eqns:
        inputs = [
            not isinstance(v, jax.extend.core.Literal) and v in dependent for v in equation.invars
        ]
        if not any(inputs):
            continue
        dependent.update(equation.outvars)
        yield equation, inputs
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            # Loops and branches have their inputs in another order: each may depend.
            in_order = len(inner.invars) == len(inputs)
            yield from _dependent_equations(
                inner, inputs if in_order else [True] * len(inner.invars)
            )


def _of_product(equation: Any) -> list[tuple[str, float]]:
    if equation.primitive.name not in _PRODUCTS:
        return []
    precision = equation.params.get("precision")
    asked = precision if isinstance(precision, tuple) else (precision,)
    is_default = all(p is None or p == jax.lax.Precision.DEFAULT for p in asked)
    is_float32 = all(v.aval.dtype == jnp.float32 for v in equation.invars)
    default = _DEFAULT_PRODUCTS.get(jax.default_backend())
    return [default] if default is not None and is_default and is_float32 else []
