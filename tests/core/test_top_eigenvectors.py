"""The block Krylov method against dense eigenvalues: trees, multiple eigenvalues, warm starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr._core import top_eigenvectors as eigen

SPECTRUM = np.concatenate([[5, 5, 3], np.linspace(2.5, -20, 17)])


def operator(dtype=jnp.float64, spectrum=SPECTRUM):
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))
    matrix = jnp.asarray(basis * spectrum @ basis.T, dtype)

    def product(tree):
        image = matrix @ jnp.concatenate([tree["a"], tree["b"].reshape(-1)])
        return {"a": image[:8], "b": image[8:].reshape(3, 4)}

    return product, {"a": jnp.zeros(8, dtype), "b": jnp.zeros((3, 4), dtype)}


def found(size, num_steps, dtype=jnp.float64, **options):
    product, like = operator(dtype, **options)
    start = eigen.random_block(jax.random.key(1), like, size)
    return eigen.top_eigenvectors(product, start, num_steps), product


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-12), (jnp.float32, 1e-5)])
@pytest.mark.parametrize(("size", "num_steps"), [(3, 9), (20, 1), (4, 20)])
def test_largest_eigenvalues_though_the_smallest_is_four_times_as_large(
    size, num_steps, dtype, tolerance
):
    top, product = found(size, num_steps, dtype)
    np.testing.assert_allclose(top.values, SPECTRUM[:size], atol=20 * tolerance)
    np.testing.assert_allclose(
        eigen.gram(top.vectors, top.vectors), np.eye(size), atol=10 * tolerance
    )
    images = jax.vmap(product)(top.vectors)
    np.testing.assert_allclose(
        eigen.gram(images, top.vectors), np.diag(SPECTRUM[:size]), atol=40 * tolerance
    )


def test_one_vector_sees_a_double_eigenvalue_once_and_a_block_sees_it_twice():
    single, _ = found(1, 20)
    np.testing.assert_allclose(single.values, [5])
    double, _ = found(2, 10)
    np.testing.assert_allclose(double.values, [5, 5])


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_residual_is_that_of_the_returned_vectors(num_steps):
    top, product = found(3, num_steps)
    images = jax.vmap(product)(top.vectors)
    for i in range(3):
        error = jnp.concatenate(
            [(images[k][i] - top.values[i] * top.vectors[k][i]).ravel() for k in ("a", "b")]
        )
        np.testing.assert_allclose(top.residuals[i], jnp.linalg.norm(error), rtol=1e-9)


def test_negative_definite_operator_and_an_exhausted_space():
    """Sixty vectors in a space of twenty: the forty empty ones are not the eigenvalue zero."""
    top, _ = found(3, 20, spectrum=SPECTRUM - 30)
    np.testing.assert_allclose(top.values, SPECTRUM[:3] - 30)


def test_warm_start_follows_an_operator_that_changes():
    top, _ = found(3, 9)
    product, _ = operator(spectrum=SPECTRUM + np.linspace(0.1, 0, 20))
    again = eigen.top_eigenvectors(product, top.vectors, 1)
    np.testing.assert_allclose(again.values, SPECTRUM[:3] + np.linspace(0.1, 0, 20)[:3])


def test_under_jit_and_vmap():
    product, like = operator()
    starts = jax.vmap(lambda k: eigen.random_block(k, like, 2))(
        jax.random.split(jax.random.key(0), 3)
    )
    values = jax.jit(jax.vmap(lambda s: eigen.top_eigenvectors(product, s, 10).values))(starts)
    np.testing.assert_allclose(values, np.full((3, 2), 5.0))
