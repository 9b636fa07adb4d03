import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_igr as igr

X = jnp.exp(jax.random.normal(jax.random.key(0), (3, 4, 5)))


def divergence(w, x):
    return jnp.sum(w * jnp.log(w / x) - w + x)


def test_it_minimises_the_divergence_over_the_simplex():
    x = X[0, 0]
    projected = igr.projection_simplex_kl(x, total=2.0)
    np.testing.assert_allclose(projected.sum(), 2, rtol=1e-14)
    slope = jax.grad(divergence)(projected, x)
    np.testing.assert_allclose(slope, slope.mean(), atol=1e-14)


def test_the_generalised_pythagorean_identity_holds():
    x, point = X[0, 0], jax.nn.softmax(X[1, 1])
    projected = igr.projection_simplex_kl(x)
    np.testing.assert_allclose(
        divergence(point, x), divergence(point, projected) + divergence(projected, x), rtol=1e-13
    )


@pytest.mark.parametrize("axis", [0, -1, (0, 2), None])
def test_any_axis_of_every_leaf(axis):
    projected = igr.projection_simplex_kl({"a": X, "b": (X[:1], None)}, axis=axis, total=3.0)
    for leaf, source in ((projected["a"], X), (projected["b"][0], X[:1])):
        np.testing.assert_allclose(leaf.sum(axis), 3, rtol=1e-13)
        ratio = leaf / source
        np.testing.assert_allclose(
            ratio, jnp.broadcast_to(ratio.max(axis, keepdims=True), leaf.shape)
        )


def test_extreme_and_negative_entries():
    x = jnp.array([[1e38, 3e38, 2e38], [0.0, -1.0, 0.0], [-5.0, 2e-38, 6e-38]], jnp.float32)
    expected = [[1 / 6, 3 / 6, 2 / 6], [1 / 3, 1 / 3, 1 / 3], [0, 0.25, 0.75]]
    np.testing.assert_allclose(igr.projection_simplex_kl(x), expected, rtol=1e-5)


def test_narrow_leaves_are_summed_in_float32():
    projected = igr.projection_simplex_kl(jnp.ones(1000, jnp.bfloat16))
    assert projected.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(projected), 1e-3, rtol=2**-8)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"projection_simplex_kl: `total` must be .* > 0"):
        igr.projection_simplex_kl(X, total=0.0)
    with pytest.raises(ValueError, match="projection_simplex_kl: `axis`"):
        igr.projection_simplex_kl(X, axis="rows")
    with pytest.raises(ValueError, match=r"projection_simplex_kl: tree\['b'\] .* has no axis 1"):
        igr.projection_simplex_kl({"b": jnp.ones(2)}, axis=1)


def test_a_small_entry_beside_a_large_one_is_not_lost():
    x = jnp.array([1e-30, 1e5], jnp.float32)
    np.testing.assert_allclose(igr.projection_simplex_kl(x), [1e-35, 1.0], rtol=1e-5)
