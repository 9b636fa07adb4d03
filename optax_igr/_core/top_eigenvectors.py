r"""The largest eigenvalues of a symmetric operator on pytrees, by a block Krylov method.

From a block of start vectors :math:`V`, products with the operator :math:`H` make an orthonormal
basis :math:`Q` of :math:`\mathrm{span}(V, HV, \dots, H^{m-1}V)`. The largest eigenvalues
:math:`\theta` of :math:`T = Q^\top H Q`, with eigenvectors :math:`s`, approach those of
:math:`H` from below, and the residual says how far each is from *an* eigenvalue of :math:`H`:

.. math:: \min_j |\lambda_j - \theta| \le \|H Q s - \theta Q s\|

A block of one vector is Lanczos' method. A block of several also finds an eigenvalue that occurs
several times, of which a single vector sees one direction only. A space of Krylov does not change
when a multiple of the identity is added to :math:`H`, so negative curvature of any size is no
obstacle.

A block is a tree whose leaves have one more axis, the first, over the vectors.

References:
  Parlett, `The Symmetric Eigenvalue Problem <https://doi.org/10.1137/1.9781611971163>`_, 1998,
  chapter 13
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_igr._core import trees
from optax_igr._core.derivatives import LinearMap
from optax_igr._core.trees import Tree


class TopEigenvectors(NamedTuple):
    r"""The algebraically largest eigenvalues of an operator.

    Attributes:
      values: in descending order, of shape `(k,)`.
      vectors: a block of `k` orthonormal vectors.
      residuals: the norms of :math:`H v - \theta v`, of shape `(k,)`.
    """

    values: jax.Array
    vectors: Tree
    residuals: jax.Array


def top_eigenvectors(product: LinearMap, start: Tree, num_steps: int) -> TopEigenvectors:
    """Returns as many of the largest eigenvalues as `start` has vectors.

    Args:
      product: the operator, on one tree of real leaves.
      start: a block of `k` vectors: random ones, or the eigenvectors of an operator near by. No
        more than the dimension of the space.
      num_steps: the number of products per vector of the block, at least 1. With 1 the result is the
        best of the span of `start` (Rayleigh-Ritz), and no vector outside it is found.

    Returns:
      A :class:`TopEigenvectors`. It needs the memory of `k * num_steps` vectors.
    """
    size = jax.tree.leaves(start)[0].shape[0]
    dtype = trees.scalar_dtype(start)
    rows = size * num_steps
    basis = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), start)
    filled = jnp.zeros(rows, bool)
    basis, filled = _append(basis, filled, start, 0)

    def extend(step, carry):
        basis, filled, projected, _ = carry
        position = step * size
        images = jax.lax.map(product, _rows(basis, position, size))
        # Projecting once leaves an error of the order of the rounding times the length taken away.
        coefficients = gram(basis, images)
        rest = _subtract(images, combine(coefficients.T, basis))
        again = gram(basis, rest)
        rest = _subtract(rest, combine(again.T, basis))
        columns = coefficients + again
        projected = jax.lax.dynamic_update_slice(projected, columns, (0, position))
        # There is no room for the vectors of the last step: they make the residual alone.
        basis, filled = _append(basis, filled, rest, position + size)
        return basis, filled, projected, rest

    carry = basis, filled, jnp.zeros((rows, rows), dtype), jax.tree.map(jnp.zeros_like, start)
    basis, filled, projected, rest = jax.lax.fori_loop(0, num_steps, extend, carry)

    # Each column was projected on the vectors known at its step, so half of the matrix is there.
    matrix = jnp.triu(projected) + jnp.triu(projected, 1).T
    # An empty row is a vector of length zero: without this it would count as the eigenvalue zero.
    bound = 2 * jnp.max(jnp.sum(jnp.abs(matrix), axis=0)) + 1
    matrix = matrix - jnp.diag(jnp.where(filled, 0, bound))
    values, coefficients = jnp.linalg.eigh(matrix)
    values, coefficients = values[::-1][:size], coefficients[:, ::-1][:, :size]
    vectors = combine(coefficients.T, basis)
    last = coefficients[rows - size :]
    residuals = jnp.sqrt(jnp.maximum(jnp.diagonal(last.T @ gram(rest, rest) @ last), 0))
    return TopEigenvectors(values, vectors, residuals)


def random_block(key: jax.Array, like: Tree, size: int) -> Tree:
    """Returns a block of `size` normal random vectors with the shapes and dtypes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, max(len(leaves), 1))
    return structure.unflatten(
        jax.random.normal(k, (size, *x.shape), x.dtype) for k, x in zip(keys, leaves, strict=False)
    )


def gram(x: Tree, y: Tree) -> jax.Array:
    """Returns the inner products of the vectors of two blocks, a matrix in float32 or wider."""

    def leaf(a, b):
        axes = list(range(1, a.ndim))
        wide = trees.widened(a.dtype)
        return jnp.real(jnp.tensordot(a.conj().astype(wide), b.astype(wide), (axes, axes)))

    products = jax.tree.leaves(jax.tree.map(leaf, x, y))
    dtype = trees.scalar_dtype(x)
    return functools.reduce(jnp.add, (p.astype(dtype) for p in products))


def combine(coefficients: jax.Array, block: Tree) -> Tree:
    """Returns the block whose vector `i` is the sum over `j` of `coefficients[i, j]` times vector `j`."""
    return jax.tree.map(lambda x: jnp.tensordot(coefficients.astype(x.dtype), x, 1), block)


def _append(basis: Tree, filled: jax.Array, block: Tree, position) -> tuple[Tree, jax.Array]:
    """Orthonormalizes the vectors of a block one after the other, and writes them at `position`."""
    rows = filled.shape[0]

    def one(i, carry):
        basis, filled = carry
        vector, _ = trees.unit(jax.tree.map(lambda x: x[i], block))
        for _ in range(2):
            vector = trees.subtract(vector, _project(basis, vector))
        # What is left of a vector that the basis already spans is rounding, of any direction.
        norm = trees.norm(vector)
        is_new = norm > 1e-3
        vector = trees.scale(jnp.where(is_new, 1 / jnp.where(is_new, norm, 1), 0), vector)
        vector = trees.subtract(vector, _project(basis, vector))
        place = position + i

        def write(buffer, x):
            return buffer.at[place].set(x.astype(buffer.dtype), mode="drop")

        return jax.tree.map(write, basis, vector), filled.at[place].set(is_new, mode="drop")

    size = jax.tree.leaves(block)[0].shape[0]
    return jax.lax.cond(
        position < rows,
        lambda: jax.lax.fori_loop(0, size, one, (basis, filled)),
        lambda: (basis, filled),
    )


def _project(basis: Tree, vector: Tree) -> Tree:
    coefficients = gram(basis, jax.tree.map(lambda x: x[None], vector))
    return jax.tree.map(lambda x: x[0], combine(coefficients.T, basis))


def _rows(block: Tree, start, size: int) -> Tree:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), block)


def _subtract(x: Tree, y: Tree) -> Tree:
    return jax.tree.map(lambda a, b: a - b.astype(a.dtype), x, y)
