"""Whether a function may jump as its inputs move, from the program that JAX traces of it.

A gradient jumps where the loss has a kink. In its program every jump comes from an operation that is not continuous:
a comparison, a sign, a rounding, an index of the largest. Each counts if the inputs reach it and it reaches the result.
A maximum is continuous and does not count, and so the shift of a softmax by its largest logit is no jump.

Three facts of a value are followed, as softmax and normalization layers compare values that cannot cross zero:
whether it depends on the inputs, whether it is at least zero, and of which value it is a moment.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from optax_igr._core import trees

_COMPARISONS = ("lt", "le", "gt", "ge")
_EQUALITIES = ("eq", "ne")
_JUMPS = ("sign", "floor", "ceil", "round", "rem", "argmax", "argmin", "top_k")
_JUMPS += ("select_and_scatter_add", "select_and_gather_add")
_NONNEGATIVE = ("abs", "exp", "exp2", "square", "logistic", "erfc", "sqrt", "rsqrt", "cosh")
# Nonnegative where every operand is.
_MONOTONE = ("add", "mul", "div", "min", "log1p", "expm1", "cbrt", "tanh", "erf", "asinh", "pow")
_SUMS = ("reduce_sum", "cumsum", "reduce_window_sum", "dot_general")
_EXTREMES = ("reduce_max", "reduce_min", "cummax", "cummin", "reduce_prod")
# What changes neither numbers nor order, and what changes their shape alone.
_SAME = ("convert_element_type", "copy", "stop_gradient", "optimization_barrier", "name", "pvary")
_SHAPES = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose")
# Nonnegative where the numbers that enter are.
_MOVES = ("slice", "rev", "concatenate", "gather", "dynamic_slice", "split", "pad")
_MOVES += ("sign", "reduce_precision", "psum", "pmax", "all_gather")
_IN_ORDER = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")
_IN_ORDER += (
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_lin",
    "shard_map",
    "custom_vjp_call_jaxpr",
)

_PROGRAMS = (jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr)

_identities = itertools.count()


class _Value(NamedTuple):
    """What is known of a value.

    Attributes:
      depends: whether the inputs reach it.
      is_nonnegative: whether it is at least zero, wherever the inputs are.
      identity: the same number for values that are equal.
      moment: `(kind, (identity, axes))`: a sum of a value, of its square, or the square of its sum, up to a constant
        factor.
      is_nonpositive: whether it is a constant that is at most zero.
    """

    depends: bool
    is_nonnegative: bool = False
    identity: int = -1
    moment: tuple[str, Any] | None = None
    is_nonpositive: bool = False


def has_jumps(program: Any) -> bool:
    """Returns whether a function may jump.

    It errs on the side of jumps: ELU and the loss of Huber compare, and only the derivative of their gradient jumps.

    Args:
      program: of `jax.make_jaxpr`.
    """
    found: list[str] = []
    jaxpr = program.jaxpr
    constants = [_constant(x) for x in program.consts]
    inputs = [_Value(True, identity=next(_identities)) for _ in jaxpr.invars]
    _follow(jaxpr, constants, inputs, [True] * len(jaxpr.outvars), found)
    return bool(found)


def _constant(x: Any) -> _Value:
    # A traced constant, such as a batch, has no sign that is known; a large one is not worth a transfer.
    known = not isinstance(x, jax.core.Tracer) and np.size(x) <= 4096
    known = (
        known
        and not jnp.iscomplexobj(x)
        and not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    )
    if not known:
        return _Value(False, identity=next(_identities))
    x = np.asarray(x)
    return _Value(False, bool(np.all(x >= 0)), next(_identities), None, bool(np.all(x <= 0)))


def _follow(
    jaxpr: Any,
    constants: Sequence[_Value],
    inputs: Sequence[_Value],
    is_used: Sequence[bool],
    found: list[str],
) -> list[_Value]:
    """Returns what is known of the results; the operations that may jump are added to `found`."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *inputs), strict=True))

    def read(v):
        return _constant(v.val) if isinstance(v, jax.extend.core.Literal) else known[v]

    used = _used_equations(jaxpr, is_used)
    for equation in jaxpr.eqns:
        values = [read(v) for v in equation.invars]
        if id(equation) not in used:
            # Its results are read nowhere; they only need a name.
            results = [_Value(any(v.depends for v in values)) for _ in equation.outvars]
        else:
            results = _results(equation, values, used[id(equation)], found)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _used_equations(jaxpr: Any, is_used: Sequence[bool]) -> dict[int, list[bool]]:
    live = {
        v
        for v, used in zip(jaxpr.outvars, is_used, strict=True)
        if used and not isinstance(v, jax.extend.core.Literal)
    }
    used = {}
    for equation in reversed(jaxpr.eqns):
        outputs = [v in live for v in equation.outvars]
        if any(outputs):
            used[id(equation)] = outputs
            live.update(v for v in equation.invars if not isinstance(v, jax.extend.core.Literal))
    return used


def _programs(equation: Any) -> list[tuple[Any, list[_Value]]]:
    """Returns the programs inside an operation, and their constants."""
    found = []
    for parameter in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda x: isinstance(x, _PROGRAMS)
    ):
        if isinstance(parameter, jax.extend.core.ClosedJaxpr):
            found.append((parameter.jaxpr, [_constant(x) for x in parameter.consts]))
        elif isinstance(parameter, jax.extend.core.Jaxpr):
            found.append((parameter, [_Value(False) for _ in parameter.constvars]))
    return found


def _results(equation: Any, values: list[_Value], used: list[bool], found: list[str]) -> list:
    depends = any(v.depends for v in values)
    inner = _programs(equation)
    name = equation.primitive.name
    if inner and name not in ("reduce", "scatter", "scatter-add", "scatter_add"):
        return _results_of_call(equation, name, inner, values, used, found)
    if depends and _jumps(equation, name, values):
        found.append(name)
    if len(equation.outvars) > 1:
        return [_Value(depends, identity=next(_identities)) for _ in equation.outvars]
    return [_result(equation, name, values)]


def _jumps(equation: Any, name: str, values: list[_Value]) -> bool:
    if name in _JUMPS:
        return not (name == "sign" and values[0].is_nonnegative)
    if name == "sort":
        # The order of one operand moves the others.
        return len(values) > 1
    if name == "convert_element_type":
        was_inexact = jnp.issubdtype(equation.invars[0].aval.dtype, jnp.inexact)
        return was_inexact and not jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.inexact)
    if name not in (*_COMPARISONS, *_EQUALITIES):
        return False
    if not jnp.issubdtype(equation.invars[0].aval.dtype, jnp.inexact):
        return False
    a, b = values
    if a.identity == b.identity:
        return False
    if name in _EQUALITIES:
        # To equal a constant is a single point, as where a norm is zero. Two values that move may part or meet.
        return a.depends and b.depends
    return not any(v.is_nonnegative and w.is_nonpositive for v, w in ((a, b), (b, a)))


def _result(equation: Any, name: str, values: list[_Value]) -> _Value:
    depends = any(v.depends for v in values)
    first = values[0] if values else _Value(False)
    signs = [v.is_nonnegative for v in values]
    moves = [v for v in values if v.depends]
    if name in _SAME:
        return first
    if name in _SHAPES:
        return first._replace(identity=next(_identities))
    if name == "max":
        # The larger of zero and of what is not below it is the latter.
        for zero, other in (values, values[::-1]):
            if zero.is_nonpositive and other.is_nonnegative:
                return other
    is_nonnegative, moment = False, None
    if name in _NONNEGATIVE:
        is_nonnegative = not jnp.iscomplexobj(equation.outvars[0].aval)
    elif name == "integer_pow":
        is_nonnegative = first.is_nonnegative or equation.params["y"] % 2 == 0
    elif name == "select_n":
        is_nonnegative = all(signs[1:])
    elif name == "max":
        is_nonnegative = any(signs)
    elif name in (*_MONOTONE, *_SUMS, *_EXTREMES, *_MOVES):
        is_nonnegative = all(signs)
    is_square = name == "square" or (name == "integer_pow" and equation.params["y"] == 2)
    is_product = name == "mul" and values[0].identity == values[1].identity
    if is_square or is_product:
        is_nonnegative = not jnp.iscomplexobj(equation.outvars[0].aval)
        moment = ("square", first.identity)
        if first.moment and first.moment[0] == "sum":
            moment = ("square of sum", first.moment[1])
    elif name == "reduce_sum":
        axes = equation.params["axes"]
        moment = ("sum", (first.identity, axes))
        if first.moment and first.moment[0] == "square":
            moment = ("sum of squares", (first.moment[1], axes))
    elif name in ("mul", "div") and len(moves) == 1:
        moment = moves[0].moment
    elif name == "sub" and first.moment and values[1].moment:
        # Var x = E x² - (E x)², as normalization layers compute it.
        pair = (first.moment[0], values[1].moment[0])
        same = first.moment[1] == values[1].moment[1]
        is_nonnegative = same and pair == ("sum of squares", "square of sum")
    return _Value(depends, is_nonnegative, next(_identities), moment)


def _results_of_call(
    equation: Any,
    name: str,
    inner: list[tuple[Any, list[_Value]]],
    values: list[_Value],
    used: list[bool],
    found: list[str],
) -> list[_Value]:
    if name in _IN_ORDER and len(inner) == 1 and len(inner[0][0].invars) == len(values):
        return _follow(*inner[0], values, used, found)
    depends = any(v.depends for v in values)
    if depends:
        # In a loop a carry depends after a turn, whatever it starts from; its signs and identities may not last.
        for jaxpr, constants in inner:
            inputs = [
                _Value(trees.is_inexact(v.aval), identity=next(_identities)) for v in jaxpr.invars
            ]
            if name == "cond":
                inputs = values[1:]
            _follow(jaxpr, constants, inputs, [True] * len(jaxpr.outvars), found)
    return [_Value(depends, identity=next(_identities)) for _ in equation.outvars]
