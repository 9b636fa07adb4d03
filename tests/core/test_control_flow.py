"""Branches and loops are JAX's where they are traced, and Python's where they are not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr._core import control_flow


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_branch_is_the_one_that_the_predicate_names(wrap):
    def chosen(x):
        return control_flow.cond(x > 2, lambda y: 10 * y, lambda y: y - 1, x)

    found = [wrap(chosen)(x) for x in (jnp.array(1.0), jnp.array(3.0))]
    np.testing.assert_array_equal(found, [0.0, 30.0])
    np.testing.assert_array_equal(jax.vmap(chosen)(jnp.array([1.0, 3.0])), [0.0, 30.0])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_loop_ends_when_its_condition_does(wrap):
    def doubled(x):
        return control_flow.while_loop(lambda c: c[0] < 50, lambda c: (2 * c[0], c[1] + 1), (x, 0))

    for start, expected in ((3.0, (96.0, 5)), (60.0, (60.0, 0))):
        chex.assert_trees_all_equal(wrap(doubled)(jnp.array(start)), expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_is_that_of_jax(reverse):
    def body(carry, x):
        return (carry[0] + x["a"], carry[1] * 2), {"sum": carry[0], "none": None}

    start = (jnp.zeros(2), jnp.array(1.0))
    xs = {"a": jnp.arange(6.0).reshape(3, 2)}
    expected = jax.lax.scan(body, start, xs, reverse=reverse)
    found = control_flow.scan(body, start, xs, reverse=reverse)
    chex.assert_trees_all_equal(found, expected)
    traced = jax.jit(lambda s, x: control_flow.scan(body, s, x, reverse=reverse))(start, xs)
    chex.assert_trees_all_equal(traced, expected)
