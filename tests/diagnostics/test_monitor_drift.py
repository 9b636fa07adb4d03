"""The monitor: the measured drift against the dense one, its order, and a state that stays sound."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_igr import diagnostics, flows
from tests.problems import tanh_network, two_weights


def measured(value_fn, params, h, num_steps=2, transform=None, optimizer=None):
    """Returns the state after `num_steps` updates, and the parameters before the last step but one."""
    optimizer = optimizer or optax.sgd(h)
    tx = optax.chain(transform or diagnostics.monitor_drift(), optimizer)
    state = tx.init(params)
    before = params
    for index in range(num_steps):
        if index == num_steps - 2:
            before = params
        updates, state = tx.update(jax.grad(value_fn)(params), state, params)
        params = optax.apply_updates(params, updates)
    return state, before


def test_measures_on_a_quadratic_are_exact():
    """g_t - g_{t+1} = hHg without a remainder."""
    eigenvalues, h = jnp.array([1.0, 4.0]), 0.05
    params = jnp.array([2.0, -1.0])
    state, before = measured(lambda x: jnp.sum(eigenvalues * x**2) / 2, params, h, num_steps=3)
    g = eigenvalues * before
    expected = {
        "drift_norm": h / 2 * jnp.linalg.norm(eigenvalues * g),
        "relative_drift": h / 2 * jnp.linalg.norm(eigenvalues * g) / jnp.linalg.norm(g),
        "scaled_curvature": h * jnp.sum(eigenvalues * g**2) / jnp.sum(g**2),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(optax.tree.get(state, name), value, rtol=1e-12)


def test_drift_is_the_first_order_term_of_the_modified_flow():
    """The relative error on the two-weight model is published: .037, .0187, .0094 at h = .004, .002, .001."""
    problem = two_weights()
    field = flows.gradient_flow(problem.value_fn)
    errors = []
    for h in (0.004, 0.002, 0.001):
        tx = diagnostics.monitor_drift()
        gradient = jax.grad(problem.value_fn)
        g, after = gradient(problem.params), problem.params - h * gradient(problem.params)
        _, state = tx.update(g, tx.init(g))
        reference = state.reference_gradient
        _, state = tx.update(gradient(after), state)
        drift = (reference - state.reference_gradient) / 2
        exact = field(problem.params) - flows.modified_flow(field, h, 1)(problem.params)
        np.testing.assert_allclose(state.drift_norm, jnp.linalg.norm(drift), rtol=1e-12)
        errors.append(jnp.linalg.norm(drift - exact) / jnp.linalg.norm(exact))
    np.testing.assert_allclose(errors, [0.037, 0.0187, 0.0094], rtol=0.02)


def test_interval_gives_the_mean_drift_of_its_steps():
    """Over k steps of a path the drifts sum to half the difference of the gradients at its ends."""
    problem = tanh_network(dtype=jnp.float64)
    k, h = 5, 0.02
    state, _ = measured(
        problem.value_fn, problem.params, h, k + 1, diagnostics.monitor_drift(interval=k)
    )
    drifts, params = [], problem.params
    for _ in range(k):
        g = jax.grad(problem.value_fn)(params)
        params = jax.tree.map(lambda p, g: p - h * g, params, g)
        following = jax.grad(problem.value_fn)(params)
        drifts.append(jax.tree.map(lambda a, b: (a - b) / 2, g, following))
    mean = jax.tree.map(lambda *x: sum(x) / k, *drifts)
    np.testing.assert_allclose(
        optax.tree.get(state, "drift_norm"), optax.tree.norm(mean), rtol=1e-10
    )
    g = jax.grad(problem.value_fn)(problem.params)
    total = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), g, mean)))
    np.testing.assert_allclose(
        optax.tree.get(state, "scaled_curvature"), 2 * total / optax.tree.norm(g) ** 2, rtol=1e-10
    )


def test_between_two_comparisons_the_measures_stay():
    problem = two_weights()
    readings = []
    for num_steps in range(1, 8):
        state, _ = measured(
            problem.value_fn, problem.params, 1e-3, num_steps, diagnostics.monitor_drift(interval=3)
        )
        readings.append(float(optax.tree.get(state, "drift_norm")))
    assert readings[:3] == [0, 0, 0]
    assert readings[3] == readings[4] == readings[5] > 0
    assert readings[6] != readings[5]


def test_the_raw_gradient_is_taken_from_grad_and_the_updates_pass():
    tx = optax.chain(optax.scale(-3.0), diagnostics.monitor_drift())
    state = tx.init(jnp.zeros(2))
    for g in (jnp.array([1.0, 0.0]), jnp.array([0.5, 0.0])):
        updates, state = tx.update(g, state, None, grad=g, value_fn=None)
        np.testing.assert_array_equal(updates, -3 * g)
    np.testing.assert_allclose(optax.tree.get(state, "relative_drift"), 0.25)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_gradient_that_is_not_finite_leaves_the_measures(bad):
    tx = diagnostics.monitor_drift()
    state = tx.init(jnp.zeros(2))
    for g in ([1.0, 0.0], [0.5, 0.0], [bad, 1.0]):
        _, state = tx.update(jnp.array(g), state)
    np.testing.assert_allclose(state.relative_drift, 0.25)
    _, state = tx.update(jnp.array([0.25, 0.0]), state)
    np.testing.assert_allclose(state.drift_norm, 0.125)
    assert state.count == 3


def test_a_zero_gradient_is_no_division():
    tx = diagnostics.monitor_drift()
    state = tx.init(jnp.zeros(2))
    for g in (jnp.zeros(2), jnp.ones(2)):
        _, state = tx.update(g, state)
    assert (state.relative_drift, state.scaled_curvature) == (0, 0)
    np.testing.assert_allclose(state.drift_norm, jnp.sqrt(2) / 2)


def test_mixed_trees_in_float32():
    params = {"w": jnp.ones(300, jnp.float16), "n": jnp.array(2), "z": None, "c": jnp.array(1j)}
    tx = diagnostics.monitor_drift()
    state = tx.init(params)
    assert state.reference_gradient["n"] is None
    for size in (10.0, 5.0):
        g = {"w": jnp.full(300, size, jnp.float16), "n": params["n"], "z": None, "c": 1j * size}
        g["c"] = jnp.asarray(g["c"])
        updates, state = tx.update(g, state, params)
        jax.tree.map(np.testing.assert_array_equal, updates, g)
    # 300 entries of 10 have a square sum above float16's largest number.
    np.testing.assert_allclose(state.drift_norm, 2.5 * np.sqrt(301), rtol=1e-6)
    np.testing.assert_allclose(state.relative_drift, 0.25, rtol=1e-6)
    np.testing.assert_allclose(state.scaled_curvature, 0.5, rtol=1e-6)


def test_state_is_stable_and_compiled_once():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = diagnostics.monitor_drift(interval=2)
    state = tx.init(params)
    step = jax.jit(lambda g, s: tx.update(g, s)[1])
    after = step(params, state)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    step(params, after)
    assert step._cache_size() == 1


@pytest.mark.parametrize("interval", [0, 1.5, True])
def test_bad_arguments(interval):
    with pytest.raises(ValueError, match=r"monitor_drift: .interval. must be a positive integer"):
        diagnostics.monitor_drift(interval=interval)
