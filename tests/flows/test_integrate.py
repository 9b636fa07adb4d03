"""Integration: accuracy against closed forms, dtypes, times, and clear errors."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr import flows


def rotation(z):
    """A pendulum of small swing: (x, y) turns by the angle t."""
    return {"x": z["y"], "y": -z["x"]}


START = {"x": jnp.array([1.0, 0.5]), "y": jnp.array([0.0, -0.2])}


def turned(angle):
    return {
        "x": START["x"] * np.cos(angle) + START["y"] * np.sin(angle),
        "y": START["y"] * np.cos(angle) - START["x"] * np.sin(angle),
    }


def test_tolerance_is_kept():
    for tolerance in (1e-6, 1e-11):
        end = flows.integrate(rotation, START, 3.0, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(end["x"], turned(3.0)["x"], atol=20 * tolerance)
        np.testing.assert_allclose(end["y"], turned(3.0)["y"], atol=20 * tolerance)


def test_saved_times_have_a_leading_axis():
    times = jnp.array([0.0, 0.7, 0.71, 3.0])
    path = flows.integrate(rotation, START, 3.0, save_at=times, rtol=1e-12, atol=1e-12)
    expected = [turned(t)["x"] for t in times]
    # An interpolation between long steps would be wrong by 1e-9.
    np.testing.assert_allclose(path["x"], expected, atol=1e-11)


def test_backwards_returns_to_the_start():
    end = flows.integrate(rotation, START, 2.0)
    back = flows.integrate(rotation, end, -2.0, save_at=jnp.array([-1.0, -2.0]))
    np.testing.assert_allclose(back["x"][1], START["x"], atol=1e-6)
    np.testing.assert_allclose(back["x"][0], turned(1.0)["x"], atol=1e-6)


def test_other_leaves_stand_still():
    params = {"x": jnp.array(1.0), "count": jnp.array([2, 3]), "none": None}
    field = flows.gradient_flow(lambda p: p["x"] ** 2 * p["count"][0] / 4)
    path = flows.integrate(field, params, 1.0, save_at=jnp.array([0.5, 1.0]))
    assert path["count"].tolist() == [[2, 3], [2, 3]]
    assert path["none"] is None
    np.testing.assert_allclose(path["x"], np.exp([-0.5, -1.0]), rtol=1e-7)
    end = flows.integrate(field, params, 1.0)
    assert end["count"].tolist() == [2, 3]
    np.testing.assert_allclose(end["x"], np.exp(-1.0), rtol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 4e-3), ("complex128", 1e-7)]
)
def test_dtype_stays(dtype, tolerance):
    start = jnp.array([1.0, 2.0], dtype)
    if jnp.iscomplexobj(start):
        start = start * (1 + 1j)
    end = flows.integrate(lambda x: -x, start, 1.0)
    assert end.dtype == start.dtype
    np.testing.assert_allclose(end, start / np.e, rtol=tolerance)


def test_bfloat16_path_is_not_quantised_on_the_way():
    """Steps smaller than bfloat16's rounding of the parameter add up in float32."""
    end = flows.integrate(lambda x: jnp.full_like(x, 0.25), jnp.array([1.0], jnp.bfloat16), 1.0)
    assert end[0] == 1.25


def test_blow_up_is_reported_with_its_time():
    """ẋ = x² from 1 is infinite at time 1."""
    for save_at in (None, jnp.array([0.5, 2.0])):
        with pytest.raises(FloatingPointError, match="leaves the finite numbers at time 1 of 2"):
            flows.integrate(lambda x: x**2, jnp.array(1.0), 2.0, save_at=save_at)


def test_stiff_field_stops_at_its_limit():
    with pytest.raises(RuntimeError, match=r"200 steps end at time .* of 1.*`max_steps`"):
        flows.integrate(lambda x: -1e6 * x, jnp.array(1.0), 1.0, max_steps=200)


def test_failure_inside_jit_and_vmap_is_nan_for_that_path_alone():
    ends = jax.jit(jax.vmap(lambda x: flows.integrate(lambda x: x**2, x, 2.0)))(
        jnp.array([1.0, 0.25])
    )
    assert jnp.isnan(ends[0])
    np.testing.assert_allclose(ends[1], 0.5, rtol=1e-7)


def test_no_leaves_and_no_time():
    assert flows.integrate(lambda p: p, {}, 1.0) == {}
    assert flows.integrate(lambda x: -x, jnp.array(2.0), 0.0) == 2.0


def test_derivative_with_respect_to_the_start():
    slope = jax.grad(lambda x: flows.integrate(lambda x: x**2, x, 0.5))(0.4)
    np.testing.assert_allclose(slope, 1 / (1 - 0.5 * 0.4) ** 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_at": [0.5, 0.2]}, "`save_at` must run from 0 towards `duration`"),
        ({"save_at": [0.5, 1.5]}, "`save_at` must run from 0 towards `duration`"),
        ({"save_at": 0.5}, "`save_at` must be a vector of times"),
        ({"rtol": -1.0}, "`rtol` must be a real number and >= 0"),
        ({"max_steps": 0}, "`max_steps` must be a positive integer"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=f"integrate: {message}"):
        flows.integrate(lambda x: -x, jnp.array(1.0), 1.0, **options)


def test_a_field_of_another_structure():
    with pytest.raises(ValueError, match=r"integrate: .field. must agree"):
        flows.integrate(lambda x: (x, x), jnp.array(1.0), 1.0)


def test_the_rest_of_the_room_works_without_diffrax():
    program = """
import sys
sys.modules["diffrax"] = None
from optax_igr import flows
assert flows.modified_flow(lambda x: x**2, 0.5, 1)(1.0) == 0.5
try:
    flows.integrate(lambda x: x, 1.0, 1.0)
except ImportError as error:
    assert 'pip install "optax_igr[flows]"' in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_numpy_integers_are_integers():
    def field(x):
        return -x

    start = jnp.ones(2)
    exact = flows.integrate(field, start, 1.0, max_steps=10_000)
    counted = flows.integrate(field, start, np.float64(1.0), max_steps=np.int64(10_000))
    np.testing.assert_array_equal(counted, exact)
    for order in (2, np.int64(2)):
        np.testing.assert_allclose(
            flows.modified_flow(field, np.float64(0.1), order)(start), -1.0 - 0.05 - 0.01 / 3
        )
        np.testing.assert_allclose(
            flows.flow_from_step(lambda x: 0.9 * x, 0.1, order)(start), -1.0 - 0.05 - 0.01 / 3
        )
