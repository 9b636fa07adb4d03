import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr as igr
from optax_igr.geometry.exponentiate_hypentropy import hypentropy_step

WEIGHTS = np.array([-3.0, -0.02, 0.0, 0.5, 40.0])
GRADIENT = np.array([1.0, -2.0, 0.5, 3.0, -0.1])


def descend(optimizer, gradient_fn, params, num_steps):
    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(gradient_fn(params), state, params)
        return optax.apply_updates(params, updates), state

    carry = (params, optimizer.init(params))
    return jax.jit(lambda c: jax.lax.fori_loop(0, num_steps, step, c))(carry)[0]


def hypentropy(learning_rate, beta):
    return optax.chain(
        optax.scale_by_learning_rate(learning_rate), igr.exponentiate_hypentropy(beta)
    )


@pytest.mark.parametrize("beta", [0.01, 1.0, 30.0])
def test_the_mirror_image_moves_by_the_update_itself(beta):
    stepped = descend(
        hypentropy(0.3, beta), lambda w: jnp.asarray(GRADIENT), jnp.asarray(WEIGHTS), 1
    )
    np.testing.assert_allclose(
        np.arcsinh(stepped / beta), np.arcsinh(WEIGHTS / beta) - 0.3 * GRADIENT, rtol=1e-12
    )


def test_it_equals_unnormalized_eg_plus_minus_with_a_constant_product():
    beta, learning_rate = 0.3, 0.05
    target = jnp.array([1.0, -2.0, 0.0, 0.4, 3.0])

    def gradient(w):
        return (w - target) + 0.3 * jnp.roll(w - target, 1)

    w = jnp.asarray(WEIGHTS)
    root = jnp.sqrt(w**2 + beta**2)
    pair = {"plus": (root + w) / 2, "minus": (root - w) / 2}

    def pair_gradient(pair):
        g = gradient(pair["plus"] - pair["minus"])
        return {"plus": g, "minus": -g}

    both = optax.chain(optax.scale_by_learning_rate(learning_rate), igr.exponentiate())
    stepped = descend(both, pair_gradient, pair, 100)
    np.testing.assert_allclose(stepped["plus"] * stepped["minus"], beta**2 / 4, rtol=1e-11)
    np.testing.assert_allclose(
        descend(hypentropy(learning_rate, beta), gradient, w, 100),
        stepped["plus"] - stepped["minus"],
        atol=1e-11,
    )


def test_a_large_beta_is_gradient_descent_at_beta_times_the_rate():
    beta = 1e5
    stepped = descend(hypentropy(0.3 / beta, beta), lambda w: 0.1 * w + 1, jnp.asarray(WEIGHTS), 20)
    additive = descend(optax.sgd(0.3), lambda w: 0.1 * w + 1, jnp.asarray(WEIGHTS), 20)
    np.testing.assert_allclose(stepped, additive, rtol=1e-6)


@pytest.mark.parametrize("beta", [1e-3, 1.0])
def test_no_digits_are_lost_in_float32_on_any_path(beta):
    weights, exponents = np.meshgrid(
        np.array([-1e4, -3.0, -1e-5, 0.0, 1e-5, 3.0, 1e4]),
        np.array([-25.0, -5.0, -1e-6, 1e-6, 5.0, 25.0]),
    )
    weights, exponents = weights.astype(np.float32), exponents.astype(np.float32)
    step = hypentropy_step(jnp.asarray(weights), jnp.asarray(exponents), np.float32(beta))
    # sinh(a + u) - sinh(a) as a product, in which nothing cancels.
    start = np.arcsinh(np.longdouble(weights) / np.longdouble(np.float32(beta)))
    half = np.longdouble(exponents) / 2
    exact = 2 * np.longdouble(np.float32(beta)) * np.cosh(start + half) * np.sinh(half)
    np.testing.assert_allclose(np.float64(step), np.float64(exact), rtol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_an_overflow_saturates_and_comes_back_and_a_bad_entry_stays(dtype):
    optimizer = igr.exponentiate_hypentropy(0.5)
    params = jnp.array([1.0, -1.0, 0.25], dtype)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for exponent in (1e30, 1e30, -1.0, jnp.nan):
        updates, state = update(jnp.array([1, -1, jnp.nan]) * exponent, state, params)
        assert updates.dtype == dtype
        previous, params = params, optax.apply_updates(params, updates)
        assert jnp.all(jnp.isfinite(params))
    np.testing.assert_array_equal(params, previous)
    assert params[0] > 1e2
    assert params[1] == -params[0]
    assert params[2] == 0.25


def test_the_update_is_fused_and_needs_no_state():
    params = jnp.ones([256, 512], jnp.float32)
    optimizer = hypentropy(0.1, 1.0)
    assert not jax.tree.leaves(optimizer.init(params))

    def step(params, gradient):
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    compiled = jax.jit(step, donate_argnums=0).lower(params, params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.01 * params.nbytes


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"exponentiate_hypentropy: `beta` must be .* > 0"):
        igr.exponentiate_hypentropy(0.0)
    with pytest.raises(
        ValueError, match=r"exponentiate_hypentropy: params\['z'\] must be of a real"
    ):
        igr.exponentiate_hypentropy().init({"z": jnp.ones(2, jnp.complex64)})
    optimizer = igr.exponentiate_hypentropy()
    with pytest.raises(ValueError, match="exponentiate_hypentropy needs the current parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
