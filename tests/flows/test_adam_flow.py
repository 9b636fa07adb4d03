"""The flow of Adam: the slope of the error against `optax.adam`, and limits in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_igr import flows

EPS_ROOT = 1e-2
START = jnp.array([0.9, -1.3, 0.4])


def smooth_loss(p):
    """Its gradient stays away from zero along the path, with entries of different sizes."""
    return jnp.sum(jnp.cosh(p)) + 0.5 * jnp.sin(p[0] * p[1]) + p[1] * p[2] ** 2 + 0.3 * p[0]


@jax.jit(static_argnames="order")
def trajectory_error(h, b1, b2, order, step_count):
    """The distance of Adam from its flow over the time 0.2, from one at which β^t is negligible."""
    tx = optax.adam(h, b1=b1, b2=b2, eps=0.0, eps_root=EPS_ROOT)

    def step(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(smooth_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    settled = jax.lax.fori_loop(0, 2 * step_count // 5, step, (START, tx.init(START)))
    end, _ = jax.lax.fori_loop(0, step_count, step, settled)
    field = flows.adam_flow(smooth_loss, h, b1, b2, EPS_ROOT, order=order)
    flow = flows.integrate(field, settled[0], h * step_count, rtol=1e-12, atol=1e-12)
    return jnp.linalg.norm(end - flow)


@pytest.mark.parametrize(("order", "slope"), [(1, 2), (0, 1)])
@pytest.mark.parametrize(
    ("b1", "b2"), [(0.5, 0.85), (0.8, 0.6), (0.0, 0.8)], ids=["adam", "fast_square", "rmsprop"]
)
def test_global_error_slope(b1, b2, order, slope):
    coarse, fine = (trajectory_error(h, b1, b2, order, round(0.2 / h)) for h in (0.0005, 0.00025))
    assert abs(jnp.log2(coarse / fine) - slope) < 0.15


def test_large_eps_is_heavy_ball_with_averaged_momentum():
    """As ε grows, √(g² + ε) is constant: momentum with weights that sum to one, at the rate h/√ε."""
    h, beta, eps_root = 0.01, 0.7, 1e10
    adam = flows.adam_flow(smooth_loss, h * eps_root**0.5, beta, 0.9, eps_root)
    average = flows.optimizer_flow(smooth_loss, h, momentum=beta, averaged=True)
    np.testing.assert_allclose(adam(START) * eps_root**0.5, average(START), rtol=1e-8)


def test_usual_decays_anti_penalise_the_norm():
    """For ε → 0 on a quadratic the flow is -sign(g) (1 - h (…) λ/|g|), with (…) > 0 as β₂ > β₁."""
    h, b1, b2 = 1e-3, 0.9, 0.99
    flow = flows.adam_flow(lambda x: x**2 / 2, h, b1, b2, 1e-20)(2.0)
    expected = -(1 + h / 2 * (1.9 / 0.1 - 1.99 / 0.01) / 2.0)
    np.testing.assert_allclose(flow, expected, rtol=1e-10)
    assert flow > -1


def test_zero_gradient_has_velocity_zero():
    assert flows.adam_flow(lambda x: jnp.sum(x**2), 0.1)(jnp.zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize("options", [{"eps_root": 0.0}, {"b1": 1.0}, {"b2": -0.1}])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=f"adam_flow: `{next(iter(options))}` must be"):
        flows.adam_flow(smooth_loss, 0.1, **options)
