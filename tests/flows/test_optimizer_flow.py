"""The flows of momentum: rates on a quadratic, coefficients, and slopes against `optax.sgd` itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_igr import flows

OPTIMIZERS = {
    "descent": ({}, lambda h: optax.sgd(h)),
    "heavy_ball": ({"momentum": 0.6}, lambda h: optax.sgd(h, momentum=0.6)),
    "nesterov": (
        {"momentum": 0.6, "nesterov": True},
        lambda h: optax.sgd(h, momentum=0.6, nesterov=True),
    ),
    "average": (
        {"momentum": 0.6, "averaged": True},
        lambda h: optax.chain(optax.ema(0.6, debias=False), optax.sgd(h)),
    ),
}


def smooth_loss(p):
    x, y = p
    return jnp.cosh(x) + jnp.sin(x * y) + 0.5 * (y - 0.3 * x**2) ** 2


@jax.jit(static_argnames=("name", "order"))
def trajectory_error(name, order, h, step_count):
    """The distance of the optimizer from its flow between the times 0.6 and 2.2.

    By then, after 60 steps or more, the momentum has forgotten its start.
    """
    options, optimizer = OPTIMIZERS[name]
    tx = optimizer(h)

    def step(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(smooth_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.array([0.9, -0.6])
    settled = jax.lax.fori_loop(0, 3 * step_count // 8, step, (params, tx.init(params)))
    end, _ = jax.lax.fori_loop(0, step_count, step, settled)
    field = flows.optimizer_flow(smooth_loss, h, order=order, **options)
    return jnp.linalg.norm(end - flows.integrate(field, settled[0], 1.6, rtol=1e-11, atol=1e-11))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_global_error_has_slope_two_with_the_correction_and_one_without(name):
    for order, slope in ((1, 2), (0, 1)):
        coarse, fine = (trajectory_error(name, order, h, round(1.6 / h)) for h in (0.01, 0.005))
        assert abs(jnp.log2(coarse / fine) - slope) < 0.12


@pytest.mark.parametrize(
    ("learning_rate", "momentum", "exact", "first_order"),
    [(0.01, 0.5, -2.0637411875, -2.06), (0.001, 0.9, -11.189151487, -10.95)],
)
def test_heavy_ball_rate_on_a_quadratic(learning_rate, momentum, exact, first_order):
    """λ = 1: the exact rate is log(z)/h with the larger root of z² - (1 + β - hλ)z + β."""
    b = 1 + momentum - learning_rate
    root = (b + np.sqrt(b**2 - 4 * momentum)) / 2
    np.testing.assert_allclose(np.log(root) / learning_rate, exact, rtol=1e-9)
    flow = flows.optimizer_flow(lambda x: x**2 / 2, learning_rate, momentum=momentum)
    np.testing.assert_allclose(flow(1.0), first_order, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.9])
def test_coefficients(beta):
    """The factors of Hg in closed form: heavy ball, Nesterov (4.0 and not 6.0 at β = .5), EMA."""
    h = 0.1

    def coefficient(**options):
        flow, plain = (
            flows.optimizer_flow(lambda x: x**2 / 2, h, order=order, **options) for order in (1, 0)
        )
        return -(flow(1.0) - plain(1.0)) / h

    heavy_ball = (1 + beta) / (2 * (1 - beta) ** 3)
    nesterov = (2 * beta**2 + 1 - beta) / (2 * (1 - beta) ** 3)
    average = (1 + beta) / (2 * (1 - beta))
    np.testing.assert_allclose(coefficient(momentum=beta), heavy_ball)
    np.testing.assert_allclose(coefficient(momentum=beta, nesterov=True), nesterov)
    np.testing.assert_allclose(coefficient(momentum=beta, averaged=True), average)


def test_without_momentum_it_is_the_modified_flow():
    point = jnp.array([0.9, -0.6])
    expected = flows.modified_flow(flows.gradient_flow(smooth_loss), 0.05, 1)(point)
    np.testing.assert_allclose(flows.optimizer_flow(smooth_loss, 0.05)(point), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "`momentum` must be a real number and >= 0 and < 1"),
        ({"order": 2}, "`order` must be one of 0, 1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=f"optimizer_flow: {message}"):
        flows.optimizer_flow(smooth_loss, 0.1, **options)


@pytest.mark.parametrize(
    "hvp", ["auto", "reverse_over_forward", "reverse_over_reverse", "central_difference"]
)
def test_every_mode_of_the_product_gives_the_same_field(hvp):
    point = jnp.array([0.9, -0.6])
    for make in (
        lambda **options: flows.optimizer_flow(smooth_loss, 0.1, momentum=0.5, **options),
        lambda **options: flows.adam_flow(smooth_loss, 0.1, eps_root=1e-2, **options),
        lambda **options: flows.minibatch_flow([smooth_loss, jnp.sum], 0.1, **options),
    ):
        expected = make(hvp="forward_over_reverse")(point)
        np.testing.assert_allclose(make(hvp=hvp)(point), expected, rtol=1e-5)


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="optimizer_flow: `hvp`"):
        flows.optimizer_flow(smooth_loss, 0.1, hvp="guess")
