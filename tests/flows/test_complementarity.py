"""The solver against the conditions that define the solution, and a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr.flows import _complementarity


def problem(seed, size, spread):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(size, size, 30)) * 10.0 ** -rng.uniform(0, spread, (size, size, 1))
    vectors = vectors + vectors.transpose(1, 0, 2)
    offset = rng.normal(size=(size, size)) * 1e-2
    return jnp.asarray(offset + offset.T), jnp.asarray(np.einsum("ijn,kln->ijkl", vectors, vectors))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("size", "spread"), [(1, 0), (2, 1), (3, 1), (4, 0.5)])
def test_both_matrices_are_semidefinite_and_orthogonal(seed, size, spread):
    offset, gram = problem(seed, size, spread)
    x = jax.jit(_complementarity.solve)(offset, gram)
    slack = offset + jnp.einsum("ijkl,kl->ij", gram, x)
    scale = jnp.linalg.norm(offset)
    assert jnp.linalg.eigvalsh(x)[0] >= -1e-12 * jnp.linalg.norm(x)
    assert jnp.linalg.eigvalsh(slack)[0] >= -1e-8 * scale
    assert jnp.abs(jnp.sum(x * slack)) <= 1e-8 * scale * jnp.maximum(jnp.linalg.norm(x), 1e-3)


def test_one_direction_has_a_closed_form():
    solve = jax.jit(_complementarity.solve)
    np.testing.assert_allclose(solve(jnp.array([[-0.3]]), jnp.full((1, 1, 1, 1), 2.0)), 0.15)
    np.testing.assert_array_equal(solve(jnp.array([[0.3]]), jnp.full((1, 1, 1, 1), 2.0)), 0)
    np.testing.assert_array_equal(solve(jnp.array([[-0.3]]), jnp.zeros((1, 1, 1, 1))), 0)
