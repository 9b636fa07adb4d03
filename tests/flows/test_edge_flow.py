"""Edge flow against gradient descent itself, and below the edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr import flows


def valley(p):
    """A parabola along x whose curvature y the loss pushes up."""
    return p[1] * p[0] ** 2 / 2 - 0.01 * p[1]


def descend(value_fn, params, h, num_steps):
    def step(p, _):
        return p - h * jax.grad(value_fn)(p), p

    return jax.lax.scan(step, params, length=num_steps)[1]


def test_two_parameters_are_followed_through_the_onset_to_the_last_digits():
    """From one end of the oscillation: center, magnitude and their sum are those of the steps."""
    path = descend(valley, jnp.array([1e-3, 1.9]), 1.0, 75)
    flow = flows.edge_flow(valley, 1.0, initial_magnitude=1e-3, least_magnitude=0.0)
    _, info, center = flow.trajectory(jnp.array([0.0, 1.9]), 75, observe=lambda p: p)
    np.testing.assert_allclose(center[:, 1], path[:, 1], rtol=1e-10)
    np.testing.assert_allclose(info.magnitude, jnp.abs(path[:, 0]), rtol=1e-8)
    assert info.sharpness_ratio.max() > 1.15
    assert info.sharpness_ratio.min() < 0.75


def test_a_quartic_loss_stops_the_growth_where_two_steps_close_the_orbit():
    """h L'(ρ) = 2ρ: the iterates alternate between ρ and -ρ, at ρ² = .2 of L' = 2.2 x - x³."""
    flow = flows.edge_flow(lambda x: 1.1 * x**2 - x**4 / 4, 1.0, initial_magnitude=0.1)
    _, info, _ = flow.trajectory(jnp.zeros(()), 200)
    np.testing.assert_allclose(info.magnitude[-1], np.sqrt(0.2), rtol=1e-6)


def test_direction_turns_to_the_leading_eigenvector_and_the_magnitude_shrinks_below_the_edge():
    matrix = jnp.array([[1.0, 0.4, 0.0], [0.4, 0.6, 0.1], [0.0, 0.1, -1.5]])
    flow = flows.edge_flow(
        lambda p: p @ matrix @ p / 2, 1.5, initial_magnitude=0.3, least_magnitude=0.0
    )
    state = flow.init(jnp.zeros(3))
    turned = state._replace(direction=jnp.array([0.6, 0.0, 0.8]))
    state, info, _ = flow.trajectory(turned, 150)
    values, vectors = jnp.linalg.eigh(matrix)
    np.testing.assert_allclose(jnp.abs(state.direction), jnp.abs(vectors[:, -1]), atol=1e-6)
    ratio = info.magnitude[-1] / info.magnitude[-2]
    np.testing.assert_allclose(ratio, jnp.abs(1 - 1.5 * values[-1]), rtol=1e-5)


def smooth(p):
    return jnp.cosh(p[0]) + jnp.sin(p[0] * p[1]) + 0.5 * (p[1] - 0.3 * p[0] ** 2) ** 2


def test_without_an_oscillation_it_is_gradient_flow_and_with_the_correction_the_steps_across():
    start, h, count = jnp.array([0.9, -0.6]), 0.05, 8
    still = {"initial_magnitude": 1e-7, "least_magnitude": 1e-7}
    exact = flows.integrate(flows.gradient_flow(smooth), start, h * count, rtol=1e-12, atol=1e-12)
    errors = []
    for substeps in (8, 16):
        flow = flows.edge_flow(smooth, h, correction=False, substeps=substeps, **still)
        errors.append(jnp.linalg.norm(flow.trajectory(start, count)[0].params - exact))
    assert 1.8 < errors[0] / errors[1] < 4.5
    drift = jnp.linalg.norm(descend(smooth, start, h, count + 1)[-1] - exact)
    assert errors[1] < 0.05 * drift


def test_all_modes_of_the_product_agree_in_float32():
    params = {"x": jnp.array([0.3], jnp.float32), "y": jnp.array(1.9, jnp.float32), "n": 3}

    def value(p):
        return valley(jnp.stack([p["x"][0], p["y"]]))

    magnitudes = []
    for hvp in ("auto", "reverse_over_reverse", "central_difference"):
        flow = flows.edge_flow(value, 1.0, initial_magnitude=0.05, hvp=hvp)
        state, info = flow.step(flow.init(params))
        assert state.params["n"] == 3
        assert info.curvature.dtype == jnp.float32
        magnitudes.append(state.magnitude)
    np.testing.assert_allclose(magnitudes, magnitudes[0], rtol=1e-3)


def test_bad_input_is_named():
    for message, options in {
        "`substeps`": {"substeps": 0},
        "`initial_magnitude`": {"initial_magnitude": -1.0},
        "`hvp`": {"hvp": "guess"},
    }.items():
        with pytest.raises(ValueError, match=message):
            flows.edge_flow(valley, 1.0, **options)
