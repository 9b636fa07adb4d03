"""The report of implicit regularisation against published numbers and the exact rates of momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_igr
from optax_igr import diagnostics
from optax_igr._core import derivatives
from tests.problems import two_weights

report = diagnostics.implicit_regularization


def test_barrett_and_dherins_two_weights():
    problem = two_weights()
    found = jax.jit(lambda p: report(problem.value_fn, p, 0.025))(problem.params)
    expected = {
        "regularization_rate": 0.025 * 2 / 4,
        "mean_squared_gradient": 850.2088,
        "slope": 1700.4176**0.5,
        "implicit_coefficient": 0.025 / 4,
        "modified_loss": 52.94761,
        # g Hg / gg from g = (32.2, 25.76) and Hg = (883.89, 813.7584).
        "directional_curvature": (32.2 * 883.89 + 25.76 * 813.7584) / 1700.4176,
        "series_is_valid": True,
    }
    for name, number in expected.items():
        assert getattr(found, name) == pytest.approx(number, rel=1e-7), name
    product = found.regularization_rate * found.mean_squared_gradient
    assert float(product) == pytest.approx(float(found.implicit_coefficient * found.slope**2))


@pytest.mark.parametrize("momentum", [{"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}])
def test_momentum_has_the_coefficient_of_igr_coefficient(momentum):
    found = report(two_weights().value_fn, two_weights().params, 1e-3, **momentum)
    assert float(found.implicit_coefficient) == pytest.approx(
        optax_igr.igr_coefficient(1e-3, **momentum)
    )


@pytest.mark.parametrize(
    ("options", "polynomial"),
    [
        ({}, lambda x, b: [1, x - 1]),
        ({"momentum": 0.5}, lambda x, b: [1, x - 1 - b, b]),
        ({"momentum": 0.9}, lambda x, b: [1, x - 1 - b, b]),
        ({"momentum": 0.5, "nesterov": True}, lambda x, b: [1, -(1 + b) * (1 - x), b * (1 - x)]),
    ],
)
def test_the_series_holds_until_the_steps_oscillate(options, polynomial):
    """The roots of the recurrence on a quadratic leave the positive axis where the report says so."""
    momentum = options.get("momentum", 0.0)

    def decays_without_oscillation(x):
        roots = np.roots(polynomial(x, momentum))
        return bool(np.all((np.abs(np.imag(roots)) < 1e-12) & (np.real(roots) > 0)))

    for x in np.geomspace(1e-4, 1.5, 60):
        found = report(lambda p: jnp.sum(p**2) / 2, jnp.ones(2, jnp.float64), x, **options)
        assert bool(found.series_is_valid) == decays_without_oscillation(x), x


def test_a_pytree_with_leaves_that_are_not_real():
    params = {
        "z": jnp.array([1 + 2j, 0.5j], jnp.complex128),
        "w": jnp.array([0.3, -0.7, 1.0], jnp.bfloat16),
        "count": jnp.array(3),
        "none": None,
    }

    def value_fn(p):
        modulus = jnp.sum(jnp.real(p["z"] * p["z"].conj()))
        return p["count"] * modulus / 2 + jnp.sum(p["w"].astype(jnp.float32) ** 2)

    found = report(value_fn, params, 0.1)
    w = np.float64(params["w"])
    squared = 9 * 5.25 + 4 * np.sum(w**2)
    assert float(found.slope) == pytest.approx(squared**0.5, rel=1e-6)
    assert float(found.regularization_rate) == pytest.approx(0.1 / 4 * 7)
    curvature = (3 * 9 * 5.25 + 2 * 4 * np.sum(w**2)) / squared
    assert float(found.directional_curvature) == pytest.approx(curvature, rel=1e-6)


def test_a_stationary_point_has_no_curvature_along_its_gradient():
    found = report(lambda p: jnp.sum(p**2), jnp.zeros(3), 0.1)
    assert float(found.directional_curvature) == 0
    assert bool(found.series_is_valid)


def test_negative_curvature_counts_by_its_size():
    found = report(lambda p: -jnp.sum(p**2) / 2, jnp.ones(3), 1.1)
    assert not bool(found.series_is_valid)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": lambda t: 0.1}, "learning_rate"),
        ({"learning_rate": 0.1, "momentum": 1.0}, "momentum"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"implicit_regularization: `{name}`"):
        report(jnp.sum, jnp.ones(2), **arguments)


@pytest.mark.parametrize("hvp", derivatives.MODES)
def test_every_mode_finds_the_curvature(hvp):
    problem = two_weights()
    found = report(problem.value_fn, problem.params, 0.025, hvp=hvp)
    expected = (32.2 * 883.89 + 25.76 * 813.7584) / 1700.4176
    assert float(found.directional_curvature) == pytest.approx(expected, rel=1e-6)


def test_an_unknown_mode_is_refused():
    problem = two_weights()
    with pytest.raises(ValueError, match="implicit_regularization: `hvp` must be one of 'auto'"):
        report(problem.value_fn, problem.params, 0.1, hvp="exact")
