"""The learned gain against its closed forms, the derivative of the next loss, and the law of its noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from tests.problems import tanh_network

NETWORK = tanh_network(dtype=jnp.float64)
RATE = 0.01


def log_gains(transform, gradients):
    """The log-gain after each of the gradients, which stand along the first axis."""

    def step(state, gradient):
        _, state = transform.update(gradient, state)
        return state, state.log_gain

    return jax.lax.scan(step, transform.init(gradients[0]), gradients)[1]


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_the_log_gain_is_the_sum_of_products_of_consecutive_gradients():
    gradients = normal(7, 5)
    found = log_gains(optax_igr.scale_by_gain(RATE), gradients)
    expected = RATE * jnp.cumsum(gradients[:-1] * gradients[1:], axis=0)
    np.testing.assert_allclose(found[0], 0)
    np.testing.assert_allclose(found[1:], expected, rtol=1e-12)


def test_the_update_takes_the_gain_that_this_gradient_has_moved():
    transform = optax_igr.scale_by_gain(RATE)
    state = transform.init(jnp.zeros(2))
    _, state = transform.update(jnp.array([2.0, 3.0]), state)
    updates, _ = transform.update(jnp.array([5.0, -7.0]), state)
    np.testing.assert_allclose(updates, [5 * np.exp(0.1), -7 * np.exp(-0.21)], rtol=1e-12)


@pytest.mark.parametrize("alternating", [False, True], ids=["constant", "alternating"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_constant_and_alternating_gradients_in_closed_form(ema, alternating):
    # The bias-corrected average of ±g is ±g (1-b)/(1+b) (1 - (-b)^t)/(1 - b^t); that of a constant is the constant.
    num_steps, g = 12, 1.7
    t = np.arange(1, num_steps)
    sign = -1 if alternating else 1
    gradients = jnp.asarray(g * float(sign) ** np.arange(num_steps))
    found = log_gains(optax_igr.scale_by_gain(RATE, ema=ema), gradients)
    agreement = np.ones(t.size)
    if alternating:
        agreement = -(1 - ema) / (1 + ema) * (1 - (-ema) ** t) / (1 - ema**t)
    np.testing.assert_allclose(found[1:], RATE * g**2 * np.cumsum(agreement), rtol=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_sign_form_has_its_full_rate_on_alternating_gradients(ema):
    gradients = jnp.asarray(1e-30 * (-1.0) ** np.arange(12), jnp.float32)
    found = log_gains(optax_igr.scale_by_gain(RATE, signal="sign", ema=ema), gradients)
    np.testing.assert_allclose(found, -RATE * np.arange(12), rtol=1e-5)


def test_the_normalized_form_has_the_cosine_as_its_mean():
    first, second = normal(2, 6)
    found = log_gains(
        optax_igr.scale_by_gain(RATE, signal="normalized"), jnp.stack([first, second])
    )
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    np.testing.assert_allclose(found[1], RATE * 6 * first * second / norms, rtol=1e-12)
    np.testing.assert_allclose(found[1].mean(), RATE * (first @ second) / norms, rtol=1e-12)


def test_a_complex_entry_counts_by_the_inner_product_of_its_parts():
    first, second = normal(2, 6, 2)
    z = jnp.stack([first, second]) @ jnp.array([1, 1j])
    inner = np.sum(first * second, axis=1)

    def moved(signal):
        return log_gains(optax_igr.scale_by_gain(RATE, signal=signal), z)[1] / RATE

    np.testing.assert_allclose(moved("product"), inner, rtol=1e-12)
    np.testing.assert_allclose(moved("sign"), np.sign(inner), rtol=1e-12)
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    np.testing.assert_allclose(moved("normalized"), 6 * inner / norms, rtol=1e-12)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_the_product_is_the_derivative_of_the_next_loss(momentum):
    # ∂L(θ - η (μ v + ν ⊙ g))/∂ log ν = -η ν ⊙ g ⊙ g_next: the raw rule with γη, at ν = 1, momentum behind it or not.
    params, learning_rate = NETWORK.params, 0.1
    inner = optax.sgd(learning_rate, momentum=momentum)
    gradient = jax.grad(NETWORK.value_fn)(params)
    used = inner.update(jax.tree.map(jnp.cos, params), inner.init(params))[1]

    def next_params(log_gain):
        scaled = jax.tree.map(lambda n, g: jnp.exp(n) * g, log_gain, gradient)
        return optax.apply_updates(params, inner.update(scaled, used)[0])

    zeros = jax.tree.map(jnp.zeros_like, params)
    derivative = jax.grad(lambda n: NETWORK.value_fn(next_params(n)))(zeros)
    transform = optax_igr.scale_by_gain(RATE * learning_rate)
    _, state = transform.update(gradient, transform.init(params))
    _, state = transform.update(jax.grad(NETWORK.value_fn)(next_params(zeros)), state)
    jax.tree.map(
        lambda found, d: np.testing.assert_allclose(found, -RATE * d, rtol=1e-9, atol=1e-15),
        state.log_gain,
        derivative,
    )


@pytest.mark.parametrize("signal", ["sign", "normalized"])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_scaled_loss_with_an_inversely_scaled_rate_moves_alike(signal, scale):
    def trained(scale):
        gain = optax_igr.scale_by_gain(0.1, signal=signal, ema=0.5, decay=0.01)
        return descend(optax.chain(gain, optax.sgd(0.1 / scale)), scale, 20)

    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12),
        trained(scale),
        trained(1.0),
    )


def test_the_raw_form_sees_the_scale_of_the_loss():
    def trained(scale):
        return descend(optax.chain(optax_igr.scale_by_gain(0.1), optax.sgd(0.1 / scale)), scale, 20)

    assert np.abs(trained(10.0)[0]["kernel"] - trained(1.0)[0]["kernel"]).max() > 1e-3


def descend(optimizer, scale, num_steps):
    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda p: scale * NETWORK.value_fn(p))(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)[0][0]

    return run(NETWORK.params)


@pytest.mark.parametrize("signal", ["product", "sign", "normalized"])
def test_rate_zero_passes_the_updates_bit_for_bit(signal):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), NETWORK.params)
    transform = optax_igr.scale_by_gain(0.0, signal=signal, ema=0.9)
    state = transform.init(params)
    for seed in range(3):
        gradients = jax.tree.map(lambda p, s=seed: normal(*p.shape, seed=s).astype(p.dtype), params)
        updates, state = transform.update(gradients, state)
        jax.tree.map(np.testing.assert_array_equal, updates, gradients)


def test_noise_is_a_random_walk_and_a_decay_makes_it_stationary():
    # Products of independent N(0, σ²): uncorrelated, of variance σ⁴. 4000 coordinates: ±2.2 % in one σ.
    num_steps, sigma, decay = 200, 1.5, 0.05
    gradients = sigma * normal(num_steps + 1, 4000)
    walk = log_gains(optax_igr.scale_by_gain(RATE), gradients)[-1]
    assert walk.var() == pytest.approx(RATE**2 * sigma**4 * num_steps, rel=0.08)
    stationary = log_gains(optax_igr.scale_by_gain(RATE, signal="sign", decay=decay), gradients)
    expected = RATE**2 / (1 - (1 - decay) ** 2)
    assert stationary[-1].var() == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("signal", ["product", "sign", "normalized"])
@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, 1e30])
def test_the_state_stays_finite_from_a_broken_first_gradient_on(signal, bad):
    transform = optax_igr.scale_by_gain(0.1, signal=signal, ema=0.9)
    state = transform.init(jnp.zeros(3, jnp.float32))
    for gradient in ([bad, 1, 1], [1, bad, 1], [1, 1, 1], [1, 1, 1]):
        updates, state = transform.update(jnp.array(gradient, jnp.float32), state)
        assert jnp.isfinite(state.log_gain).all()
        assert jnp.isfinite(state.average).all()
    assert jnp.isfinite(updates).all()
    if bad != 1e30:  # a finite gradient, which the average remembers
        assert state.log_gain[2] > 0


@pytest.mark.parametrize("signal", ["product", "sign", "normalized"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_entry_that_is_not_finite_leaves_its_gain(signal, bad):
    transform = optax_igr.scale_by_gain(0.1, signal=signal)
    _, before = transform.update(jnp.ones(3), transform.init(jnp.zeros(3)))
    _, after = transform.update(jnp.array([bad, 1, 1]), before)
    assert after.log_gain[0] == before.log_gain[0] == 0
    assert signal == "normalized" or after.log_gain[1] == pytest.approx(0.1)


def test_bounds_hold_and_without_them_the_gain_stays_finite():
    gradients = jnp.full((90, 1), 10.0, jnp.float32)
    bounded = log_gains(optax_igr.scale_by_gain(0.1, bounds=(0.5, 4.0)), gradients)
    np.testing.assert_allclose(bounded[-1], np.log(4), rtol=1e-6)
    for bounds in (None, (1e-40, 1e40)):
        transform = optax_igr.scale_by_gain(1e3, bounds=bounds)
        assert log_gains(transform, gradients)[-1] == 80
    assert log_gains(optax_igr.scale_by_gain(-0.1, bounds=(0.5, 4.0)), gradients)[-1] == (
        pytest.approx(np.log(0.5))
    )


def test_reads_the_raw_gradient_from_grad_and_scales_the_updates():
    transform = optax_igr.scale_by_gain(RATE)
    state = transform.init(jnp.zeros(2))
    for gradient in ([1.0, 2.0], [3.0, -4.0]):
        updates, state = transform.update(jnp.ones(2), state, grad=jnp.array(gradient))
    np.testing.assert_allclose(updates, np.exp([0.03, -0.08]), rtol=1e-12)
    assert optax.tree.get(state, "log_gain") is state.log_gain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signal": "cosine"}, "signal.*'product', 'sign', 'normalized'"),
        ({"ema": 1.0}, "ema.*< 1"),
        ({"decay": -0.1}, "decay.*>= 0"),
        ({"bounds": (2.0, 1.0)}, "bounds.*low <= high"),
        ({"bounds": 3.0}, "bounds.*pair"),
        ({"gain_rate": "fast"}, "gain_rate"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=f"scale_by_gain.*{message}"):
        optax_igr.scale_by_gain(**{"gain_rate": 0.1, **arguments})


@pytest.mark.parametrize("signal", ["product", "sign", "normalized"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("size", [1e6, 1e15])
def test_one_gradient_that_is_far_too_large_leaves_the_gain_in_reach(signal, ema, size):
    transform = optax_igr.scale_by_gain(0.01, signal=signal, ema=ema)
    normal = np.tile(np.array([1.0, -0.5, 2.0, 1.0], np.float32), (200, 1))
    spiked = normal.copy()
    spiked[50] *= size * np.array([1, -1, 1, -1], np.float32)
    found, expected = (np.asarray(log_gains(transform, jnp.asarray(g))) for g in (spiked, normal))
    assert np.abs(np.diff(found, axis=0)).max() <= 1 + 1e-5
    # Two moves of one each, and what the average of nine in ten still holds of them.
    assert np.abs(found[-1] - expected[-1]).max() < (3.5 if signal != "sign" else 7)
    # The last steps are those of an undisturbed run: the signs of an average take 330 steps to forget 1e15.
    if signal == "product":
        np.testing.assert_allclose(
            np.diff(found, axis=0)[-1], np.diff(expected, axis=0)[-1], rtol=0.01
        )


BOUNDARIES = {"zero": 0.0, "one": 1.0, "above": 7.0, "below": -1.0, "nan": np.nan, "inf": np.inf}


@pytest.mark.parametrize("boundary", BOUNDARIES.values(), ids=BOUNDARIES)
@pytest.mark.parametrize("name", ["gain_rate", "ema", "decay"])
def test_a_schedule_at_its_boundary_leaves_no_trace(name, boundary):
    good = {"gain_rate": 0.01, "ema": 0.5, "decay": 0.1}

    def run(value):
        schedule = lambda t: jnp.where(t == 0, value, good[name])  # noqa: E731
        transform = optax_igr.scale_by_gain(**{**good, name: schedule}, signal="sign")
        return log_gains(transform, jnp.ones((300, 2), jnp.float32))

    found = run(boundary)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[-1], run(good[name])[-1], atol=1e-4)


def test_a_rate_that_starts_at_infinity_is_left_out():
    """`1e-3 / t` at t = 0 made every log-gain NaN for ever."""
    transform = optax_igr.scale_by_gain(lambda t: 1e-3 / t)
    found = log_gains(transform, jnp.full((5, 1), 2.0, jnp.float32))
    # The first gradient has none before it; then 4e-3 / t.
    np.testing.assert_allclose(
        found[:, 0], [0, *(4e-3 * np.cumsum(1 / np.arange(1, 5)))], rtol=1e-5
    )
