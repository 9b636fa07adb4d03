"""EGDD against a transcription of its definition, and against the parts it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from tests.problems import tanh_network

NETWORK = tanh_network(dtype=jnp.float64)
OPTIONS = {
    "learning_rate": 0.05,
    "momentum": 0.8,
    "ema": 0.7,
    "gain_rate": 0.04,
    "scale_rate": 0.03,
}


def by_definition(params, num_steps, *, use_directions, use_signs):
    """Google's EGDD, tensor by tensor in NumPy; with the bias correction of its unsigned form."""
    params = jax.tree.map(np.asarray, params)
    leaves, treedef = jax.tree.flatten(params)
    v, average = [np.zeros_like(x) for x in leaves], [np.zeros_like(x) for x in leaves]
    gain, scale = [np.ones_like(x) for x in leaves], [1.0 for _ in leaves]
    beta = OPTIONS["ema"]
    gradient_fn = jax.jit(jax.grad(NETWORK.value_fn))
    for t in range(num_steps):
        gradients = jax.tree.leaves(gradient_fn(jax.tree.unflatten(treedef, leaves)))
        for i, g in enumerate(np.asarray(g) for g in gradients):
            inner = np.sum(g * v[i])
            if not use_directions:
                inner *= scale[
                    i
                ]  # the definition leaves it out; with it this is the loss's derivative
            elif t:
                inner /= np.linalg.norm(g) * np.linalg.norm(v[i])
            scale[i] = np.clip(scale[i] * np.exp(OPTIONS["scale_rate"] * inner), 0.1, 10)
            past = average[i] / (1 - beta**t) if t else average[i]
            agreement = np.sign(g) * np.sign(past) if use_signs else g * past
            gain[i] = np.clip(gain[i] * np.exp(OPTIONS["gain_rate"] * agreement), 1e-2, 1e2)
            v[i] = OPTIONS["momentum"] * v[i] + OPTIONS["learning_rate"] * gain[i] * g
            average[i] = beta * average[i] + (1 - beta) * g
            leaves[i] = leaves[i] - scale[i] * v[i]
    return jax.tree.unflatten(treedef, leaves)


def train(optimizer, num_steps, params=NETWORK.params):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(NETWORK.value_fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(num_steps):
        params, state = step(params, state)
    return params, state


def assert_trees_close(x, y, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-9), x, y)


@pytest.mark.parametrize("use_directions", [True, False])
@pytest.mark.parametrize("use_signs", [True, False])
def test_equals_its_definition(use_directions, use_signs):
    optimizer = optax_igr.egdd(
        **OPTIONS,
        gain_signal="sign" if use_signs else "product",
        scale_signal="cosine" if use_directions else "product",
    )
    expected = by_definition(NETWORK.params, 8, use_directions=use_directions, use_signs=use_signs)
    assert_trees_close(train(optimizer, 8)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("granularity", ["tree", "leaf"])
def test_is_the_chain_of_its_parts(granularity):
    parts = optax_igr.adapt_scale(
        optax.chain(
            optax_igr.scale_by_gain(
                OPTIONS["gain_rate"], signal="sign", ema=OPTIONS["ema"], bounds=(1e-2, 1e2)
            ),
            optax.scale_by_learning_rate(OPTIONS["learning_rate"]),
            optax.trace(OPTIONS["momentum"]),
        ),
        OPTIONS["scale_rate"],
        granularity=granularity,
        bounds=(0.1, 10.0),
    )
    whole = optax_igr.egdd(**OPTIONS, granularity=granularity)
    found, state = train(whole, 10)
    expected, expected_state = train(parts, 10)
    assert_trees_close(found, expected, rtol=1e-9)
    assert_trees_close(state.log_scale, expected_state.log_scale, rtol=1e-9)
    assert any(abs(x) > 0.1 for x in jax.tree.leaves(state.log_scale))


def test_without_its_rates_it_is_heavy_ball():
    optimizer = optax_igr.egdd(0.1, momentum=0.9, gain_rate=0.0, scale_rate=0.0)
    heavy_ball = optax.chain(optax.scale_by_learning_rate(0.1), optax.trace(0.9))
    # To rounding: XLA may contract a product and a sum in one of the two programs alone.
    assert_trees_close(train(optimizer, 5)[0], train(heavy_ball, 5)[0], rtol=1e-14)


def test_both_signals_read_the_raw_gradient_and_the_velocity_the_updates():
    optimizer = optax_igr.egdd(**OPTIONS, gain_signal="product", scale_signal="product")
    params, other = jnp.zeros(2), jnp.array([5.0, -3.0])
    update = jax.jit(lambda s, g: optimizer.update(other, s, params, grad=g))
    first, second = jnp.array([2.0, 1.0]), jnp.array([-1.0, 4.0])
    updates, state = update(optimizer.init(params), first)
    velocity = OPTIONS["learning_rate"] * other
    np.testing.assert_allclose(updates, -velocity, rtol=1e-6)
    updates, state = update(state, second)
    log_gain = OPTIONS["gain_rate"] * first * second
    log_scale = OPTIONS["scale_rate"] * velocity @ second
    np.testing.assert_allclose(state.log_gain, log_gain, rtol=1e-6)
    np.testing.assert_allclose(state.log_scale, log_scale, rtol=1e-6)
    velocity = OPTIONS["momentum"] * velocity + OPTIONS["learning_rate"] * jnp.exp(log_gain) * other
    np.testing.assert_allclose(updates, -jnp.exp(log_scale) * velocity, rtol=1e-6)
    average = (1 - OPTIONS["ema"]) * (OPTIONS["ema"] * first + second)
    np.testing.assert_allclose(state.average, average, rtol=1e-6)


def test_gains_and_scale_stay_within_their_own_bounds():
    optimizer = optax_igr.egdd(1e-3, momentum=0.0, gain_rate=1.0, scale_rate=1.0)
    state = optimizer.init(jnp.zeros(2))
    update = jax.jit(optimizer.update)
    gradient = jnp.array([1.0, 0.1])
    for _ in range(8):
        _, state = update(gradient, state)
    np.testing.assert_allclose(state.log_gain, np.log(100), rtol=1e-6)
    np.testing.assert_allclose(state.log_scale, np.log(10), rtol=1e-6)
    sign = -1
    for _ in range(40):
        # The average remembers: the second coordinate turns against it with every gradient.
        gradient = sign * jnp.abs(gradient)
        _, state = update(gradient, state)
        sign = -sign
    np.testing.assert_allclose(state.log_gain, np.log(0.01), rtol=1e-6)
    np.testing.assert_allclose(state.log_scale, np.log(0.1), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_scaled_loss_with_an_inversely_scaled_rate_moves_alike(scale):
    def trained(scale):
        optimizer = optax_igr.egdd(0.1 / scale)
        params, state = NETWORK.params, optimizer.init(NETWORK.params)
        step = jax.jit(
            lambda p, s: optimizer.update(jax.grad(lambda q: scale * NETWORK.value_fn(q))(p), s, p)
        )
        for _ in range(10):
            updates, state = step(params, state)
            params = optax.apply_updates(params, updates)
        return params

    assert_trees_close(trained(scale), trained(1.0), rtol=1e-9)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, 1e30])
def test_the_state_stays_finite_from_a_broken_first_gradient_on(bad):
    optimizer = optax_igr.egdd(0.1)
    params = jnp.ones(3, jnp.float32)
    state = optimizer.init(params)
    for gradient in ([bad, 1, 1], [1, 1, bad], [1, 1, 1]):
        updates, state = optimizer.update(jnp.array(gradient, jnp.float32), state, params)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state))
    assert jnp.isfinite(updates).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, "momentum.*< 1"),
        ({"gain_signal": "cosine"}, "gain_signal"),
        ({"scale_signal": "normalized"}, "scale_signal"),
        ({"scale_bounds": (1.0,)}, "scale_bounds.*pair"),
        ({"granularity": "layer"}, "granularity"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=f"egdd.*{message}"):
        optax_igr.egdd(0.1, **arguments)


BOUNDARIES = {"zero": 0.0, "one": 1.0, "above": 7.0, "below": -1.0, "nan": np.nan, "inf": np.inf}


@pytest.mark.parametrize("boundary", BOUNDARIES.values(), ids=BOUNDARIES)
@pytest.mark.parametrize("name", ["learning_rate", "momentum", "ema", "gain_rate", "scale_rate"])
def test_a_schedule_at_its_boundary_leaves_all_finite_and_learning(name, boundary):
    good = {
        "learning_rate": 0.05,
        "momentum": 0.5,
        "ema": 0.5,
        "gain_rate": 1e-3,
        "scale_rate": 1e-3,
    }
    schedule = lambda t: jnp.where(t == 0, boundary, good[name])  # noqa: E731
    optimizer = optax_igr.egdd(**{**good, name: schedule})

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(params, state, params)
        return (optax.apply_updates(params, updates), state), state

    params = jnp.array([1.0, -2.0], jnp.float32)
    (params, _), states = jax.lax.scan(step, (params, optimizer.init(params)), length=300)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(states))
    assert jnp.sum(params**2) < 1e-4


def test_a_learning_rate_that_is_none_or_no_number_is_an_error():
    for rate in (None, True, 1j, np.nan, np.inf, "0.1"):
        with pytest.raises(ValueError, match=r"egdd.*learning_rate"):
            optax_igr.egdd(rate)


def test_behind_a_clip_one_gradient_that_is_far_too_large_is_forgotten():
    """As the docstring says; without the clip it stays in the momentum for hundreds of steps."""

    def worst_after(optimizer):
        def step(carry, t):
            params, state = carry
            gradient = params * jnp.where(t == 30, 1e15, 1.0)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), jnp.max(jnp.abs(params))

        params = jnp.array([1.0, -2.0], jnp.float32)
        start = (params, optimizer.init(params))
        return jax.lax.scan(step, start, jnp.arange(120))[1][30:]

    optimizer = optax_igr.egdd(0.02)
    clipped = worst_after(optax.chain(optax.clip_by_global_norm(1.0), optimizer))
    assert clipped.max() < 2
    assert clipped[-1] < 0.1
    assert not worst_after(optimizer)[-1] < 0.1
