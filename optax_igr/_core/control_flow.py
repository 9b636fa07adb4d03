"""Branches and loops that compile once inside `jax.jit`, and not at all outside of it.

`jax.lax.cond` and `jax.lax.while_loop` compile what they are given. In an eager call every step of a training loop
gives them new functions, closing over that step's `value_fn`, so that each step compiles anew (`optax#1171
<https://github.com/google-deepmind/optax/issues/1171>`_): seconds for a step of milliseconds. In an eager call,
however, the condition is a number that Python can look at.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp

Result = TypeVar("Result")


def cond(
    predicate: Any, on_true: Callable[..., Result], on_false: Callable[..., Result], *operands: Any
) -> Result:
    """Calls one of two functions: `jax.lax.cond` where the predicate is traced, else Python's own branch."""
    if isinstance(predicate, jax.core.Tracer):
        return jax.lax.cond(predicate, on_true, on_false, *operands)
    return on_true(*operands) if predicate else on_false(*operands)


def while_loop(
    condition: Callable[[Any], Any], body: Callable[[Any], Result], start: Result
) -> Result:
    """Repeats `body` while the condition holds: `jax.lax.while_loop` where it is traced, else Python's own loop."""
    if isinstance(condition(start), jax.core.Tracer):
        return jax.lax.while_loop(condition, body, start)
    carry = start
    while condition(carry):
        carry = body(carry)
    return carry


def scan(
    body: Callable[[Any, Any], tuple[Result, Any]], start: Result, xs: Any, *, reverse: bool = False
) -> tuple[Result, Any]:
    """Carries a state along the leading axis of `xs`: `jax.lax.scan` where one is traced, else Python's own loop."""
    leaves = jax.tree.leaves(xs)
    if any(isinstance(x, jax.core.Tracer) for x in (*leaves, *jax.tree.leaves(start))):
        return jax.lax.scan(body, start, xs, reverse=reverse)
    carry, results = start, []
    indices = range(len(leaves[0]))
    for index in reversed(indices) if reverse else indices:
        carry, result = body(carry, jax.tree.map(lambda x, i=index: x[i], xs))
        results.append(result)
    results = results[::-1] if reverse else results
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *results)
