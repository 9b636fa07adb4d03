"""Two players with learning rates in the ratio 4: the order of the error, and bilinear games."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr import flows


def first_loss(z):
    x, y = z
    return jnp.sin(x[0] * y[0]) + jnp.sum(x**2) / 2 + x[1] * y[0] ** 2


def second_loss(z):
    x, y = z
    return y[0] * jnp.cosh(x[0]) - x[1] * jnp.cos(y[0]) + y[0] ** 2


VALUE_FNS = (first_loss, second_loss)
START = (jnp.array([0.5, -0.4]), jnp.array([0.7]))


@jax.jit(static_argnames=("updates", "formula", "order"))
def error_after(rate, step_count, updates, formula, ratio, order):
    def step(_, z):
        x, y = z
        moved = x - rate * ratio * jax.grad(lambda x: first_loss((x, y)))(x)
        seen = moved if updates == "alternating" else x
        return moved, y - rate * jax.grad(lambda y: second_loss((seen, y)))(y)

    x, y = jax.lax.fori_loop(0, step_count, step, START)
    field = flows.two_player_flow(VALUE_FNS, (ratio * rate, rate), updates=formula, order=order)
    end = flows.integrate(field, START, 1.0 * step_count, rtol=1e-11, atol=1e-11)
    return jnp.sqrt(jnp.sum((x - end[0]) ** 2) + jnp.sum((y - end[1]) ** 2))


@pytest.mark.parametrize("updates", ["simultaneous", "alternating"])
def test_global_error_has_slope_two_for_its_own_updates_alone(updates):
    other = "alternating" if updates == "simultaneous" else "simultaneous"
    for formula, order, slope in ((updates, 1, 2), (other, 1, 1), (updates, 0, 1)):
        for ratio in (4.0, 0.25, 1.0):
            coarse, fine = (
                error_after(rate, round(0.4 / rate), updates, formula, ratio, order)
                for rate in (0.004, 0.002)
            )
            assert abs(jnp.log2(coarse / fine) - slope) < 0.15


def test_simultaneous_is_the_modified_flow_of_the_joint_field():
    rates = (0.2, 0.05)

    def joint(z):
        x, y = z
        return (
            -rates[0] * jax.grad(lambda x: first_loss((x, y)))(x),
            -rates[1] * jax.grad(lambda y: second_loss((x, y)))(y),
        )

    expected = flows.modified_flow(joint, 1.0, 1)(START)
    for ours, theirs in zip(flows.two_player_flow(VALUE_FNS, rates)(START), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_bilinear_game_spirals_by_the_product_of_the_rates():
    """For the game xy with rates α and λ: d/dt (x²/α + y²/λ) = αλ (x²/α + y²/λ) at simultaneous
    updates, and alternating updates conserve x²/α + y²/λ - xy to this order."""
    alpha, rate = 0.4, 0.1
    value_fns = (lambda z: z[0] * z[1], lambda z: -z[0] * z[1])
    z = (jnp.array(0.8), jnp.array(-0.3))

    def energy(z):
        return z[0] ** 2 / alpha + z[1] ** 2 / rate

    simultaneous = flows.two_player_flow(value_fns, (alpha, rate))(z)
    growth = jax.jvp(energy, (z,), (simultaneous,))[1]
    np.testing.assert_allclose(growth, alpha * rate * energy(z), rtol=1e-12)
    alternating = flows.two_player_flow(value_fns, (alpha, rate), updates="alternating")(z)
    change = jax.jvp(lambda z: energy(z) - z[0] * z[1], (z,), (alternating,))[1]
    np.testing.assert_allclose(change, 0, atol=1e-12)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"two_player_flow: .updates. must be one of"):
        flows.two_player_flow(VALUE_FNS, (0.1, 0.1), updates="random")
    with pytest.raises(ValueError, match=r"must each have two elements, got 2 and 1"):
        flows.two_player_flow(VALUE_FNS, (0.1,))
