"""The precision and smoothness of a function, from the program that JAX traces of it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from optax_igr._core import trees

# What the accelerators do with float32 in a matrix product or a convolution, unless they are told otherwise:
# TensorFloat-32 keeps 10 bits of the fraction, one pass of a TPU the 7 bits of bfloat16.
_DEFAULT_PRODUCTS = {"gpu": ("TensorFloat-32", 2.0**-10), "tpu": ("bfloat16", 2.0**-7)}
_PRODUCTS = ("dot_general", "conv_general_dilated")
_KINKS = ("max", "min", "abs", "sign", "clamp", "reduce_window_max", "argmax")


class Precision(NamedTuple):
    """What a function's program says about differences of it.

    Attributes:
      name: the least precise format through which the parameters reach the result.
      epsilon: its machine epsilon.
      has_kinks: whether they pass a function that has no derivative somewhere, such as ReLU.
    """

    name: str
    epsilon: float
    has_kinks: bool


def of(function: Callable[[Any], Any], params: Any) -> Precision:
    """Returns how precisely a function is computed.

    Flax's `dtype=bfloat16` keeps parameters in float32 and computes in bfloat16: the parameters do not tell. Data
    that are stored in few bits do not count, as they are the same in every evaluation.

    Args:
      function: of the parameters; it is traced and not computed.
      params: a pytree of arrays.
    """
    formats = (
        [("float32", float(jnp.finfo(jnp.float32).eps))] if not jax.tree.leaves(params) else []
    )
    formats += [_format(x.dtype) for x in jax.tree.leaves(params)]
    equations = []
    try:
        jaxpr = jax.make_jaxpr(function)(params).jaxpr
        equations = list(_dependent_equations(jaxpr, [True] * len(jaxpr.invars)))
    except Exception:
        # Python that looks at numbers cannot be traced. The parameters tell what they can.
        equations = []
    for equation, _ in equations:
        formats += [_format(v.aval.dtype) for v in equation.outvars if trees.is_inexact(v.aval)]
        formats += _of_product(equation)
    name, epsilon = max(formats, key=lambda f: f[1])
    has_kinks = any(_has_kink(equation, depends) for equation, depends in equations)
    return Precision(name, epsilon, has_kinks)


def _format(dtype: Any) -> tuple[str, float]:
    return str(jnp.dtype(dtype)), float(jnp.finfo(dtype).eps)


def _has_kink(equation: Any, depends: list[bool]) -> bool:
    if equation.primitive.name == "select_n":
        # A mask of the data has none: its borders do not move with the parameters.
        return depends[0]
    if any(jnp.iscomplexobj(v.aval) for v in equation.invars):
        # The modulus has a tip at zero and no kink.
        return False
    # The largest logit of a softmax is `max(-inf, ...)`, the start of a reduction.
    bounds = [v.val for v in equation.invars if isinstance(v, jax.extend.core.Literal)]
    return equation.primitive.name in _KINKS and not any(np.all(np.isinf(b)) for b in bounds)


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
