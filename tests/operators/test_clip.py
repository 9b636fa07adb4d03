"""Clipping by matrix products against singular value decompositions in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from optax_igr.operators._spectral_clip import clip_singular_values

clip = jax.jit(clip_singular_values)


def by_svd(w, radius):
    left, values, right = np.linalg.svd(w, full_matrices=False)
    return (left * np.minimum(values, radius)) @ right


def normal(shape, is_complex=False, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=shape)
    return w + 1j * rng.normal(size=shape) if is_complex else w


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("shape", [(9, 24), (24, 9)])
def test_is_the_decomposition_to_rounding_at_every_radius(shape, is_complex):
    """Relative to what is left, so also where the norm is a million times the radius."""
    w = normal(shape, is_complex)
    norm = np.linalg.norm(w, 2)
    for radius in norm * np.array([1e-6, 1e-2, 0.3, 0.9, 0.999999]):
        np.testing.assert_allclose(clip(w, radius), by_svd(w, radius), rtol=0, atol=1e-13 * radius)


@pytest.mark.parametrize(
    "values",
    [
        np.ones(20),
        np.r_[np.ones(7), 1 + 1e-9 * np.arange(-3, 4), np.zeros(6)],
        np.geomspace(1e-12, 3.9, 20),
        1 + np.geomspace(1e-16, 0.1, 20) * (-1) ** np.arange(20),
    ],
    ids=["all at the radius", "a cluster and zeros", "twelve decades", "ever closer"],
)
def test_needs_no_gap_at_the_radius(values):
    left, right = (np.linalg.qr(normal((20, 20), seed=s))[0] for s in (1, 2))
    w = (left * values) @ right
    expected = (left * np.minimum(values, 1.0)) @ right
    np.testing.assert_allclose(clip(w, 1.0), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_float32_at_any_scale(scale):
    w = normal((12, 30)).astype(np.float32) * np.float32(scale)
    radius = np.float32(2.5 * scale)
    found = clip(w, radius)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, by_svd(np.float64(w), radius), rtol=0, atol=3e-6 * radius)


def test_a_stack_is_clipped_one_by_one_and_what_is_inside_stays_to_the_bit():
    w = normal((3, 8, 8)) * np.array([1e-3, 1.0, 1e5])[:, None, None]
    found = clip(w, 1.0)
    np.testing.assert_array_equal(found[0], w[0])
    for index in (1, 2):
        np.testing.assert_allclose(found[index], by_svd(w[index], 1.0), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(clip(np.zeros((3, 4)), 1.0), 0)
    assert jnp.all(jnp.isnan(clip(w[1] * np.nan, 1.0)))


def spectral_ball(w, radius):
    return jax.jit(optax_igr.projection_spectral_ball, static_argnames="operator")(
        w, radius, operator=optax_igr.matrix_operator()
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_every_loop_ends_wherever_weight_and_radius_stand(dtype):
    """From below the normal numbers to a norm above the largest, against decompositions in longer arithmetic.

    A processor may flush what is below the normal numbers to zero, so an entry is right to the least of them.
    """
    info = np.finfo(dtype)
    tiny, huge = info.tiny, info.max
    directions = normal((5, 8)) / 3
    for scale in (0, tiny / 64, tiny, 1e3 * tiny, 1, huge / 64, huge / 2):
        w = (directions * scale).astype(dtype)
        for radius in (1e2 * tiny, np.sqrt(tiny), 0.1, 1, np.sqrt(huge), huge / 8):
            found = np.asarray(spectral_ball(w, dtype(radius)))
            assert found.dtype == dtype
            # Scaled to what float64 holds; the projection is of degree one.
            shift = max(scale, radius)
            expected = by_svd(np.float64(w / dtype(shift)), radius / shift)
            tolerance = 20 * info.eps + 10 * tiny / shift
            np.testing.assert_allclose(
                np.float64(found / dtype(shift)), expected, rtol=0, atol=tolerance
            )


def test_each_matrix_of_a_stack_has_its_own_result_beside_zero_infinity_and_nan():
    w = normal((6, 4, 4)).astype(np.float32)
    w[0] = 0
    w[1, 2, 3] = np.inf
    w[2, 0, 0] = np.nan
    w[3] *= 1e30
    w[4] *= 1e-30
    found = spectral_ball(w, np.float32(0.1))
    np.testing.assert_array_equal(found[0], 0)
    assert np.all(np.isnan(found[1:3]))
    np.testing.assert_array_equal(found[4], w[4])
    for index in (3, 5):
        expected = by_svd(np.float64(w[index]), 0.1)
        np.testing.assert_allclose(found[index], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (40, 3)])
def test_a_zero_weight_stays_at_any_radius(shape):
    """Below a quarter of one the number of stages had no bound."""
    for radius in (1e-30, 0.1, 0.24, 0.26, 1e30):
        np.testing.assert_array_equal(spectral_ball(np.zeros(shape, np.float32), radius), 0)


def test_a_weight_without_entries_and_a_radius_of_zero():
    assert spectral_ball(jnp.zeros([0, 3]), 0.1).shape == (0, 3)
    np.testing.assert_array_equal(spectral_ball(normal((3, 4)), 0.0), 0)
    assert np.all(np.isnan(spectral_ball(normal((3, 4)), -1.0)))
    assert np.all(np.isnan(spectral_ball(normal((3, 4)), np.nan)))
    np.testing.assert_array_equal(spectral_ball(np.eye(3), np.inf), np.eye(3))


@pytest.mark.parametrize("size", [64, 256])
def test_a_flat_spectrum_takes_no_more_stages_than_a_steep_one(size):
    """All singular values equal: there a bound of the norm is loosest, and so a stage shortest."""
    w = np.linalg.qr(normal((size, size)))[0] * 1e4
    np.testing.assert_allclose(clip(w, 1.0), w / 1e4, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.complex64])
def test_runs_with_every_check_of_jax_switched_on(dtype):
    w = jnp.asarray(normal((2, 3, 4)), dtype).at[0].set(0)
    with (
        jax.debug_nans(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        matrices = optax_igr.matrix_operator()
        eager = optax_igr.projection_spectral_ball(w, 0.1, operator=matrices)
        assert eager.dtype == dtype
        # A compiled product may be rounded in another order.
        np.testing.assert_allclose(*map(np.complex128, (eager, spectral_ball(w, 0.1))), atol=1e-3)


def test_keeps_a_zero_initialised_layer_in_training():
    ball = functools.partial(
        optax_igr.projection_spectral_ball, radius=0.1, operator=optax_igr.matrix_operator()
    )
    optimizer = optax.chain(optax.sgd(1.0), optax_igr.keep_params_in(ball))
    params = {"stack": jnp.zeros([3, 2, 2]), "head": jnp.zeros([2, 2])}
    gradient = {"stack": jnp.zeros([3, 2, 2]).at[1].set(-jnp.eye(2)), "head": -jnp.eye(2)}
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["head"], 0.1 * jnp.eye(2), atol=1e-7)
    np.testing.assert_allclose(updates["stack"][1], 0.1 * jnp.eye(2), atol=1e-7)
    np.testing.assert_array_equal(updates["stack"][::2], 0)


@pytest.mark.parametrize("radius", [1.3, 0.05])
def test_derivatives_are_those_of_the_decomposition_in_both_modes(radius):
    w, tangent, cotangent = (jnp.array(normal((6, 4), seed=s)) for s in range(3))

    def reference(w, radius):
        left, values, right = jnp.linalg.svd(w, full_matrices=False)
        return (left * jnp.minimum(values, radius)[None]) @ right

    arguments, tangents = (w, jnp.array(radius)), (tangent, jnp.array(0.7))
    expected = jax.jvp(reference, arguments, tangents)[1]
    found = jax.jvp(clip_singular_values, arguments, tangents)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    pull_back = jax.vmap(jax.vjp(clip_singular_values, *arguments)[1])
    by_w, by_radius = pull_back(jnp.stack([cotangent, 2 * cotangent]))
    product = jnp.sum(by_w[1] * tangent) + by_radius[1] * 0.7
    assert float(product) == pytest.approx(2 * float(jnp.sum(cotangent * expected)), rel=1e-10)


def test_the_derivative_of_a_complex_matrix_is_its_own_adjoint():
    w, tangent, cotangent = (jnp.array(normal((6, 4), True, seed=s)) for s in range(3))

    def value(w):
        return jnp.sum(jnp.real(cotangent.conj() * clip_singular_values(w, jnp.array(1.3))))

    change = (value(w + 1e-5 * tangent) - value(w - 1e-5 * tangent)) / 2e-5
    found = jnp.sum(jnp.real(jax.grad(value)(w) * tangent))
    assert float(found) == pytest.approx(float(change), rel=1e-7)
