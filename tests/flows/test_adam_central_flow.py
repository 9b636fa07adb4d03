"""The central flows with a preconditioner: dense checks, and the order of the substeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_igr import flows


def curvature(y):
    return 1.5 + y[0] + 0.3 * y[0] ** 2 + 0.5 * y[1] - 0.2 * y[0] * y[1]


def valley(p):
    slow = jnp.sum(jnp.array([-0.03, 0.01]) * p[1:]) + 0.05 * jnp.sum(p[1:] ** 2)
    return curvature(p[1:]) * p[0] ** 2 / 2 + slow


FLOWS = {
    "adam": lambda **options: flows.adam_central_flow(
        valley, 0.002, b1=0.5, b2=0.9, num_directions=1, **options
    ),
    "rmsprop": lambda **options: flows.rmsprop_central_flow(
        valley, 0.001, decay=0.9, initial_scale=1e-4, num_directions=1, **options
    ),
    "scalar_rmsprop": lambda **options: flows.rmsprop_central_flow(
        valley, 0.01, decay=0.9, pooled=True, initial_scale=1e-4, num_directions=1, **options
    ),
}
START = jnp.array([0.001, 0.1, 0.2])


@pytest.mark.parametrize("name", FLOWS)
def test_the_preconditioned_curvature_is_held_to_second_order_in_the_substep(name):
    """The covariance acts on the average and on the second moment: a wrong factor in either shows."""
    excess = []
    for substeps in (2, 4):
        _, info, _ = FLOWS[name](substeps=substeps).trajectory(START, 80)
        excess.append(jnp.max(jnp.abs(info.sharpness_ratio[-20:] - 1)))
        assert info.num_critical[-1] == 1
        assert info.covariance_eigenvalues[-1, 0] > 0
    assert 3.5 < excess[0] / excess[1] < 4.5


OPTIMIZERS = {
    "adam": (optax.adam(0.002, b1=0.5, b2=0.9), 6.0),
    "rmsprop": (optax.rmsprop(0.001, decay=0.9, initial_scale=1e-4), 2.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_substep_below_the_edge_is_the_optimizer_itself(name):
    optimizer, threshold = OPTIMIZERS[name]
    flow = FLOWS[name]()
    _, info, path = flow.trajectory(START, 12, observe=lambda p: p)
    assert info.num_critical.max() == 0
    params, state = START, optimizer.init(START)
    for t in range(12):
        np.testing.assert_allclose(path[t], params, rtol=1e-9, atol=1e-12)
        updates, state = optimizer.update(jax.grad(valley)(params), state, params)
        # The sharpness of the preconditioned Hessian, densely.
        nu = optax.tree.get(state, "nu")
        weights, eps = (1 - 0.9 ** (t + 1), 0) if name == "adam" else (1, 1e-8)
        divisor = jnp.sqrt(nu / weights + eps) + (1e-8 - eps)
        scaled = jax.hessian(valley)(params) / jnp.sqrt(jnp.outer(divisor, divisor))
        largest = jnp.linalg.eigvalsh(scaled)[-1]
        np.testing.assert_allclose(info.eigenvalues[t, 0], largest, rtol=1e-7)
        rate = 0.002 if name == "adam" else 0.001
        np.testing.assert_allclose(info.sharpness_ratio[t], rate * largest / threshold, rtol=1e-7)
        params = optax.apply_updates(params, updates)


def test_scalar_rmsprop_below_the_edge():
    _, _, path = FLOWS["scalar_rmsprop"]().trajectory(START, 8, observe=lambda p: p)
    params, moment = START, 1e-4
    for t in range(8):
        np.testing.assert_allclose(path[t], params, rtol=1e-9, atol=1e-12)
        gradient = jax.grad(valley)(params)
        moment = 0.9 * moment + 0.1 * gradient @ gradient
        params = params - 0.01 * gradient / jnp.sqrt(moment + 1e-8)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="adam_central_flow: `b2`"):
        flows.adam_central_flow(valley, 0.1, b2=1.0)
    with pytest.raises(ValueError, match="rmsprop_central_flow: `decay`"):
        flows.rmsprop_central_flow(valley, 0.1, decay=0.0)
