import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr as igr

WEIGHTS = np.array([-3.0, -0.02, 0.5, 40.0])
EXPONENT = np.array([1.0, -2.0, 0.5, -0.1])


def step(optimizer, params, update):
    updates, _ = jax.jit(optimizer.update)(update, optimizer.init(params), params)
    return optax.apply_updates(params, updates)


def test_the_magnitude_moves_by_the_update_along_the_sign():
    stepped = step(igr.exponentiate_signed(), jnp.asarray(WEIGHTS), jnp.asarray(EXPONENT))
    np.testing.assert_allclose(stepped, WEIGHTS * np.exp(np.sign(WEIGHTS) * EXPONENT), rtol=1e-13)


def test_positive_weights_move_as_under_exponentiate_and_negative_ones_as_their_mirror():
    weights, exponent = jnp.abs(jnp.asarray(WEIGHTS)), jnp.asarray(EXPONENT)
    positive = step(igr.exponentiate(), weights, exponent)
    np.testing.assert_array_equal(step(igr.exponentiate_signed(), weights, exponent), positive)
    np.testing.assert_array_equal(step(igr.exponentiate_signed(), -weights, -exponent), -positive)


def test_decay_in_the_update_shrinks_both_signs():
    decay = optax.chain(
        optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(0.5), igr.exponentiate_signed()
    )
    stepped = step(decay, jnp.asarray(WEIGHTS), jnp.zeros(4))
    np.testing.assert_allclose(stepped, WEIGHTS * np.exp(-0.05 * np.abs(WEIGHTS)), rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_no_weight_changes_its_sign_or_dies_or_overflows(dtype):
    optimizer = igr.exponentiate_signed()
    params = jnp.array([-1.0, 0.3, -20.0], dtype)
    sign = jnp.sign(params)
    for exponent in (-20.0, 1e30, -1e30, 1e30, -1.0, jnp.nan, jnp.inf):
        params = step(optimizer, params, jnp.full(3, exponent, jnp.float32))
        assert params.dtype == dtype
        assert jnp.all(jnp.isfinite(params))
        np.testing.assert_array_equal(jnp.sign(params), sign)


def test_a_floor_keeps_the_magnitude_and_gives_a_zero_the_sign_of_its_update():
    optimizer = igr.exponentiate_signed(floor=0.1)
    params = jnp.array([0.0, 0.0, 0.0, -1.0, 1.0], jnp.float32)
    stepped = step(optimizer, params, jnp.array([2.0, -2.0, 0.0, 9.0, -9.0], jnp.float32))
    np.testing.assert_allclose(stepped, [0.1, -0.1, 0.0, -0.1, 0.1], rtol=1e-6)
    without = step(igr.exponentiate_signed(), params, jnp.full(5, 1.0, jnp.float32))
    np.testing.assert_array_equal(without[:3], 0)


def test_a_leaf_of_zeros_is_named():
    params = {"kernel": jnp.ones([2, 2]), "bias": jnp.zeros(2)}
    with pytest.raises(
        ValueError, match=r"exponentiate_signed: params\['bias'\] is all zeros.*floor"
    ):
        igr.exponentiate_signed().init(params)
    igr.exponentiate_signed(floor=0.01).init(params)
    jax.jit(igr.exponentiate_signed().init)(params)


def test_missing_parameters_are_named():
    optimizer = igr.exponentiate_signed()
    with pytest.raises(ValueError, match="exponentiate_signed needs the current parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
