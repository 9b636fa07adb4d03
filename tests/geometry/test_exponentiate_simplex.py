import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr as igr
from optax_igr._core import trees
from optax_igr.geometry import exponentiate_simplex as public_name

KEYS = jax.random.split(jax.random.key(0), 4)
WEIGHTS = jax.nn.softmax(2 * jax.random.normal(KEYS[0], (12,)))
GRADIENT = jax.random.normal(KEYS[1], (12,))


def on_simplex(learning_rate, **options):
    return optax.chain(
        optax.scale_by_learning_rate(learning_rate), igr.exponentiate_simplex(**options)
    )


def step(optimizer, params, gradient):
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    return optax.apply_updates(params, updates)


def divergence(u, w):
    return jnp.sum(u * jnp.log(u / w))


@pytest.mark.parametrize("log_state", [False, True])
def test_the_divergence_to_any_point_changes_by_the_identity_of_the_paper(log_state):
    u = jax.nn.softmax(jax.random.normal(KEYS[2], (12,)))
    w = WEIGHTS
    stepped = step(on_simplex(0.7, log_state=log_state), w, GRADIENT)
    log_z = jnp.log(jnp.sum(w * jnp.exp(-0.7 * GRADIENT)))
    np.testing.assert_allclose(
        divergence(u, w) - divergence(u, stepped), -0.7 * GRADIENT @ u - log_z, atol=1e-12
    )


def test_the_step_minimizes_linear_loss_plus_divergence_on_the_simplex():
    stepped = step(on_simplex(0.7), WEIGHTS, GRADIENT)

    def objective(w):
        return 0.7 * GRADIENT @ w + divergence(w, WEIGHTS)

    # On the simplex a gradient that is the same in every direction is stationary.
    slope = jax.grad(objective)(stepped)
    np.testing.assert_allclose(slope, slope.mean(), atol=1e-13)
    rivals = jax.nn.softmax(jnp.log(stepped)[None] + 0.1 * jax.random.normal(KEYS[3], (20, 12)))
    assert all(objective(rival) > objective(stepped) for rival in rivals)


@pytest.mark.parametrize("log_state", [False, True])
def test_a_constant_added_to_the_gradient_changes_nothing(log_state):
    optimizer = on_simplex(0.7, log_state=log_state)
    plain = step(optimizer, WEIGHTS, GRADIENT)
    np.testing.assert_allclose(step(optimizer, WEIGHTS, GRADIENT + 5), plain, rtol=1e-13)
    narrow = jnp.float32(WEIGHTS)
    shifted = step(optimizer, narrow, jnp.float32(GRADIENT) + 4096)
    rounded = jnp.float32(GRADIENT) + 4096 - 4096
    np.testing.assert_allclose(shifted, step(optimizer, narrow, rounded), rtol=2e-4)
    assert abs(shifted.sum() - 1) < 1e-6


@pytest.mark.parametrize(("num_experts", "num_steps"), [(2, 1000), (10, 1000), (1000, 5000)])
def test_the_regret_of_hedge_is_below_its_bound(num_experts, num_steps):
    learning_rate = np.sqrt(8 * np.log(num_experts) / num_steps)
    losses = jax.random.bernoulli(KEYS[2], 0.5, (num_steps, num_experts)).astype(jnp.float32)
    optimizer = on_simplex(learning_rate)
    params = jnp.full(num_experts, 1 / num_experts, jnp.float32)

    def play(carry, loss):
        params, state = carry
        updates, state = optimizer.update(loss, state, params)
        return (optax.apply_updates(params, updates), state), loss @ params

    _, incurred = jax.jit(functools.partial(jax.lax.scan, play))(
        (params, optimizer.init(params)), losses
    )
    regret = incurred.sum() - losses.sum(0).min()
    bound = np.sqrt(num_steps * np.log(num_experts) / 2)
    # Half of the bound is what random losses cost; a wrong learning rate by four costs more than the bound.
    assert 0.2 * bound < regret <= bound


@pytest.mark.usefixtures("optimized_compilation")
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2.0**-6)])
@pytest.mark.parametrize("log_state", [False, True])
def test_the_sum_does_not_drift_in_twenty_thousand_steps_at_any_rate(dtype, tolerance, log_state):
    # From steps that move a weight by half of itself to those that move all of it to another.
    rates = jnp.array([[0.3], [2.0], [10.0]], dtype)
    optimizer = igr.exponentiate_simplex(log_state=log_state)
    params = jnp.full([3, 1000], 1e-3, dtype)
    state = optimizer.init(params)

    def walk(carry, key):
        params, state, worst = carry
        # Of the weights as they were stored: within a step XLA may keep the digits that their dtype drops.
        worst = jnp.maximum(worst, jnp.abs(jnp.sum(params.astype(jnp.float64), -1) - 1))
        updates = rates * jax.random.normal(key, params.shape, dtype)
        updates, state = optimizer.update(updates, state, params)
        return (optax.apply_updates(params, updates), state, worst), None

    keys = jax.random.split(jax.random.key(1, impl="rbg"), 20_000)
    (params, _, worst), _ = jax.jit(functools.partial(jax.lax.scan, walk))(
        (params, state, jnp.zeros(3)), keys
    )
    # A jump by a factor of e^64 passes through a logarithm whose last place is worth 4e-6 of a weight.
    jump = 5e-6 if log_state else 0
    assert jnp.all(worst < tolerance + jnp.array([0, 0, jump]))
    # Half of a weight's rounding, unless a weight jumps.
    assert worst[0] < 2.0**-8
    assert params.min() > 0
    assert params.max() > 0.1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("log_state", [False, True])
def test_no_finite_gradient_makes_a_weight_negative_or_the_sum_wrong(dtype, log_state):
    optimizer = igr.exponentiate_simplex(log_state=log_state)
    params = WEIGHTS.astype(dtype)
    params = igr.projection_simplex_kl(params)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for size in (1.0, 1e2, 1e4, 1e30, 1e30):
        exponent = size * jax.random.normal(jax.random.key(int(size) % 7), (12,))
        exponent = exponent.astype(trees.widened(dtype))
        updates, state = update(exponent, state, params)
        params = optax.apply_updates(params, updates)
        assert updates.dtype == dtype
        assert jnp.all((params > 0) & jnp.isfinite(params))
        unit = float(jnp.finfo(dtype).eps)
        # Twice the rounding of one weight: a weight that falls ends at the edge of its reach.
        assert abs(jnp.sum(params.astype(jnp.float64)) - 1) < max(2 * unit, 8e-7)


def test_a_weight_of_any_size_may_win():
    # A sum that lost the smaller terms would keep the old winner, or make NaN of the group.
    weights = jnp.array([1.0, 1e-36, 1e-30], jnp.float32)
    exponent = jnp.array([0.0, 90.0, 60.0], jnp.float32)
    expected = np.float64(weights) * np.exp(np.float64(exponent))
    stepped = step(igr.exponentiate_simplex(), weights, exponent)
    np.testing.assert_allclose(stepped, expected / expected.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("axis", "log_state"),
    [(0, False), (-1, True), ((0, 2), False), ((1, -1), True), (None, False)],
)
def test_any_axis_and_total(axis, log_state):
    x = jnp.exp(jax.random.normal(KEYS[2], (2, 3, 5)))
    weights = 7 * x / x.sum(axis, keepdims=True)
    gradient = jax.random.normal(KEYS[3], (2, 3, 5))
    stepped = step(on_simplex(0.5, axis=axis, total=7.0, log_state=log_state), weights, gradient)
    expected = weights * jnp.exp(-0.5 * gradient)
    np.testing.assert_allclose(
        stepped, 7 * expected / expected.sum(axis, keepdims=True), rtol=1e-12
    )


@pytest.mark.parametrize("log_state", [False, True])
def test_fixed_share_mixes_with_the_uniform_weights(log_state):
    optimizer = on_simplex(0.5, fixed_share=0.1, total=2.0, log_state=log_state)
    stepped = step(optimizer, 2 * WEIGHTS, GRADIENT)
    exponentiated = 2 * jax.nn.softmax(jnp.log(WEIGHTS) - 0.5 * GRADIENT)
    np.testing.assert_allclose(stepped, 0.9 * exponentiated + 0.1 * 2 / 12, rtol=1e-12)
    far = step(optimizer, 2 * WEIGHTS, 1e30 * GRADIENT)
    np.testing.assert_allclose(jnp.sort(far)[:-1], 0.1 * 2 / 12, rtol=1e-12)


def test_fixed_share_may_be_a_schedule():
    shares = optax.piecewise_constant_schedule(0.0, {1: 1.0})
    halves = lambda count: jnp.where(count == 1, 0.5, shares(count))  # noqa: E731
    optimizer = igr.exponentiate_simplex(fixed_share=halves)
    params, state = jnp.array([0.25, 0.75]), optimizer.init(jnp.array([0.25, 0.75]))
    for expected in ([0.25, 0.75], [0.375, 0.625], [0.375, 0.625]):
        updates, state = optimizer.update(jnp.zeros(2), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, expected, rtol=1e-12)


def test_bfloat16_weights_follow_small_steps_only_with_the_log_state():
    params = WEIGHTS.astype(jnp.bfloat16)
    gradient = GRADIENT.astype(jnp.float32)

    def follow(optimizer):
        def body(_, carry):
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        return jax.jit(lambda c: jax.lax.fori_loop(0, 1000, body, c))(
            (params, optimizer.init(params))
        )[0].astype(jnp.float64)

    start = igr.projection_simplex_kl(params.astype(jnp.float64))
    expected = jax.nn.softmax(jnp.log(start) - 1000 * 1e-3 * GRADIENT)
    np.testing.assert_allclose(follow(on_simplex(1e-3, log_state=True)), expected, rtol=2**-7)
    lost = follow(on_simplex(1e-3))
    assert jnp.max(jnp.abs(lost / expected - 1)) > 0.3


def test_exponentiation_followed_by_the_projection_is_the_same_step():
    two_links = optax.chain(
        optax.scale_by_learning_rate(0.7),
        igr.exponentiate(),
        igr.keep_params_in(igr.projection_simplex_kl),
    )
    np.testing.assert_allclose(
        step(two_links, WEIGHTS, GRADIENT), step(on_simplex(0.7), WEIGHTS, GRADIENT), rtol=1e-12
    )


@pytest.mark.parametrize("log_state", [False, True])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_only_the_group_of_an_entry_that_is_not_finite_stays(bad, log_state):
    optimizer = igr.exponentiate_simplex(log_state=log_state)
    params = jnp.array([[0.3, 0.7], [0.4, 0.6]], jnp.float32)
    state = optimizer.init(params)
    exponent = jnp.array([[bad, 1.0], [1.0, 0.0]], jnp.float32)
    for _ in range(2):
        updates, state = jax.jit(optimizer.update)(exponent, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params[0], [0.3, 0.7], rtol=1e-6)
    odds = 0.4 / 0.6 * np.exp(2)
    np.testing.assert_allclose(params[1], [odds / (1 + odds), 1 / (1 + odds)], rtol=1e-6)


def test_a_zero_weight_is_a_structure_that_stays():
    params = jnp.array([0.0, 0.5, 0.5], jnp.float32)
    stepped = step(igr.exponentiate_simplex(), params, jnp.array([3.0, 1.0, 0.0], jnp.float32))
    np.testing.assert_allclose(stepped, [0, np.e / (1 + np.e), 1 / (1 + np.e)], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "params", "message"),
    [
        (
            {},
            {"mix": jnp.array([0.5, 0.6])},
            r"\['mix'\] has a sum of 1.1 along axis -1, expected 1",
        ),
        (
            {"total": 2.0},
            [jnp.array([0.5, 0.5])],
            r"\[0\] has a sum of 1 along axis -1, expected 2",
        ),
        ({}, {"mix": jnp.array([1.5, -0.5])}, r"\['mix'\] has a negative weight, -0.5"),
        ({"axis": 1}, {"mix": jnp.array([0.5, 0.5])}, r"\['mix'\] of shape \[2\] has no axis 1"),
        ({}, {"gate": jnp.array(1.0)}, r"\['gate'\] of shape \[\] has no axis -1"),
    ],
)
def test_parameters_outside_the_domain_are_named(options, params, message):
    with pytest.raises(ValueError, match="exponentiate_simplex: params" + message):
        igr.exponentiate_simplex(**options).init(params)


def test_rounded_weights_are_in_the_domain():
    optimizer = igr.exponentiate_simplex()
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        rounded = jnp.full([3, 1000], 1e-3, dtype)
        assert not np.any(np.sum(rounded, axis=-1, dtype=np.float64) == 1)
        updates, _ = optimizer.update(jnp.zeros_like(rounded), optimizer.init(rounded), rounded)
        spacing = float(jnp.finfo(dtype).eps) * 1e-3
        np.testing.assert_allclose(np.asarray(updates, np.float64), 0, atol=spacing)
        with pytest.raises(ValueError, match=r"has a sum of 1\.0"):
            optimizer.init(rounded * jnp.asarray(1 + 1 / 32, dtype))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": 1.5}, "`axis` must be an integer"),
        ({"axis": ()}, "`axis` must be an integer"),
        ({"total": 0.0}, r"`total` must be .* > 0"),
        ({"fixed_share": 1.0}, r"`fixed_share` must be .* < 1"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        igr.exponentiate_simplex(**options)


def test_hyperparameters_may_be_injected():
    assert public_name is igr.exponentiate_simplex
    optimizer = optax.inject_hyperparams(igr.exponentiate_simplex, static_args=("axis",))(
        total=2.0, fixed_share=0.1
    )
    params = jnp.array([0.5, 1.5], jnp.float32)
    state = optimizer.init(params)
    updates, state = jax.jit(optimizer.update)(jnp.zeros(2, jnp.float32), state, params)
    np.testing.assert_allclose(params + updates, [0.55, 1.45], rtol=1e-6)
    with pytest.raises(ValueError, match="name it in `static_args`"):
        optax.inject_hyperparams(igr.exponentiate_simplex)().init(params)


def test_a_donated_step_needs_at_most_the_copy_that_a_softmax_needs():
    params = jnp.full([256, 512], 1 / 512, jnp.float32)
    optimizer = on_simplex(0.1)
    state = optimizer.init(params)

    def train(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def temporary(fn, *args):
        compiled = jax.jit(fn, donate_argnums=0).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    softmax = temporary(jax.nn.softmax, params)
    assert temporary(train, params, state, params) <= softmax + 0.02 * params.nbytes


CENTERED = optax.stateless(lambda g, w: g - jnp.sum(w * g) / jnp.sum(w))
SAMPLES = jax.random.normal(jax.random.key(0), (40, 20))
SLOPES = 0.3 * jax.random.normal(jax.random.key(1), (20,))


def quadratic(w):
    return 10 * jnp.mean((SAMPLES @ w) ** 2) - SLOPES @ w + 3


def fall(direction, rate, num_steps=500):
    """Returns the change of the loss in so many steps from uniform weights."""

    def step(carry, _):
        w, state = carry
        u, state = direction.update(jax.grad(quadratic)(w), state, w)
        u, _ = igr.exponentiate_simplex().update(-rate * u, simplex_state, w)
        return (optax.apply_updates(w, u), state), None

    start = jnp.full(20, 0.05)
    simplex_state = igr.exponentiate_simplex().init(start)
    (w, _), _ = jax.lax.scan(step, (start, direction.init(start)), length=num_steps)
    return quadratic(w) - quadratic(start)


def test_the_direction_must_keep_what_sets_the_weights_apart():
    """At the minimum the gradient is a constant; what divides each entry by its own size makes all of it one."""
    rates = 10.0 ** jnp.linspace(-2, 1, 7)
    directions = {
        "gradient": optax.identity(),
        "momentum": optax.trace(0.9),
        "adam": optax.scale_by_adam(),
        "centered adam": optax.chain(CENTERED, optax.scale_by_adam()),
    }
    falls = {
        name: np.asarray(jax.jit(jax.vmap(lambda rate, d=d: fall(d, rate)))(rates))
        for name, d in directions.items()
    }
    lowest = min(values.min() for values in falls.values())
    within = {name: int((x <= 0.99 * lowest).sum()) for name, x in falls.items()}
    assert within["gradient"] >= 2
    assert within["momentum"] >= 4
    assert within["adam"] == 0
    assert within["centered adam"] >= 4


def test_adam_moves_no_weight_along_a_gradient_of_one_sign():
    """The first direction of Adam is the sign, and a constant on the simplex is no direction."""
    adam = optax.scale_by_adam(eps=0.0)
    gradient = jnp.array([1.0, 2.0, 3.0, 4.0])
    weights = jnp.full(4, 0.25)
    direction, _ = adam.update(gradient, adam.init(weights), weights)
    stepped = step(igr.exponentiate_simplex(), weights, -direction)
    np.testing.assert_allclose(stepped, weights, rtol=1e-6)


BOUNDARIES = {"zero": 0.0, "one": 1.0, "above": 7.0, "below": -1.0, "nan": np.nan, "inf": np.inf}


@pytest.mark.parametrize("boundary", BOUNDARIES.values(), ids=BOUNDARIES)
@pytest.mark.parametrize("log_state", [False, True])
def test_a_share_out_of_range_is_moved_into_it(boundary, log_state):
    optimizer = igr.exponentiate_simplex(fixed_share=lambda t: boundary, log_state=log_state)
    stepped = step(optimizer, WEIGHTS, jnp.zeros_like(WEIGHTS))
    share = np.clip(boundary, 0, 1) if np.isfinite(boundary) else 0
    expected = (1 - share) * WEIGHTS + share * WEIGHTS.sum() / WEIGHTS.size
    np.testing.assert_allclose(stepped, expected, rtol=1e-5)
