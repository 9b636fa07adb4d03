"""The measured order: exact errors on a linear field, and what must not be reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr import flows


def euler(x, h):
    return x - h * x


def decay(h):
    del h
    return lambda x: -x


SIZES = [0.2, 0.1, 0.05]


def test_local_errors_in_closed_form():
    result = flows.convergence_order(euler, decay, jnp.array([3.0, -4.0]), SIZES)
    h = np.array(SIZES)
    np.testing.assert_allclose(result.errors, 5 * (np.exp(-h) - (1 - h)), rtol=1e-10)
    np.testing.assert_array_equal(result.step_sizes, h)
    expected = np.polyfit(np.log(h), np.log(result.errors), 1)[0]
    np.testing.assert_allclose(result.slope, expected, rtol=1e-10)


def test_global_errors_in_closed_form():
    result = flows.convergence_order(euler, decay, 1.0, SIZES, duration=2.0)
    h = np.array(SIZES)
    np.testing.assert_allclose(result.errors, np.exp(-2) - (1 - h) ** (2 / h), rtol=1e-9)
    assert abs(result.slope - 1) < 0.1


def test_count_leaves_are_not_part_of_the_distance():
    def step(z, h):
        return {"x": euler(z["x"], h), "count": z["count"] + 1}

    start = {"x": jnp.array(1.0), "count": jnp.array(0)}
    field = flows.gradient_flow(lambda z: z["x"] ** 2 / 2)
    result = flows.convergence_order(step, lambda h: field, start, SIZES)
    np.testing.assert_allclose(result.errors[0], np.exp(-0.2) - 0.8, rtol=1e-10)


def test_a_difference_near_the_integrators_own_error_is_not_reported():
    """At hλ = 1e-4 the order-3 difference is 2e-21: it cannot be told from rounding."""
    with pytest.raises(FloatingPointError, match="less than 100 times the integrator's own error"):
        flows.convergence_order(
            euler, lambda h: flows.modified_flow(lambda x: -x, h, 3), jnp.array(1.0), [1e-3, 1e-4]
        )


def test_a_flow_that_blows_up_is_reported():
    with pytest.raises(FloatingPointError, match=r"at the step size 2.0 the steps or the flow"):
        flows.convergence_order(
            lambda x, h: x + h * x**2, lambda h: lambda x: x**2, jnp.array(1.0), [2.0, 1.0]
        )


@pytest.mark.parametrize(
    ("step_sizes", "duration", "message"),
    [
        ([0.1], None, "`step_sizes` must hold two different numbers"),
        ([0.1, -0.1], None, "`step_sizes` must be a real number and > 0"),
        ([0.1, 0.3], 1.0, "`duration` must be a whole number of steps .* 3.33333 steps of 0.3"),
    ],
)
def test_bad_arguments(step_sizes, duration, message):
    with pytest.raises(ValueError, match=f"convergence_order: {message}"):
        flows.convergence_order(euler, decay, jnp.array(1.0), step_sizes, duration=duration)


def test_inside_jit_it_is_an_error_of_jax_and_not_a_wrong_number():
    with pytest.raises(jax.errors.ConcretizationTypeError):
        jax.jit(lambda x: flows.convergence_order(euler, decay, x, SIZES).slope)(1.0)
