"""Lipschitz bounds against models whose constant is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_igr
from optax_igr.diagnostics import lipschitz_bounds


def linear(params, x):
    for w in params:
        x = x @ w
    return x


def test_both_bounds_of_a_linear_layer_are_its_norm():
    w = jax.random.normal(jax.random.key(0), (6, 4), jnp.float64)
    inputs = jax.random.normal(jax.random.key(1), (3, 6), jnp.float64)
    bounds = jax.jit(lambda p: lipschitz_bounds(linear, p, inputs))([w])
    assert float(bounds.lower) == pytest.approx(np.linalg.norm(w, 2), rel=1e-10)
    assert float(bounds.upper) == pytest.approx(np.linalg.norm(w, 2), rel=1e-12)


def test_the_product_may_be_loose_without_limit():
    params = [jnp.diag(jnp.array([10.0, 0.1])), jnp.diag(jnp.array([0.1, 10.0]))]
    bounds = lipschitz_bounds(linear, params, jnp.eye(2))
    assert float(bounds.upper) == pytest.approx(100, rel=1e-6)
    assert float(bounds.lower) == pytest.approx(1, rel=1e-5)


def test_the_search_climbs_to_where_the_jacobian_is_largest():
    """The slope of tanh(4 x) is 4 at the origin, and 0.005 where the search starts."""
    bounds = lipschitz_bounds(
        lambda w, x: jnp.tanh(x @ w), jnp.array([[4.0]]), jnp.array([[1.0]]), num_steps=200
    )
    assert float(bounds.lower) == pytest.approx(4, rel=1e-3)
    assert float(bounds.lower) <= 4 <= float(bounds.upper) * (1 + 1e-6)
    assert abs(float(bounds.input_at_lower[0])) < 0.05


def test_the_search_climbs_over_the_kinks_of_relu():
    """Its gradient is 1 where the search starts and 5 beyond -0.3, where a Jacobian alone has no slope to see."""

    def model(params, x):
        first, second = params
        return jax.nn.relu(x @ first + jnp.array([[0.0, -1.5]])) @ second

    params = [jnp.array([[1.0, 5.0]]), jnp.array([[1.0], [0.8]])]
    bounds = lipschitz_bounds(model, params, jnp.array([[0.29]]), num_steps=20, step_size=0.02)
    assert float(bounds.lower) == pytest.approx(5, rel=1e-5)
    assert float(bounds.lower) <= float(bounds.upper)


def test_a_convolution_counts_with_its_own_norm():
    operator = {"conv": optax_igr.conv_operator((6, 6), padding="CIRCULAR"), "bias": None}
    params = {"conv": jnp.ones([3, 3, 1, 1], jnp.float64), "bias": jnp.ones([1])}

    def model(params, x):
        wrapped = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
        return jax.lax.conv_general_dilated(
            wrapped, params["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    inputs = jax.random.normal(jax.random.key(0), (2, 6, 6, 1), jnp.float64)
    bounds = lipschitz_bounds(model, params, inputs, operator=operator, activation_constant=1.5)
    assert float(bounds.upper) == pytest.approx(13.5, rel=1e-10)
    assert float(bounds.lower) == pytest.approx(9, rel=1e-8)


def test_progress_counts_the_steps():
    seen = []
    lipschitz_bounds(
        linear, [jnp.eye(2)], jnp.eye(2), num_steps=3, progress=lambda *done: seen.append(done)
    )
    jax.effects_barrier()
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("params", "operator", "message"),
    [
        ({"norm": {"scale": jnp.ones([3])}}, None, r"\['norm'\]\['scale'\].*normalisation"),
        ({"w": jnp.ones([2, 3, 3])}, None, "more than two axes"),
        ({"w": jnp.ones([2, 3, 3])}, optax_igr.matrix_operator(), "stack of matrices"),
    ],
)
def test_what_has_no_known_norm_is_named(params, operator, message):
    with pytest.raises(ValueError, match=f"lipschitz_bounds: .*{message}"):
        lipschitz_bounds(lambda p, x: x, params, jnp.ones([1, 3]), operator=operator)
