"""A repeated expression is computed once, and the function stays the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr.flows import _common_subexpressions


def count(fn, name, *args):
    return str(jax.make_jaxpr(fn)(*args)).count(f" {name} ")


def repeated(x):
    inner = jax.jit(lambda y: jnp.sin(y) * 2.0)
    return jnp.sin(x) * 2.0 + inner(x) + inner(x)


def scanned(x):
    def body(carry, y):
        return jnp.tanh(carry) + y, None

    return jax.lax.scan(body, x, jnp.arange(3.0))[0] + jax.lax.scan(body, x, jnp.arange(3.0))[0]


def branched(x):
    loop = jax.lax.while_loop(lambda y: y < 10, lambda y: y * 2, x)
    return loop + jax.lax.cond(x > 0, jnp.sin, jnp.cos, x)


def with_custom_rules(x):
    return jax.nn.relu(x) + jax.nn.softplus(x) + jax.nn.relu(x) + jax.checkpoint(jnp.sin)(x)


def literals(x):
    # Equal as keys of a dictionary, but not as operands.
    return x * 1.0 + x * True + x * jnp.float32(1) + jnp.where(x > 0, -0.0, 0.0)


FUNCTIONS = [repeated, scanned, branched, with_custom_rules, literals]


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_values_and_derivatives_stay(fn):
    x = jnp.array(0.7)
    shared = _common_subexpressions.eliminate_common_subexpressions(fn)
    for transform in (lambda f: f, jax.jit, lambda f: jax.vmap(f, axis_size=1, in_axes=None)):
        np.testing.assert_array_equal(transform(shared)(x), transform(fn)(x))
    np.testing.assert_allclose(jax.jvp(shared, (x,), (1.0,)), jax.jvp(fn, (x,), (1.0,)))


def test_an_expression_is_computed_once_also_inside_jit():
    assert count(repeated, "sin", 1.0) > 1
    assert count(_common_subexpressions.eliminate_common_subexpressions(repeated), "sin", 1.0) == 1


def test_effects_are_not_merged(capfd):
    def printing(x):
        jax.debug.print("seen {}", x)
        jax.debug.print("seen {}", x)
        return x

    jax.block_until_ready(
        jax.jit(_common_subexpressions.eliminate_common_subexpressions(printing))(1.0)
    )
    jax.effects_barrier()
    assert capfd.readouterr().out.count("seen") == 2


def test_trees_in_and_out():
    def swapped(tree, x):
        return {"b": tree["a"] + x, "c": (None, tree["a"])}

    result = _common_subexpressions.eliminate_common_subexpressions(swapped)(
        {"a": jnp.arange(2)}, 1
    )
    assert jax.tree.map(list, result) == {"b": [1, 2], "c": (None, [0, 1])}
