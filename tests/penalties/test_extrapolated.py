"""The extrapolated penalty against its recursion written by hand, and in expectation over batches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from tests.problems import tanh_network

NETWORK = tanh_network(dtype=jnp.float64)
SAMPLES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))


def batch_loss(theta, sample):
    """Quadratic in θ with a curvature and a minimum of its own for each batch."""
    return (sample[0] ** 2 + 0.5) / 2 * jnp.sum((theta - sample[1:]) ** 2 * jnp.array([1.0, 3.0]))


def by_hand(inner, coefficients, params, num_steps, value_fn):
    """θ_{t+1} = θ_t + inner(∇L(θ_t + 2 μ_t g_{t-1})), without ever forming the extrapolated loop."""
    state, theta = inner.init(params), params
    previous = jax.tree.map(jnp.zeros_like, params)
    for t in range(num_steps):
        extrapolated = optax.tree.add_scale(theta, 2 * coefficients[t], previous)
        previous = jax.grad(value_fn)(extrapolated)
        updates, state = inner.update(previous, state, theta)
        theta = optax.apply_updates(theta, updates)
    return theta


def in_the_loop(optimizer, params, num_steps, value_fn):
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(value_fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(num_steps):
        params, state = step(params, state)
    return params, state


def assert_trees_close(x, y, rtol=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), x, y)


@pytest.mark.parametrize(
    "inner",
    [optax.sgd(0.1, momentum=0.9), optax.adamw(1e-2, weight_decay=0.1)],
    ids=["momentum", "adamw"],
)
def test_equals_its_recursion(inner):
    # The decay of adamw sees θ, not the extrapolated parameters.
    optimizer = optax_igr.extrapolated_gradient_penalty(inner, 0.05, max_relative_displacement=None)
    params, state = in_the_loop(optimizer, NETWORK.params, 5, NETWORK.value_fn)
    expected = by_hand(inner, [0.05] * 5, NETWORK.params, 5, NETWORK.value_fn)
    assert_trees_close(optax_igr.extrapolation_eval_params(state, params), expected)


def test_step_t_is_penalised_with_the_coefficient_of_t():
    schedule = optax.piecewise_constant_schedule(0.05, {2: 0.2, 3: 0.0})
    optimizer = optax_igr.extrapolated_gradient_penalty(optax.sgd(0.1), schedule)
    params, state = in_the_loop(optimizer, NETWORK.params, 5, NETWORK.value_fn)
    coefficients = [float(schedule(t)) for t in range(5)]
    expected = by_hand(optax.sgd(0.1), coefficients, NETWORK.params, 5, NETWORK.value_fn)
    assert len(set(coefficients)) == 3
    assert_trees_close(optax_igr.extrapolation_eval_params(state, params), expected, rtol=1e-6)


def test_zero_coefficient_is_the_inner_optimizer():
    optimizer = optax_igr.extrapolated_gradient_penalty(optax.adam(1e-2), 0.0)
    params, state = in_the_loop(optimizer, NETWORK.params, 3, NETWORK.value_fn)
    plain, _ = in_the_loop(optax.adam(1e-2), NETWORK.params, 3, NETWORK.value_fn)
    assert_trees_close(params, plain)
    assert_trees_close(optax_igr.extrapolation_eval_params(state, params), plain)


def test_penalises_the_full_batch_norm_in_expectation():
    """Over all pairs of batches (last, this) the mean gradient is that of L + μ‖E g‖², not E‖g_b‖²."""
    theta, coefficient = jnp.array([0.4, -0.3]), 0.05
    gradient = jax.grad(batch_loss)

    def second_gradient(last, this):
        # A vanishing rate holds θ, so that the second gradient shows the extrapolation alone.
        optimizer = optax_igr.extrapolated_gradient_penalty(
            optax.sgd(0.0), coefficient, max_relative_displacement=None
        )
        updates, _ = optimizer.update(gradient(theta, last), optimizer.init(theta), theta)
        return gradient(optax.apply_updates(theta, updates), this)

    pairs = list(itertools.product(SAMPLES, SAMPLES))
    mean = sum(second_gradient(last, this) for last, this in pairs) / len(pairs)

    def mean_loss(theta):
        return jnp.mean(jax.vmap(batch_loss, in_axes=(None, 0))(theta, SAMPLES))

    def full_batch(theta):
        return mean_loss(theta) + coefficient * jnp.sum(jax.grad(mean_loss)(theta) ** 2)

    def per_batch(theta):
        gradients = jax.vmap(gradient, in_axes=(None, 0))(theta, SAMPLES)
        return mean_loss(theta) + coefficient * jnp.mean(jnp.sum(gradients**2, axis=-1))

    np.testing.assert_allclose(mean, jax.grad(full_batch)(theta), rtol=1e-12)
    assert np.abs(mean - jax.grad(per_batch)(theta)).max() > 0.1


def test_fixed_rate_converges_to_the_minimum_of_the_loss():
    # At a minimum the displacement vanishes with the gradient: the loop and θ meet.
    optimizer = optax_igr.extrapolated_gradient_penalty(optax.sgd(0.1), 0.05)
    params, state = in_the_loop(
        optimizer, jnp.array([3.0, -2.0]), 500, lambda p: batch_loss(p, SAMPLES[0])
    )
    np.testing.assert_allclose(params, SAMPLES[0][1:], rtol=1e-7)
    np.testing.assert_allclose(state.displacement, 0, atol=1e-9)


@pytest.mark.parametrize(("product", "is_stable"), [(0.98, True), (1.02, False)])
def test_is_stable_while_twice_the_coefficient_is_below_the_inverse_curvature(product, is_stable):
    curvature = 4.0
    optimizer = optax_igr.extrapolated_gradient_penalty(
        optax.sgd(1e-9), product / 2 / curvature, max_relative_displacement=None
    )
    _, state = in_the_loop(
        optimizer, jnp.array([1.0]), 1500, lambda p: curvature * jnp.sum(p**2) / 2
    )
    # θ is at rest, so the gradients are a geometric series with the ratio `product`.
    limit = curvature / (1 - product)
    length = float(state.displacement[0]) / (product / curvature)
    assert (length == pytest.approx(limit, rel=1e-2)) == is_stable
    assert (length < 1e3) == is_stable


def test_displacement_is_float32_for_bfloat16_and_does_not_drift():
    """θ follows float32 descent to a few roundings of bfloat16, although the displacement is below one."""

    def value_fn(p):
        return jnp.sum(p.astype(jnp.float32) ** 2) / 2

    optimizer = optax_igr.extrapolated_gradient_penalty(optax.sgd(0.1), 1e-4)
    start = jnp.full((8,), 1.0, jnp.bfloat16)
    params, state = in_the_loop(optimizer, start, 30, value_fn)
    wide, wide_state = in_the_loop(optimizer, start.astype(jnp.float32), 30, value_fn)
    theta = optax_igr.extrapolation_eval_params(state, params)
    expected = optax_igr.extrapolation_eval_params(wide_state, wide)
    assert params.dtype == theta.dtype == jnp.bfloat16
    assert state.displacement.dtype == jnp.float32
    assert state.displacement[0] > 0
    np.testing.assert_allclose(theta.astype(jnp.float32), expected, rtol=0.1)


def test_gradient_that_is_not_finite_is_not_extrapolated_by():
    inner = optax.chain(optax.zero_nans(), optax.sgd(0.1))
    optimizer = optax_igr.extrapolated_gradient_penalty(inner, 0.05)
    theta = jnp.array([1.0, 2.0])
    updates, state = optimizer.update(jnp.array([jnp.nan, 1.0]), optimizer.init(theta), theta)
    np.testing.assert_allclose(updates, [0.0, -0.1], rtol=1e-7)
    np.testing.assert_array_equal(state.displacement, jnp.zeros(2))


def test_extra_arguments_reach_the_inner_optimizer():
    inner = optax.chain(optax_igr.add_gradient_penalty(0.1), optax.sgd(0.1))
    optimizer = optax_igr.extrapolated_gradient_penalty(inner, 0.0)
    theta = jnp.array(2.0)
    updates, _ = optimizer.update(
        theta, optimizer.init(theta), theta, value_fn=lambda t: t**2 / 2, grad=theta
    )
    assert float(updates) == pytest.approx(-0.1 * 2 * 1.2)


def test_evaluation_parameters_are_found_inside_a_chain():
    optimizer = optax.chain(
        optax.identity(), optax_igr.extrapolated_gradient_penalty(optax.sgd(0.1), 0.01)
    )
    theta = jnp.array(1.0)
    updates, state = optimizer.update(jnp.array(2.0), optimizer.init(theta), theta)
    params = optax.apply_updates(theta, updates)
    assert float(params) == pytest.approx(0.84)
    assert float(optax_igr.extrapolation_eval_params(state, params)) == pytest.approx(0.8)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_displacements_leave_the_parameters_where_they_are_at_rate_zero(dtype):
    """20,000 random displacements, each rounded by the loop: what is stored is what was really added."""
    optimizer = optax_igr.extrapolated_gradient_penalty(optax.sgd(0.0), 0.05)
    start = jax.random.normal(jax.random.key(0), (50,)).astype(dtype)

    def step(carry, key):
        params, state = carry
        gradient = jax.random.normal(key, start.shape).astype(dtype)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(keys):
        return jax.lax.scan(step, (start, optimizer.init(start)), keys)[0]

    params, state = run(jax.random.split(jax.random.key(1), 20_000))
    assert jnp.abs(params.astype(jnp.float32) - start.astype(jnp.float32)).max() > 0.01
    theta = optax_igr.extrapolation_eval_params(state, params)
    # A float32 displacement of a float32 parameter is rounded where it is the longer one. A processor that adds in
    # float16 itself rounds once where float32 rounds twice: three in a million sums are off by one unit.
    units = {jnp.bfloat16: 0.0, jnp.float16: 2.0**-10, jnp.float32: 2.0**-20}[dtype]
    np.testing.assert_allclose(
        theta.astype(jnp.float32), start.astype(jnp.float32), rtol=units, atol=units / 4
    )


def test_displacement_is_at_most_a_tenth_of_the_parameters():
    theta = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    gradient = {"a": jnp.array([0.0, 6e6]), "b": jnp.array([-8e6])}
    unbounded = {"max_relative_displacement": None}
    for coefficient, options, length in ((1.0, {}, 0.5), (1e-8, {}, 0.2), (1.0, unbounded, 2e7)):
        optimizer = optax_igr.extrapolated_gradient_penalty(optax.sgd(0.0), coefficient, **options)
        _, state = optimizer.update(gradient, optimizer.init(theta), theta)
        # Shortened as a whole: the direction stays.
        np.testing.assert_allclose(state.displacement["a"], [0, 0.6 * length], rtol=1e-6)
        np.testing.assert_allclose(state.displacement["b"], [-0.8 * length], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_spike_of_the_loss_is_survived_where_the_inner_optimizer_clips(dtype):
    """A quartic, whose gradient grows with the displacement: without the bound one spike is the end."""

    def run(bound, spike):
        inner = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05))
        optimizer = optax_igr.extrapolated_gradient_penalty(
            inner, 0.01, max_relative_displacement=bound
        )
        start = jnp.array([2.0, -1.5], dtype)

        def step(carry, t):
            params, state = carry
            factor = jnp.where(t == 20, spike, 1.0)
            gradient = jax.grad(lambda p: factor * jnp.sum((p.astype(jnp.float32) ** 2 - 1) ** 2))
            updates, state = optimizer.update(gradient(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = (start, optimizer.init(start))
        params, state = jax.lax.scan(step, carry, jnp.arange(200))[0]
        return optax_igr.extrapolation_eval_params(state, params).astype(jnp.float32)

    np.testing.assert_allclose(run(0.1, 1e6), [1.0, -1.0], atol=0.02)
    np.testing.assert_allclose(run(0.1, 1.0), [1.0, -1.0], atol=0.02)
    assert not np.allclose(run(None, 1e6), [1.0, -1.0], atol=0.02)


@pytest.mark.parametrize("composition", ["masked", "partition", "nested"])
def test_evaluation_parameters_are_found_under_masks_and_several_of_them(composition):
    def penalty(coefficient):
        return optax_igr.extrapolated_gradient_penalty(optax.sgd(0.5), coefficient)

    params = {"a": jnp.array([1.0, 2.0]), "b": {"c": jnp.array(3.0)}}
    gradient = {"a": jnp.array([0.5, -0.5]), "b": {"c": jnp.array(1.0)}}
    optimizer = {
        "masked": lambda: optax.masked(penalty(0.01), {"a": True, "b": False}),
        "partition": lambda: optax.partition(
            {"one": penalty(0.01), "two": penalty(0.02)}, {"a": "one", "b": "two"}
        ),
        "nested": lambda: optax_igr.extrapolated_gradient_penalty(penalty(0.01), 0.02),
    }[composition]()
    updates, state = optimizer.update(gradient, optimizer.init(params), params)
    stepped = optax.apply_updates(params, updates)
    found = optax_igr.extrapolation_eval_params(state, stepped)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
    if composition == "masked":
        # What is masked out takes its gradient as the update.
        expected["b"] = jax.tree.map(jnp.add, params["b"], gradient["b"])
    assert_trees_close(found, expected)
    moved = jax.tree.map(lambda x, y: bool(jnp.any(jnp.abs(x - y) > 1e-3)), stepped, found)
    assert moved == {"a": True, "b": {"c": composition != "masked"}}


def test_evaluation_parameters_of_another_model_are_refused():
    optimizer = optax_igr.extrapolated_gradient_penalty(optax.sgd(0.1), 0.01)
    state = optimizer.init({"a": jnp.ones(2), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match="`params` has no leaf b"):
        optax_igr.extrapolation_eval_params(state, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"leaf b of `params` has shape \[4\]"):
        optax_igr.extrapolation_eval_params(state, {"a": jnp.ones(2), "b": jnp.ones(4)})


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"`inner` must be an optax\.GradientTransformation"):
        optax_igr.extrapolated_gradient_penalty(0.1, 0.05)
    with pytest.raises(ValueError, match=r"`coefficient` must be a real number or a schedule"):
        optax_igr.extrapolated_gradient_penalty(optax.sgd(0.1), None)
    with pytest.raises(ValueError, match=r"`max_relative_displacement` must be .* >= 0"):
        optax_igr.extrapolated_gradient_penalty(optax.sgd(0.1), 0.1, max_relative_displacement=-1.0)
    with pytest.raises(ValueError, match="holds no `displacement`"):
        optax_igr.extrapolation_eval_params(optax.sgd(0.1).init(1.0), 1.0)
