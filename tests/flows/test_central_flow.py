"""Central flow: closed forms at the edge, gradient and modified flow below it, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr import flows

# A parabola along x whose curvature S depends on the slow directions y, and what pushes them.
PUSH = jnp.array([-0.6, 0.1, -0.2])


def curvature(y):
    return 1.5 + y[0] + 0.3 * y[0] ** 2 + 0.5 * y[1] - 0.2 * y[0] * y[1] + 0.1 * jnp.sin(y[2])


def slow_loss(y):
    return jnp.sum(PUSH * y) + 0.05 * jnp.sum(y**2)


def valley(p):
    return curvature(p[1:]) * p[0] ** 2 / 2 + slow_loss(p[1:])


def at_the_edge(limit):
    """Solves for the first slow coordinate at which S is the limit."""
    y = jnp.array([0.3, 0.2, 0.1])
    for _ in range(20):
        y = y.at[0].add((limit - curvature(y)) / jax.grad(curvature)(y)[0])
    return jnp.concatenate([jnp.zeros(1), y])


OPTIMIZERS = {
    # options, largest stable hλ, sum of the weights of past gradients
    "descent": ({}, 2.0, 1.0),
    "heavy_ball": ({"momentum": 0.5}, 3.0, 2.0),
    "nesterov": ({"momentum": 0.5, "nesterov": True}, 1.5, 2.0),
    "average": ({"momentum": 0.5, "averaged": True}, 6.0, 1.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_covariance_velocity_and_averages_of_a_valley_have_closed_forms(name):
    """X = max(0, -2 <S', R'> / ‖S'‖²), and y slides along the surface S = limit."""
    options, scaled, total = OPTIMIZERS[name]
    h = 0.7
    limit = scaled / h
    params = at_the_edge(limit)
    slope, push = jax.grad(curvature)(params[1:]), jax.grad(slow_loss)(params[1:])
    flow = flows.central_flow(valley, h, num_directions=1, **options)
    state = flow.init(params)
    if state.momentum is not None:
        # As after many steps with this gradient.
        gain = 1 if options.get("averaged") else 2
        state = state._replace(momentum=gain * jnp.concatenate([jnp.zeros(1), push]))
    following, info = flow.step(state)
    covariance = -2 * slope @ push / (slope @ slope)
    assert covariance > 0
    np.testing.assert_allclose(info.covariance_eigenvalues, [covariance], rtol=1e-8)
    np.testing.assert_allclose(info.eigenvalues, [limit], rtol=1e-10)
    average = slow_loss(params[1:]) + limit * covariance / 2
    np.testing.assert_allclose(info.averaged_loss, average, rtol=1e-8)
    squared = push @ push + limit**2 * covariance
    np.testing.assert_allclose(info.averaged_squared_gradient, squared, rtol=1e-8)
    slide = -h * total * (push - slope * (slope @ push) / (slope @ slope))
    np.testing.assert_allclose(following.params[1:] - params[1:], slide, rtol=1e-8)
    np.testing.assert_allclose(following.params[0], 0, atol=1e-12)


def test_what_pushes_away_from_the_edge_needs_no_covariance():
    params = at_the_edge(2 / 0.7)
    flow = flows.central_flow(lambda p: valley(p) - 2 * slow_loss(p[1:]), 0.7, num_directions=1)
    _, info = flow.step(flow.init(params))
    assert info.num_critical == 1
    np.testing.assert_array_equal(info.covariance_eigenvalues, 0)


@pytest.mark.parametrize("correction", [True, False])
def test_the_curvature_is_held_to_second_order_in_the_substep(correction):
    """A wrong factor in the covariance leaves an error of first order."""
    excess = []
    for substeps in (2, 4):
        flow = flows.central_flow(
            valley, 0.7, num_directions=1, correction=correction, substeps=substeps
        )
        _, info, _ = flow.trajectory(at_the_edge(2 / 0.7), 4)
        excess.append(jnp.max(jnp.abs(info.sharpness_ratio[1:] - 1)))
    assert 3.5 < excess[0] / excess[1] < 4.5


def pair(p):
    """Two oscillating directions whose curvatures are equal along a line."""
    x, y = p[:2], p[2:]
    matrix = jnp.array([[2 + y[0], 0.4 * y[1]], [0.4 * y[1], 2 + 0.7 * y[0] - 0.2 * y[2]]])
    return x @ matrix @ x / 2 + jnp.array([-0.03, 0.012, 0.004]) @ y + 0.02 * jnp.sum(y**2)


def test_equal_eigenvalues_are_invariant_under_a_rotation_of_their_eigenvectors():
    flow = flows.central_flow(pair, 1.0, num_directions=2)
    state = flow.init(jnp.zeros(5))
    results = []
    for angle in (0.0, 0.4, 2.0):
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        rotation = jnp.array([[cosine, -sine], [sine, cosine]])
        results.append(flow.step(state._replace(directions=rotation @ state.directions)))
    for following, info in results[1:]:
        np.testing.assert_allclose(following.params, results[0][0].params, atol=1e-12)
        np.testing.assert_allclose(
            info.covariance_eigenvalues, results[0][1].covariance_eigenvalues, rtol=1e-7
        )
    assert results[0][1].num_critical == 2
    assert results[0][1].covariance_eigenvalues[0] > 1e-3
    # Both eigenvalues stay: the block of the Hessian at the next point, densely.
    block = jax.hessian(pair)(results[0][0].params)[:2, :2]
    assert jnp.linalg.eigvalsh(block)[1] < 2 + 1e-8


def smooth(p):
    x, y = p["x"], p["y"]
    return jnp.cosh(x) + jnp.sin(x * y) + 0.5 * (y - 0.3 * x**2) ** 2


def end_of(correction, substeps, h=0.1, num_steps=6):
    flow = flows.central_flow(smooth, h, num_directions=1, correction=correction, substeps=substeps)
    params = {"x": jnp.array(0.9), "y": jnp.array(-0.6), "count": jnp.array(3)}
    state, _, _ = flow.trajectory(params, num_steps)
    assert state.params["count"] == 3
    return jnp.stack([state.params["x"], state.params["y"]])


def test_below_the_edge_order_of_the_substeps():
    """Two towards gradient flow; one step of the corrected flow is the optimizer's own."""
    params = {"x": jnp.array(0.9), "y": jnp.array(-0.6)}
    exact = flows.integrate(flows.gradient_flow(smooth), params, 0.6, rtol=1e-12, atol=1e-12)
    exact = jnp.stack([exact["x"], exact["y"]])
    errors = [jnp.linalg.norm(end_of(False, n) - exact) for n in (4, 8)]
    assert 3.5 < errors[0] / errors[1] < 4.5

    for _ in range(6):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(smooth)(params))
    np.testing.assert_allclose(end_of(True, 1), jnp.stack([params["x"], params["y"]]), rtol=1e-12)


def test_many_substeps_of_a_quadratic_follow_the_modified_loss():
    matrix = jnp.array([[1.0, 0.3], [0.3, 0.5]])

    def value(p):
        return p @ matrix @ p / 2

    h, start = 0.1, jnp.array([1.0, -2.0])
    field = flows.modified_flow(flows.gradient_flow(value), h, order=1)
    exact = flows.integrate(field, start, 10 * h, rtol=1e-12, atol=1e-12)
    errors = []
    for substeps in (8, 16, 32):
        flow = flows.central_flow(value, h, num_directions=1, substeps=substeps)
        errors.append(jnp.linalg.norm(flow.trajectory(start, 10)[0].params - exact))
    plain = jnp.linalg.norm(
        flows.integrate(flows.gradient_flow(value), start, 10 * h, rtol=1e-12, atol=1e-12) - exact
    )
    assert errors[0] < 0.02 * plain
    assert 1.8 < errors[1] / errors[2] < 2.3


def test_dtypes_masks_and_narrow_parameters():
    def value(p):
        return smooth({"x": p["a"].astype(jnp.float32)[0], "y": p["b"][0]})

    params = {"a": jnp.array([0.9], jnp.bfloat16), "b": jnp.array([-0.6], jnp.float32)}
    flow = flows.central_flow(value, 0.1, num_directions=1, mask={"a": True, "b": False})
    state, info = flow.step(flow.init(params))
    assert state.params["a"].dtype == jnp.float32
    np.testing.assert_array_equal(state.params["b"], params["b"])
    assert info.loss.dtype == jnp.float32
    batched = jax.vmap(lambda a: flow.step(flow.init({"a": a, "b": params["b"]}))[0].params["a"])
    np.testing.assert_allclose(batched(params["a"][None])[0], state.params["a"], rtol=1e-6)


def test_bad_input_is_named():
    def start(value_fn=valley, h=0.7, **options):
        return flows.central_flow(value_fn, h, **options).init(at_the_edge(2.0))

    for message, options in {
        "`learning_rate`": {"h": 0.0},
        "`num_directions`": {"num_directions": 0},
        "more than the number of parameters that move, 4": {"num_directions": 5},
        "`threshold`": {"threshold": -1.0},
        "`substeps`": {"substeps": 0},
        "`momentum`": {"momentum": 1.0},
        "`hvp`": {"hvp": "guess"},
        "the loss at the start is nan": {"value_fn": lambda p: jnp.nan * valley(p)},
    }.items():
        with pytest.raises(ValueError, match=message):
            start(**options)
    calls = iter(range(10))
    with pytest.raises(ValueError, match="full-batch"):
        start(value_fn=lambda p: valley(p) + next(calls))


def test_a_quadratic_above_the_edge_cannot_be_held_and_an_average_that_diverges_is_an_error():
    flow = flows.central_flow(lambda p: 2 * jnp.sum(p**2), 0.7, num_directions=1)
    _, info, _ = flow.trajectory(jnp.ones(2), 3)
    np.testing.assert_allclose(info.excess, 0.7 * 4 / 2 - 1)
    flow = flows.central_flow(lambda p: -jnp.sum(jnp.exp(p**2)), 0.7, num_directions=1)
    with pytest.raises(FloatingPointError, match="leaves the finite numbers at step"):
        flow.trajectory(jnp.ones(2), 10)
