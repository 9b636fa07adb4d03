import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr._core import exponential

SMALL = np.geomspace(1e-12, 1, 20_001)
ARGUMENTS = np.concatenate([SMALL, -SMALL, np.linspace(-87, 88.3, 200_001)]).astype(np.float32)


@pytest.mark.parametrize("jit", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_float32_keeps_its_digits_over_the_whole_range(jit):
    wide = ARGUMENTS.astype(np.float64)
    exp = np.float64(jit(exponential.exp)(ARGUMENTS))
    assert np.abs(exp / np.exp(wide) - 1).max() < 1.2e-7
    expm1 = np.float64(jit(exponential.expm1)(ARGUMENTS))
    assert np.abs(expm1 / np.expm1(wide) - 1).max() < 2e-7


def test_zero_is_exact_and_nan_passes():
    x = jnp.array([0.0, -0.0, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(exponential.exp(x), [1, 1, np.nan])
    np.testing.assert_array_equal(exponential.expm1(x), [0, 0, np.nan])


def test_bounded_arguments_saturate_at_finite_numbers():
    x = exponential.within_range(jnp.array([-jnp.inf, -100.0, 100.0, jnp.inf], jnp.float32))
    low, lower, high, higher = exponential.exp(x)
    assert 0 < low == lower < 2e-38
    assert 2e38 < high == higher < jnp.inf


def test_float64_is_that_of_jax():
    x = jnp.linspace(-700, 700, 1001, dtype=jnp.float64)
    np.testing.assert_array_equal(exponential.exp(x), jnp.exp(x))
    np.testing.assert_array_equal(exponential.expm1(x), jnp.expm1(x))


@pytest.mark.parametrize("function", [exponential.exp, exponential.expm1])
def test_every_derivative_is_the_exponential(function):
    for x in (-3.0, 0.1, 40.0):
        argument = jnp.float32(x)
        np.testing.assert_allclose(jax.grad(function)(argument), np.exp(x), rtol=5e-6)
        np.testing.assert_allclose(jax.grad(jax.grad(function))(argument), np.exp(x), rtol=5e-6)
        batched = jax.vmap(jax.grad(function))(jnp.full(2, argument))
        np.testing.assert_allclose(batched, np.exp(x), rtol=5e-6)
