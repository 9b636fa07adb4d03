"""Parameter robustness against the moments of the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr.diagnostics import parameter_noise, parameter_robustness

KEY = jax.random.key(0)
PARAMS = {
    "w": jnp.arange(1.0, 6001.0).reshape(2000, 3) / 1000,
    "b": jnp.array([3.0, 4.0]),
    "count": jnp.array(2),
    "none": None,
}


@pytest.mark.parametrize(
    ("noise", "variance"),
    [
        ("multiplicative", lambda w: np.mean(w**2, axis=0)),
        ("additive", lambda w: np.ones(3)),
        ("filter_normalised", lambda w: np.mean(w**2, axis=0)),
    ],
)
def test_the_noise_has_the_variance_of_its_definition(noise, variance):
    perturbed = parameter_noise.perturb(PARAMS, KEY, 0.5, noise)
    difference = np.asarray(perturbed["w"] - PARAMS["w"])
    expected = 0.25 * variance(np.asarray(PARAMS["w"]))
    tolerance = 1e-5 if noise == "filter_normalised" else 0.2
    np.testing.assert_allclose(np.mean(difference**2, axis=0), expected, rtol=tolerance)
    assert perturbed["count"] == 2
    if noise == "filter_normalised":
        assert np.linalg.norm(perturbed["b"] - PARAMS["b"]) == pytest.approx(2.5, rel=1e-6)


def test_multiplicative_noise_leaves_a_zero_where_it_is():
    perturbed = parameter_noise.perturb(jnp.array([0.0, 1.0]), KEY, 1.0, "multiplicative")
    assert perturbed[0] == 0
    assert perturbed[1] != 1


def test_the_interval_is_students_and_a_draw_is_the_same_noise_at_every_scale():
    curve = parameter_robustness(
        lambda w: jnp.sum(w), jnp.zeros(4, jnp.float64), KEY, [0.0, 1.0, 2.0], "additive", 10
    )
    np.testing.assert_allclose(curve.draws[2], 2 * curve.draws[1], rtol=1e-12)
    np.testing.assert_array_equal(curve.draws[0], 0)
    half_width = 2.262157 * float(np.std(curve.draws[1], ddof=1)) / 10**0.5
    assert float(curve.upper[1] - curve.mean[1]) == pytest.approx(half_width, rel=1e-3)
    assert float(curve.mean[1] - curve.lower[1]) == pytest.approx(half_width, rel=1e-3)


def test_the_mean_over_many_draws_is_the_expectation():
    """E ½‖w(1 + sε) - w‖² = s² ‖w‖²/2."""
    w = jnp.array([1.0, -2.0, 0.5], jnp.float64)
    curve = parameter_robustness(
        lambda p: jnp.sum((p - w) ** 2) / 2, w, KEY, [0.1, 0.3], draws=2000
    )
    np.testing.assert_allclose(curve.mean, [0.01 * 5.25 / 2, 0.09 * 5.25 / 2], rtol=0.1)
    assert np.all(curve.lower < curve.mean)


def test_one_program_serves_all_scales_and_draws():
    traces, seen = [], []

    def metric(params):
        traces.append(params)
        return jnp.sum(params)

    parameter_robustness(
        metric,
        jnp.ones(3),
        KEY,
        jnp.linspace(0, 1, 5),
        draws=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    jax.effects_barrier()
    assert len(traces) <= 2
    assert seen == [(done, 20) for done in range(1, 21)]


def test_runs_inside_jit_and_keeps_dtypes():
    metric = jax.jit(
        lambda p, key: (
            parameter_robustness(
                lambda p: jnp.mean(p == p).astype(p.dtype), p, key, [0.1], draws=2
            ).mean
        )
    )
    assert metric(jnp.ones(3, jnp.bfloat16), KEY) == 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"noise": "uniform"}, "noise"), ({"draws": 1}, "draws"), ({"scales": 0.1}, "scales")],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"parameter_robustness: `{name}`"):
        parameter_robustness(jnp.sum, jnp.ones(2), KEY, **{"scales": [0.1], **arguments})
