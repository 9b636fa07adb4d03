"""Implicit regularisation: orders of convergence, coefficients measured on `optax.sgd`, published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from optax_igr._core import trees
from tests.problems import tanh_network, two_weights

MOMENTA = {
    "descent": ({}, lambda h: optax.sgd(h)),
    "heavy_ball": ({"momentum": 0.5}, lambda h: optax.sgd(h, momentum=0.5)),
    "nesterov": (
        {"momentum": 0.5, "nesterov": True},
        lambda h: optax.sgd(h, momentum=0.5, nesterov=True),
    ),
    "average": (
        {"momentum": 0.5, "averaged": True},
        lambda h: optax.chain(optax.ema(0.5, debias=False), optax.sgd(h)),
    ),
    "nesterov_average": (
        {"momentum": 0.5, "nesterov": True, "averaged": True},
        lambda h: optax.chain(optax.trace(0.5, nesterov=True), optax.scale(0.5), optax.sgd(h)),
    ),
}
# The effective rate over the learning rate, 1/(1 - β) unless the weights of the gradients sum to one.
EFFECTIVE = {"descent": 1, "heavy_ball": 2, "nesterov": 2, "average": 1, "nesterov_average": 1}


def smooth_loss(p):
    """Smooth, coupled, with a Hessian that changes: no symmetry hides a wrong term."""
    x, y = p
    return jnp.cosh(x) + jnp.sin(x * y) + 0.5 * (y - 0.3 * x**2) ** 2


START = jnp.array([0.9, -0.6])


def trajectory(optimizer, num_steps):
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(
            jax.grad(smooth_loss)(params), state, params, value_fn=smooth_loss
        )
        params = optax.apply_updates(params, updates)
        return (params, state), params

    @jax.jit
    def run():
        return jax.lax.scan(step, (START, optimizer.init(START)), length=num_steps)[1]

    return run()


def velocity_error(optimizer, step_size, coefficient, effective):
    """How far the steps at time ½ are from the flow of E + coefficient ‖∇E‖², in velocity.

    By then the transient of the momentum's start, which no flow describes, has died out.
    """
    points = trajectory(optimizer, round(0.5 / step_size))
    velocity = (points[-1] - points[-3]) / (2 * step_size)

    def modified(p):
        return smooth_loss(p) + coefficient * trees.squared_norm(jax.grad(smooth_loss)(p))

    return float(jnp.linalg.norm(velocity + effective * jax.grad(modified)(points[-2])))


@pytest.mark.parametrize("name", MOMENTA)
def test_coefficient_is_that_of_optax_itself(name):
    arguments, make = MOMENTA[name]

    def error(h, factor):
        coefficient = factor * optax_igr.igr_coefficient(h, **arguments)
        return velocity_error(make(h), h, coefficient, EFFECTIVE[name])

    # The velocity of the modified flow is right to second order; with any other coefficient, to first.
    assert np.log2(error(2**-8, 1.0) / error(2**-9, 1.0)) == pytest.approx(2, abs=0.15)
    for wrong in (0.9, 1.1):
        assert np.log2(error(2**-8, wrong) / error(2**-9, wrong)) < 1.5


@pytest.mark.parametrize(
    ("arguments", "coefficient"),
    [
        ({}, 0.25),
        ({"momentum": 0.5}, 1.5),
        ({"momentum": 0.5, "nesterov": True}, 1.0),
        ({"momentum": 0.9}, 47.5),
        ({"momentum": 0.9, "averaged": True}, 4.75),
        ({"momentum": 0.9, "nesterov": True}, (2 * 0.81 + 0.1) / (4 * 0.01)),
    ],
)
def test_coefficient_in_closed_form(arguments, coefficient):
    assert optax_igr.igr_coefficient(1.0, **arguments) == pytest.approx(coefficient, rel=1e-12)


def test_coefficient_of_a_schedule_is_a_schedule():
    schedule = optax_igr.igr_coefficient(optax.linear_schedule(0.2, 0.0, 2), momentum=0.5)
    np.testing.assert_allclose([schedule(t) for t in range(3)], [0.3, 0.15, 0.0], rtol=1e-6)


def gradient_flow(duration):
    """Classical Runge-Kutta of order four; its error, 1e-11 here, is far below those it measures."""
    h = 2**-9

    def step(p, _):
        def field(q):
            return -jax.grad(smooth_loss)(q)

        k1 = field(p)
        k2 = field(p + h / 2 * k1)
        k3 = field(p + h / 2 * k2)
        k4 = field(p + h * k3)
        return p + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return jax.lax.scan(step, START, length=round(duration / h))[0]


def test_cancelling_makes_descent_a_second_order_integrator_of_gradient_flow():
    reference = gradient_flow(1.0)

    def errors(make):
        step_sizes = [2.0**-k for k in (5, 6, 7)]
        ends = [trajectory(make(h), round(1 / h))[-1] for h in step_sizes]
        return [float(jnp.linalg.norm(end - reference)) for end in ends]

    cancelled = errors(lambda h: optax.chain(optax_igr.cancel_igr(h), optax.sgd(h)))
    plain = errors(optax.sgd)
    assert np.log2(cancelled[1] / cancelled[2]) == pytest.approx(2, abs=0.1)
    assert np.log2(plain[1] / plain[2]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", [name for name in MOMENTA if name != "descent"])
def test_cancelling_follows_gradient_flow_with_momentum_too(name):
    arguments, make = MOMENTA[name]

    def error(h, chain):
        return velocity_error(chain(h), h, 0.0, EFFECTIVE[name])

    def cancelled(h):
        return optax.chain(optax_igr.cancel_igr(h, **arguments), make(h))

    assert np.log2(error(2**-8, cancelled) / error(2**-9, cancelled)) > 1.9
    assert np.log2(error(2**-8, make) / error(2**-9, make)) == pytest.approx(1, abs=0.15)


def test_two_weights_agree_in_all_three_forms():
    problem = two_weights()
    expected = [43.248625, 35.93198]
    of_loss = jax.grad(optax_igr.modified_loss(problem.value_fn, 0.025))(problem.params)
    transform = optax_igr.add_igr(0.025)
    updates, _ = transform.update(
        jax.grad(problem.value_fn)(problem.params),
        transform.init(problem.params),
        problem.params,
        value_fn=problem.value_fn,
    )
    np.testing.assert_allclose(of_loss, expected, rtol=1e-14)
    np.testing.assert_allclose(updates, expected, rtol=1e-14)
    value = optax_igr.modified_loss(problem.value_fn, 0.025)(problem.params)
    assert float(value) == pytest.approx(52.94761, rel=1e-12)


def test_adding_igr_is_a_penalty_of_a_quarter_of_the_step():
    network = tanh_network(dtype=jnp.float64)
    gradient = jax.grad(network.value_fn)(network.params)
    results = []
    for transform in (optax_igr.add_igr(0.2), optax_igr.add_gradient_penalty(0.05)):
        state = transform.init(network.params)
        results.append(
            transform.update(gradient, state, network.params, value_fn=network.value_fn)[0]
        )
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_adding_to_small_steps_follows_large_ones():
    """Many small steps on the modified loss reproduce large plain ones to second order."""

    def gap(h, transform):
        large = trajectory(optax.sgd(h), round(1 / h))[-1]
        small = trajectory(optax.chain(transform, optax.sgd(2**-12)), 2**12)[-1]
        return float(jnp.linalg.norm(large - small))

    # The small steps have an implicit coefficient of their own, 2⁻¹², which counts as well.
    with_igr = [gap(h, optax_igr.add_igr(h - 2**-12)) for h in (2**-5, 2**-6)]
    without = [gap(h, optax.identity()) for h in (2**-5, 2**-6)]
    assert np.log2(with_igr[0] / with_igr[1]) == pytest.approx(2, abs=0.15)
    assert np.log2(without[0] / without[1]) == pytest.approx(1, abs=0.15)


def test_scaling_the_loss_and_unscaling_the_rate_leaves_the_path_unchanged():
    def path(c):
        def value_fn(p):
            return c * smooth_loss(p)

        optimizer = optax.chain(optax_igr.add_igr(0.1 / c), optax.sgd(0.05 / c))
        params, state = START, optimizer.init(START)
        for _ in range(3):
            updates, state = optimizer.update(
                jax.grad(value_fn)(params), state, params, value_fn=value_fn
            )
            params = optax.apply_updates(params, updates)
        return params

    np.testing.assert_allclose(path(1.0), path(7.0), rtol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "amplification"),
    [
        ({}, 1),
        ({"momentum": 0.5}, 6),
        ({"momentum": 0.5, "nesterov": True}, 4),
        ({"momentum": 0.5, "averaged": True}, 3),
    ],
)
def test_holding_keeps_the_sum_of_coefficients_constant(arguments, amplification):
    # On E = λθ²/2 the update is λθ(1 + 2cλ), which reads off the explicit coefficient c.
    curvature, schedule = 3.0, optax.linear_schedule(0.2, 0.04, 4)
    transform = optax_igr.hold_igr(0.2, schedule, **arguments)
    theta = jnp.float64(2.0)
    state = transform.init(theta)
    for count in range(6):
        updates, state = transform.update(
            curvature * theta, state, theta, value_fn=lambda t: curvature * t**2 / 2
        )
        explicit = (float(updates) / (curvature * 2.0) - 1) / (2 * curvature)
        implicit = amplification * float(schedule(count)) / 4
        assert explicit + implicit == pytest.approx(amplification * 0.2 / 4, rel=1e-6)


def test_holding_accepts_a_schedule_as_reference():
    reference = optax.linear_schedule(0.4, 0.2, 2)
    transform = optax_igr.hold_igr(reference, 0.1)
    theta = jnp.float64(1.0)
    state = transform.init(theta)
    for expected in (0.4, 0.3, 0.2, 0.2):
        updates, state = transform.update(theta, state, theta, value_fn=lambda t: t**2 / 2)
        assert float(updates) == pytest.approx(1 + (expected - 0.1) / 2, rel=1e-6)


@pytest.mark.parametrize("hvp", ["reverse_over_reverse", "central_difference"])
def test_options_reach_the_penalty(hvp):
    mask = [{"kernel": True, "bias": False}] * 3
    network = tanh_network(dtype=jnp.float64)
    gradient = jax.grad(network.value_fn)(network.params)

    def update(transform):
        state = transform.init(network.params)
        return transform.update(gradient, state, network.params, value_fn=network.value_fn)[0]

    expected = update(optax_igr.add_gradient_penalty(0.05, hvp=hvp, mask=mask))
    for transform in (
        optax_igr.add_igr(0.2, hvp=hvp, mask=mask),
        optax_igr.hold_igr(0.3, 0.1, hvp=hvp, mask=mask),
    ):
        jax.tree.map(
            lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-12), update(transform), expected
        )
    negative = update(optax_igr.cancel_igr(0.2, hvp=hvp, mask=mask))
    jax.tree.map(
        lambda n, g, e: np.testing.assert_allclose(n, 2 * g - e, rtol=1e-9, atol=1e-13),
        negative,
        gradient,
        expected,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optax_igr.add_igr(-0.1), "add_igr: `step_size` must be .* >= 0"),
        (lambda: optax_igr.cancel_igr(0.1, momentum=1.0), "cancel_igr: `momentum` must be .* < 1"),
        (
            lambda: optax_igr.cancel_igr(0.1, momentum=lambda t: 0.9),
            "cancel_igr: `momentum` must be a number, got a schedule",
        ),
        (
            lambda: optax_igr.hold_igr(None, 0.1),
            "hold_igr: `reference_learning_rate` must be a real number or a schedule",
        ),
        (lambda: optax_igr.igr_coefficient(-1.0), "igr_coefficient: `learning_rate` must be"),
        (
            lambda: optax_igr.modified_loss(jnp.sum, lambda t: t),
            "modified_loss: `step_size` must be a number",
        ),
    ],
)
def test_bad_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("argument", ["averaged", "nesterov"])
@pytest.mark.parametrize("value", [0.5, 1, None, "yes"])
def test_a_switch_that_is_no_boolean_is_refused(argument, value):
    message = rf"`{argument}` must be True or False"
    for make in (
        optax_igr.igr_coefficient,
        optax_igr.cancel_igr,
        lambda rate, **options: optax_igr.hold_igr(0.1, rate, **options),
    ):
        with pytest.raises(ValueError, match=message):
            make(0.1, **{argument: value})
