"""Pytrees as vectors: what is reduced in which dtype, what a mask selects, what a mismatch says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr._core import trees


def test_inner_product_of_complex_leaves_is_that_of_their_parts():
    x, y = jnp.array([1 + 2j, 3 - 1j]), jnp.array([0.5 - 1j, 2 + 2j])
    expected = np.sum(x.real * y.real + x.imag * y.imag)
    assert float(trees.inner_product(x, y)) == pytest.approx(float(expected), rel=1e-15)


def test_narrow_leaves_are_reduced_in_float32():
    tree = {"overflows": jnp.full(10, 300, jnp.float16), "stops": jnp.ones(1000, jnp.bfloat16)}
    assert float(trees.squared_norm(tree)) == 10 * 300**2 + 1000
    direction, norm = trees.unit({"underflows": jnp.full(1000, 1e-4, jnp.float16)})
    assert float(norm) == pytest.approx(1e-4 * np.sqrt(1000), rel=1e-2)
    assert float(trees.squared_norm(direction)) == pytest.approx(1, rel=1e-6)


def test_unit_vector_of_zero_is_zero():
    direction, norm = trees.unit(jnp.zeros(3))
    np.testing.assert_array_equal(direction, jnp.zeros(3))
    assert float(norm) == 0


def test_empty_tree_is_the_zero_vector():
    assert float(trees.squared_norm({})) == 0
    assert bool(trees.all_finite({}))


def test_selection_leaves_out_masked_leaves_and_those_that_are_no_real_numbers():
    tree = {"a": jnp.ones(2), "b": jnp.arange(2), "c": {"d": jnp.zeros(1), "e": None}}
    selected, fill = trees.select("some_transform", tree, {"a": True, "b": True, "c": False})
    left_out = {"a": 0, "b": None, "c": {"d": None, "e": None}}
    assert jax.tree.structure(selected) == jax.tree.structure(left_out)
    filled = fill({**left_out, "a": 2 * selected["a"]})
    np.testing.assert_array_equal(filled["a"], 2 * jnp.ones(2))
    assert filled["b"] is tree["b"]
    assert filled["c"]["d"] is tree["c"]["d"]


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"a": {"b": jnp.zeros(3)}}, r"leaf \['a'\]\['b'\] is float64\[3\], expected float64\[2\]"),
        (
            {"a": {"b": jnp.zeros(2, jnp.float32)}},
            r"\['a'\]\['b'\] is float32\[2\], expected float64",
        ),
        ({"a": {"c": jnp.zeros(2)}}, r"leaf \['a'\]\['b'\] is missing, expected float64\[2\]"),
        ({"a": {"b": jnp.zeros(2), "c": 1.0}}, r"\['a'\]\['c'\] is .*, expected no such leaf"),
    ],
)
def test_mismatch_names_the_leaf(updates, message):
    params = {"a": {"b": jnp.zeros(2)}}
    with pytest.raises(ValueError, match=f"some_transform: `updates` must agree.*{message}"):
        trees.check_like("some_transform", params, updates=updates)


def test_the_unit_vector_of_a_zero_has_a_derivative():
    """The limit has none; zero is a finite choice, where 0 times infinity would make every outer derivative NaN."""
    direction, norm = trees.unit({"w": jnp.zeros(3)})
    assert norm == 0
    np.testing.assert_array_equal(direction["w"], 0)
    derivative = jax.grad(lambda w: jnp.sum(trees.unit(w)[0]) + trees.unit(w)[1])(jnp.zeros(3))
    assert jnp.isfinite(derivative).all()
