"""Clipping by matrix products against singular value decompositions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
