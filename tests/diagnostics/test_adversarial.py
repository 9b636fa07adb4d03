"""Input robustness against linear classifiers, whose distance to the boundary is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr.diagnostics import input_robustness

W = jnp.array([[1.0, 0.0], [-2.0, 0.5], [0.5, -1.0], [0.0, 2.0]], jnp.float64)
X = jax.random.normal(jax.random.key(0), (40, 4), jnp.float64)
LABELS = jnp.argmax(X @ W, axis=-1)
RADII = [0.0, 0.1, 0.2, 0.4, 0.8]


def linear(w, x):
    return x @ w


def distances(order):
    """To the boundary of a linear classifier of two classes, in the norm whose dual has this order."""
    logits = np.asarray(X @ W)
    return np.abs(logits[:, 0] - logits[:, 1]) / np.linalg.norm(W[:, 0] - W[:, 1], order)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_a_linear_classifier_breaks_at_its_distance_to_the_boundary(norm, dual):
    exact = [np.mean(distances(dual) > radius) for radius in RADII]
    curve = jax.jit(
        lambda w: input_robustness(linear, w, X, LABELS, RADII, norm=norm, num_steps=40)
    )(W)
    assert 0.1 < exact[3] < 0.9
    np.testing.assert_allclose(curve.pgd_accuracy, exact, atol=1e-12)
    # One step of the full radius is the best attack on a linear model.
    np.testing.assert_allclose(curve.fgsm_accuracy, exact, atol=1e-12)
    assert np.all(np.diff(curve.pgd_accuracy) <= 0)


def test_the_margin_breaks_a_model_that_is_too_sure_for_cross_entropy():
    """Its probabilities round to one, so that the cross-entropy has no gradient at all."""

    def sure(w, x):
        return 1e4 * linear(w, x)

    entropy = -jnp.take_along_axis(
        jax.nn.log_softmax(sure(W, X).astype(jnp.float32)), LABELS[:, None], axis=1
    )
    assert jnp.mean(entropy == 0) > 0.8
    expected = input_robustness(linear, W, X, LABELS, RADII).pgd_accuracy
    np.testing.assert_array_equal(
        input_robustness(sure, W, X, LABELS, RADII).pgd_accuracy, expected
    )


def test_an_attack_stays_in_the_ball_and_within_the_bounds():
    seen = []

    def spying(w, x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return linear(w, x)

    inputs = jnp.clip(X, 0, 1)
    input_robustness(spying, W, inputs, LABELS, [0.3], bounds=(0.0, 1.0), num_steps=5)
    jax.effects_barrier()
    assert len(seen) > 5
    for x in seen:
        assert np.all((x >= 0) & (x <= 1))
        assert np.max(np.abs(x - inputs)) <= 0.3 + 1e-12
    assert max(np.max(np.abs(x - inputs)) for x in seen) == pytest.approx(0.3)


def test_wilsons_interval():
    curve = input_robustness(linear, W, X, LABELS, [0.0])
    # All of 40: the interval is [n / (n + z²), 1].
    assert float(curve.pgd_accuracy[0]) == 1
    assert float(curve.lower[0]) == pytest.approx(40 / (40 + 1.959964**2), rel=1e-6)
    assert float(curve.upper[0]) == pytest.approx(1)


def test_a_model_of_constant_logits_is_wrong_and_has_no_gradient():
    curve = input_robustness(lambda w, x: jnp.zeros((len(x), 2)), W, X, LABELS, RADII)
    np.testing.assert_array_equal(curve.pgd_accuracy, 0)


def test_radii_are_sorted_and_progress_counts_them():
    seen = []
    curve = input_robustness(
        linear, W, X, LABELS, [0.4, 0.0], progress=lambda *done: seen.append(done)
    )
    jax.effects_barrier()
    np.testing.assert_array_equal(curve.radii, [0.0, 0.4])
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1"}, "`norm`"),
        ({"num_steps": 0}, "`num_steps`"),
        ({"radii": 0.1}, ".*`radii`"),
        ({"labels": jnp.zeros([3], int)}, ".*`labels`"),
        ({"inputs": X[:0], "labels": LABELS[:0]}, ".*at least one"),
        ({"labels": LABELS + 1}, "`labels` must be from 0 to 1, since the model has 2 classes"),
        ({"labels": LABELS - 1}, "`labels` must be from 0 to 1"),
        ({"labels": LABELS.astype(float)}, "`labels` must be integers"),
        ({"radii": [0.0, -0.08]}, r"`radii` must be finite and at least 0, got \[0.0, -0.08\]"),
        ({"radii": [0.0, np.nan]}, "`radii`"),
        ({"radii": [0.0, np.inf]}, "`radii`"),
        ({"bounds": (1, 0)}, r"`bounds` must be .*, got \[1, 0\]"),
        ({"bounds": (np.nan, 1.0)}, "`bounds`"),
        ({"bounds": (0.0, 0.1)}, r"`inputs` must be within `bounds`, \(0.0, 0.1\)"),
        ({"inputs": X.at[3, 1].set(np.nan)}, "`inputs` must be finite"),
        ({"step_size": 0.0}, "`step_size`"),
        ({"step_size": np.nan}, "`step_size`"),
        ({"params": W[:, :1], "labels": 0 * LABELS}, "`apply_fn` must return .* two classes"),
        ({"apply_fn": lambda w, x: (x @ w)[:, 0]}, "`apply_fn` must return"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    arguments = {
        "apply_fn": linear,
        "params": W,
        "inputs": X,
        "labels": LABELS,
        "radii": [0.1],
        **arguments,
    }
    with pytest.raises(ValueError, match=f"input_robustness: {message}"):
        input_robustness(**arguments)
    params, apply_fn = arguments.pop("params"), arguments.pop("apply_fn")
    with pytest.raises(ValueError, match=f"input_robustness: {message}"):
        jax.jit(lambda w: input_robustness(apply_fn, w, **arguments))(params)


@pytest.mark.parametrize(
    "changed", [{"labels": LABELS + 1}, {"radii": -jnp.ones(2)}, {"inputs": X.at[0, 0].set(np.inf)}]
)
def test_where_values_are_traced_what_would_be_an_error_is_nan(changed):
    """Not an accuracy of zero."""
    right = {"inputs": X, "labels": LABELS, "radii": jnp.ones(2) / 10}
    measure = jax.jit(lambda **arrays: input_robustness(linear, W, **arrays, num_steps=2))
    assert np.all(np.isfinite(measure(**right).pgd_accuracy))
    for field in measure(**{**right, **changed})[1:]:
        assert np.all(np.isnan(field))


def test_bytes_lists_and_booleans_are_inputs_and_labels():
    pixels = np.array([[200, 10], [20, 220], [130, 120]], np.uint8)
    labels = [False, True, False]
    weights = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    curve = input_robustness(linear, weights, pixels, labels, [0, 4, 6, 120], bounds=(0, 255))
    # Their distances to the boundary are 95, 100 and 5.
    np.testing.assert_allclose(curve.pgd_accuracy, [1, 1, 2 / 3, 0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
def test_runs_with_every_check_of_jax_switched_on(dtype):
    inputs, weights = X.astype(dtype), W.astype(jnp.float32)
    with (
        jax.debug_nans(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        for norm in ("linf", "l2"):
            curve = input_robustness(linear, weights, inputs, LABELS, [0.0, 0.3], norm=norm)
            assert np.all(np.isfinite(curve.lower))
