import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr as igr
from optax_igr._core import trees
from optax_igr.geometry import eg_plus_minus as public_name

KEYS = jax.random.split(jax.random.key(0), 3)
WEIGHTS = 0.1 * jax.random.normal(KEYS[0], (9,))
GRADIENT = jax.random.normal(KEYS[1], (9,))


def step(optimizer, params, gradient):
    updates, state = optimizer.update(gradient, optimizer.init(params), params)
    return optax.apply_updates(params, updates), state


def log_pair(state):
    return state[1].log_positive, state[1].log_negative


def test_it_is_eg_on_the_simplex_of_twice_the_dimension():
    optimizer = igr.eg_plus_minus(0.3, total=3.0)
    positive, negative = (jnp.exp(log) for log in log_pair(optimizer.init(WEIGHTS)))
    np.testing.assert_allclose(positive - negative, WEIGHTS, atol=1e-14)
    np.testing.assert_allclose((positive + negative).sum(), 3, rtol=1e-14)

    doubled = optax.chain(optax.scale_by_learning_rate(0.3), igr.exponentiate_simplex(total=3.0))
    both, _ = step(
        doubled, jnp.concatenate([positive, negative]), jnp.concatenate([GRADIENT, -GRADIENT])
    )
    stepped, state = step(optimizer, WEIGHTS, GRADIENT)
    np.testing.assert_allclose(stepped, both[:9] - both[9:], atol=1e-13)
    np.testing.assert_allclose(jnp.exp(jnp.concatenate(log_pair(state))), both, rtol=1e-12)


def test_zero_weights_start_in_the_middle_of_the_ball():
    stepped, _ = step(igr.eg_plus_minus(0.3, total=2.0), jnp.zeros(9), GRADIENT)
    expected = -2 * jnp.sinh(0.3 * GRADIENT) / jnp.sum(jnp.cosh(0.3 * GRADIENT))
    np.testing.assert_allclose(stepped, expected, rtol=1e-12)


def test_the_sum_and_the_ratio_of_the_products_are_kept():
    optimizer = igr.eg_plus_minus(0.5, total=3.0)
    params, state = WEIGHTS, optimizer.init(WEIGHTS)
    product = sum(log_pair(state))
    update = jax.jit(optimizer.update)
    for key in jax.random.split(KEYS[2], 200):
        updates, state = update(jax.random.normal(key, (9,)), state, params)
        params = optax.apply_updates(params, updates)
    positive, negative = log_pair(state)
    np.testing.assert_allclose((jnp.exp(positive) + jnp.exp(negative)).sum(), 3, rtol=1e-13)
    # The normalization is one common factor: w₊w₋ keeps its proportions over the coordinates.
    drift = (positive + negative) - product
    np.testing.assert_allclose(drift, drift[0], atol=1e-11)
    np.testing.assert_allclose(params, jnp.exp(positive) - jnp.exp(negative), atol=1e-13)
    assert jnp.abs(params).sum() <= 3


def test_each_group_along_an_axis_has_its_own_total():
    optimizer = igr.eg_plus_minus(0.3, total=1.0, axis=0)
    stepped, state = step(optimizer, jnp.zeros([3, 2]), GRADIENT[:6].reshape(3, 2))
    sums = sum(jnp.exp(log).sum(0) for log in log_pair(state))
    np.testing.assert_allclose(sums, [1, 1], rtol=1e-14)
    column, _ = step(igr.eg_plus_minus(0.3, total=1.0), jnp.zeros(3), GRADIENT[:6:2])
    np.testing.assert_allclose(stepped[:, 0], column, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_large_and_bad_gradients_leave_the_state_finite(dtype):
    optimizer = igr.eg_plus_minus(1.0, total=2.0)
    params = jnp.zeros(4, dtype)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for scale in (1.0, 1e30, jnp.nan, -1e30, jnp.inf, 0.0):
        gradient = scale * jnp.array([1.0, -0.5, 0.25, 0.1], trees.widened(dtype))
        updates, state = update(gradient, state, params)
        assert updates.dtype == dtype
        params = optax.apply_updates(params, updates)
        assert jnp.all(jnp.isfinite(params))
        assert all(jnp.all(jnp.isfinite(log)) for log in log_pair(state))
        assert all(log.dtype == jnp.promote_types(dtype, jnp.float32) for log in log_pair(state))
        unit = float(jnp.finfo(dtype).eps)
        assert jnp.abs(params.astype(jnp.float64)).sum() <= 2 + max(4 * unit, 1e-12)
    assert jnp.abs(params[0]) > 1.9


def test_parameters_outside_the_ball_are_named():
    assert public_name is igr.eg_plus_minus
    optimizer = igr.eg_plus_minus(0.1, total=1.0)
    with pytest.raises(ValueError, match=r"params\['w'\] has an l1 norm of 1.5, .* total=1"):
        optimizer.init({"b": jnp.zeros(2), "w": jnp.array([1.0, -0.5])})
    with pytest.raises(ValueError, match=r"`total` must be .* > 0"):
        igr.eg_plus_minus(0.1, total=-1.0)
    with pytest.raises(ValueError, match="eg_plus_minus needs the current parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)))


def test_a_schedule_and_an_injected_rate_are_the_same_as_the_number():
    params = jnp.zeros(9, jnp.float32)
    gradient = GRADIENT.astype(jnp.float32)
    expected, _ = step(igr.eg_plus_minus(0.3, total=2.0), params, gradient)
    schedule = igr.eg_plus_minus(optax.constant_schedule(0.3), total=2.0)
    np.testing.assert_allclose(step(schedule, params, gradient)[0], expected, rtol=1e-6)
    injected = optax.inject_hyperparams(igr.eg_plus_minus)(learning_rate=0.3, total=2.0)
    np.testing.assert_allclose(step(injected, params, gradient)[0], expected, rtol=1e-6)
