"""The flow from iterates: partial sums of the logarithm, agreement with the modified flow, states."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_igr import flows


@pytest.mark.parametrize("order", range(6))
def test_linear_map_gives_the_partial_sum_of_the_logarithm(order):
    """For z -> z - x z the difference Δ is -x: log(1 + Δ) ends after the power order + 1."""
    x, h = 0.3, 0.1
    flow = flows.flow_from_step(lambda z: z - x * z, h, order)
    expected = -sum(x**k / k for k in range(1, order + 2)) / h
    np.testing.assert_allclose(flow(2.0), 2 * expected, rtol=1e-12)


@pytest.mark.parametrize("order", range(1, 5))
def test_agrees_with_the_modified_flow_up_to_its_order(order):
    """The terms up to h^order agree, so that the difference falls with the next power."""

    def field(z):
        return jnp.stack([z[1] - z[0] ** 2, jnp.sin(z[0]) - z[0] * z[1]])

    def difference(h):
        from_step = flows.flow_from_step(lambda z: z + h * field(z), h, order)
        z = jnp.array([0.6, -0.4])
        return jnp.linalg.norm(from_step(z) - flows.modified_flow(field, h, order)(z))

    coarse, fine = difference(0.02), difference(0.01)
    assert abs(jnp.log2(coarse / fine) - (order + 1)) < 0.15


def test_higher_order_method_has_no_first_order_term():
    """Heun's steps follow the field itself up to h², with the next coefficient not zero."""

    def heun(x, h):
        predicted = x + h * x**2
        return x + h / 2 * (x**2 + predicted**2)

    def drift(h):
        return flows.flow_from_step(lambda x: heun(x, h), h, 3)(0.5) - 0.25

    assert abs(jnp.log2(drift(0.02) / drift(0.01)) - 2) < 0.1


def test_heavy_ball_with_its_state():
    """On the slow eigenvector of (θ, trace), the rate is log(z)/h: -2.0637411875 for β = .5, h = .01."""
    h, beta = 0.01, 0.5
    tx = optax.sgd(h, momentum=beta)

    def step(z):
        params, state = z
        updates, state = tx.update(params, state)
        return optax.apply_updates(params, updates), state

    root = 1 + beta - h
    slow = (root + math.sqrt(root**2 - 4 * beta)) / 2
    trace = (1 / slow - 1) / h
    state = jax.tree.map(lambda x: jnp.full_like(x, trace), tx.init(jnp.array(1.0)))
    velocity, _ = flows.flow_from_step(step, h, 5)((jnp.array(1.0), state))
    np.testing.assert_allclose(velocity, -2.0637411875, rtol=1e-8)


def test_count_and_key_stand_still_and_are_held():
    """The flow of Adam at count 40 is that of the map with the bias correction of count 40."""
    tx = optax.scale_by_adam()
    params = {"w": jnp.array([0.3, -0.2]), "key": jax.random.key(0)}
    state = tx.init({"w": params["w"]})._replace(count=jnp.array(40, jnp.int32))

    def step(z, count=None):
        params, state = z
        state = state if count is None else state._replace(count=count)
        updates, state = tx.update({"w": 2 * params["w"]}, state)
        return {"w": params["w"] - 1e-3 * updates["w"], "key": params["key"]}, state

    velocity, state_velocity = flows.flow_from_step(step, 1e-3, 2)((params, state))
    assert state_velocity.count == 0
    assert state_velocity.count.dtype == jnp.int32
    assert velocity["key"].dtype == params["key"].dtype
    held = lambda z: step(z, count=jnp.array(40, jnp.int32))  # noqa: E731
    expected, _ = flows.flow_from_step(held, 1e-3, 2)((params, state))
    np.testing.assert_array_equal(velocity["w"], expected["w"])


def test_dtypes_stay():
    z = (jnp.ones(2, jnp.bfloat16), jnp.float32(1.0), None)
    velocity = flows.flow_from_step(lambda z: (z[0] * 0.5, z[1] * 0.5, None), 0.1, 2)(z)
    assert [x.dtype for x in jax.tree.leaves(velocity)] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize(
    ("step_size", "order", "message"),
    [
        (0.0, 1, "flow_from_step: .step_size. must be a real number and > 0"),
        (0.1, -1, "flow_from_step: .order. must be an integer >= 0"),
    ],
)
def test_bad_arguments(step_size, order, message):
    with pytest.raises(ValueError, match=message):
        flows.flow_from_step(lambda z: z, step_size, order)


def test_a_step_that_changes_the_dtype():
    flow = flows.flow_from_step(lambda z: z.astype(jnp.float32), 0.1, 1)
    with pytest.raises(ValueError, match=r"flow_from_step: .step. must agree"):
        flow(jnp.array(1.0, jnp.float64))
