"""Parameter robustness against the moments of the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from optax_igr.diagnostics import _student, parameter_noise, parameter_robustness

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


@pytest.mark.parametrize("draws", [2, 3, 4, 5, 11, 30, 101])
def test_the_interval_has_students_quantile(draws):
    """Of two draws it is 12.706 standard errors wide, in float64 and to its last digits."""
    curve = parameter_robustness(jnp.sum, jnp.zeros(3, jnp.float64), KEY, [1.0], "additive", draws)
    error = np.std(curve.draws[0], ddof=1) / draws**0.5
    found = float(curve.upper[0] - curve.mean[0]) / error
    assert found == pytest.approx(scipy.stats.t.ppf(0.975, draws - 1), rel=1e-12)


def test_the_quantile_for_every_number_of_draws():
    assert _student.half_width(1) == pytest.approx(12.706204736174696, rel=1e-14)
    for degrees in (*range(1, 260), 1000, 10**5, 10**9):
        expected = scipy.stats.t.ppf(0.975, degrees)
        assert _student.half_width(degrees) == pytest.approx(expected, rel=1e-9), degrees


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.complex64])
@pytest.mark.parametrize("noise", parameter_noise.NOISES)
def test_runs_with_every_check_of_jax_switched_on(noise, dtype):
    params = {"w": jnp.zeros([3, 2], dtype).at[0].set(1), "n": np.int32(1), "x": 1.5}
    with (
        jax.debug_nans(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        curve = parameter_robustness(
            lambda p: jnp.sum(jnp.abs(p["w"])), params, KEY, [0.0, 0.5], noise, draws=2
        )
    assert np.all(np.isfinite(curve.upper))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": "uniform"}, "`noise`"),
        ({"draws": 1}, "`draws`"),
        ({"scales": 0.1}, "`scales`"),
        ({"scales": [0.1, -0.2]}, r"`scales` must be finite and at least 0, got \[0.1, -0.2\]"),
        ({"scales": [np.nan]}, "`scales`"),
        ({"scales": [0.0, np.inf]}, "`scales`"),
        ({"metric_fn": jnp.exp}, "`metric_fn` must return a real scalar"),
        ({"metric_fn": lambda w: jnp.sum(w) * 1j}, "`metric_fn` must return a real scalar"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    arguments = {
        "metric_fn": jnp.sum,
        "params": jnp.ones(2),
        "key": KEY,
        "scales": [0.1],
        **arguments,
    }
    for run in (lambda w: w, jax.jit(lambda w: parameter_robustness(**{**arguments, "params": w}))):
        with pytest.raises(ValueError, match=f"parameter_robustness: {message}"):
            parameter_robustness(**{**arguments, "params": run(jnp.ones(2))})


def test_a_traced_scale_out_of_range_is_nan():
    measure = jax.jit(lambda scales: parameter_robustness(jnp.sum, jnp.ones(2), KEY, scales).mean)
    assert np.all(np.isfinite(measure(jnp.array([0.1, 0.2]))))
    assert np.all(np.isnan(measure(jnp.array([0.1, -0.2]))))
