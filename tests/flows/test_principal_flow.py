"""The principal flow: gradient descent itself on a quadratic, its series, and what lies past hλ = 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr import flows
from optax_igr.flows.principal_flow import principal_factor

DIAGONAL = jnp.array([1.0, 0.01])
START = jnp.array([-0.35, -0.2])


def published_quadratic(x):
    """E = xᵀAx, so that the Hessian is 2A."""
    return jnp.sum(DIAGONAL * x**2)


def descent(h, steps):
    return START * (1 - 2 * h * DIAGONAL) ** steps


@pytest.mark.parametrize(
    ("steps", "published"), [(1, [0.28, -0.1964]), (10, [-0.0375810, -0.1667803])]
)
def test_flow_past_the_edge_returns_to_gradient_descent_at_whole_steps(steps, published):
    """h = 0.9, hλ = 1.8: the complex flow passes through each iterate."""
    np.testing.assert_allclose(descent(0.9, steps), published, atol=1e-7)
    field = flows.principal_flow(published_quadratic, 0.9, branch="complex")
    end = flows.integrate(field, START.astype(complex), 0.9 * steps)
    np.testing.assert_allclose(end, descent(0.9, steps), atol=1e-7)


def test_divergence_past_two():
    """h = 1.05, hλ = 2.1: five steps as published."""
    field = flows.principal_flow(published_quadratic, 1.05, branch="complex")
    end = flows.integrate(field, START.astype(complex), 1.05 * 5)
    np.testing.assert_allclose(end, [0.5636785, -0.1798637], atol=1e-7)


def test_real_flow_is_gradient_descent_below_the_edge():
    field = flows.principal_flow(published_quadratic, 0.4)
    end = flows.integrate(field, START, 0.4 * 6, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(end, descent(0.4, 6), atol=1e-11)


def test_real_flow_is_nan_past_the_edge():
    assert jnp.isnan(flows.principal_flow(published_quadratic, 0.9)(START)).any()
    with pytest.raises(FloatingPointError, match="leaves the finite numbers at time 0"):
        flows.integrate(flows.principal_flow(published_quadratic, 0.9), START, 1.0)


def test_series_in_the_step_size():
    """-(g + h/2 Hg + h²/3 H²g + h³/4 H³g) up to h⁴, with directions that are no eigenvectors."""

    def value_fn(p):
        return jnp.cosh(p["x"]) + jnp.sin(p["x"] * p["y"][0]) + jnp.sum(p["y"] ** 2) / 2

    params = {"x": jnp.array(0.4), "y": jnp.array([0.9]), "count": jnp.array(3)}
    point = jnp.array([0.4, 0.9])

    def flat(v):
        return value_fn({"x": v[0], "y": v[1:]})

    g, hessian = jax.grad(flat)(point), jax.hessian(flat)(point)

    def error(h):
        terms = (g, hessian @ g / 2, hessian @ hessian @ g / 3, hessian @ hessian @ hessian @ g / 4)
        series = -sum(h**k * term for k, term in enumerate(terms))
        velocity = flows.principal_flow(value_fn, h)(params)
        assert velocity["count"] == 0
        return jnp.linalg.norm(jnp.stack([velocity["x"], *velocity["y"]]) - series)

    assert abs(jnp.log2(error(0.02) / error(0.01)) - 4) < 0.1


def test_flat_directions():
    """Where λ = 0, the factor is its limit -1, and so is its derivative finite."""
    field = flows.principal_flow(lambda x: x[0] + x[1] ** 2, 0.1)
    np.testing.assert_allclose(field(jnp.zeros(2)), [-1, 0], atol=1e-15)
    assert jnp.isfinite(jax.jacfwd(principal_factor)(0.0))


def test_complex_branch_takes_real_parameters():
    field = flows.principal_flow(published_quadratic, 0.9, branch="complex")
    velocity = field(START)
    expected = START[0] * (np.log(0.8) + 1j * np.pi) / 0.9
    np.testing.assert_allclose(velocity[0], expected, rtol=1e-12)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"principal_flow: .branch. must be one of"):
        flows.principal_flow(published_quadratic, 0.1, branch="imaginary")
    with pytest.raises(ValueError, match=r"principal_flow: .step_size. must be"):
        flows.principal_flow(published_quadratic, 0.0)
