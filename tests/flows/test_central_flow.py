"""Central flow: below the edge, closed forms at the edge, and the optimizers' own paths."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_igr import flows

# A parabola along x whose curvature S the slow directions change, and what pushes them.
PUSH = jnp.array([-0.03, 0.01, -0.02])


def curvature(y):
    return 1.5 + y[0] + 0.3 * y[0] ** 2 + 0.5 * y[1] - 0.2 * y[0] * y[1] + 0.1 * jnp.sin(y[2])


def slow_loss(y):
    return jnp.sum(PUSH * y) + 0.05 * jnp.sum(y**2)


def valley(p):
    return curvature(p[1:]) * p[0] ** 2 / 2 + slow_loss(p[1:])


def at_the_edge(threshold):
    """Solves for the first slow coordinate at which S is the threshold."""
    y = jnp.array([0.3, 0.2, 0.1])
    for _ in range(30):
        y = y.at[0].add((threshold - curvature(y)) / jax.grad(curvature)(y)[0])
    return jnp.concatenate([jnp.zeros(1), y])


THRESHOLDS = {
    "descent": ({}, 2.0),
    "heavy_ball": ({"momentum": 0.5}, 3.0),
    "nesterov": ({"momentum": 0.5, "nesterov": True}, 1.5),
    "average": ({"momentum": 0.5, "averaged": True}, 6.0),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_covariance_velocity_and_loss_of_a_valley_have_closed_forms(name):
    """X = max(0, -2 <D, ∇R> / ‖D‖²), and y slides along the surface S = threshold / h."""
    options, scaled = THRESHOLDS[name]
    h = 0.7
    limit = scaled / h
    params = at_the_edge(limit)
    flow = flows.central_flow(
        valley, h, num_directions=1, correction=False, substeps=2**16, **options
    )
    state = flow.init(params)
    if state.momentum is not None:
        # The settled average of the gradients, so that the first substep has the settled velocity.
        gain = 1 if options.get("averaged") else 1 / (1 - 0.5)
        state = state._replace(momentum=gain * jax.grad(valley)(params))
    # One substep of the first step: its information is that of the step's start.
    _, info = flow.step(state._replace(params=params))
    slope, push = jax.grad(curvature)(params[1:]), jax.grad(slow_loss)(params[1:])
    expected = -2 * slope @ push / (slope @ slope)
    assert expected > 0
    np.testing.assert_allclose(info.covariance_eigenvalues, [expected], rtol=1e-8)
    np.testing.assert_allclose(
        info.averaged_loss, slow_loss(params[1:]) + limit * expected / 2, rtol=1e-8
    )
    np.testing.assert_allclose(
        info.averaged_squared_gradient, push @ push + limit**2 * expected, rtol=1e-8
    )


def test_velocity_is_the_gradient_projected_on_the_surface_of_the_threshold():
    h = 0.7
    params = at_the_edge(2 / h)
    slope, push = jax.grad(curvature)(params[1:]), jax.grad(slow_loss)(params[1:])
    slide = -h * (push - slope * (slope @ push) / (slope @ slope))
    errors = []
    for substeps in (8, 16):
        flow = flows.central_flow(
            valley, h, num_directions=1, correction=False, substeps=substeps
        )
        step = flow.init(params)
        # The displacement over a time that shrinks with the substep: half the time, half the error.
        substep = jax.jit(lambda s, f=flow: f.step(s)[0])
        errors.append(jnp.linalg.norm((substep(step).params - params)[1:] - slide))
    assert errors[0] < 0.02 * jnp.linalg.norm(slide)
