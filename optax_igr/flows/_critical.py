r"""The third derivatives along critical eigenvectors, and small operations on blocks of vectors.

For eigenvectors :math:`u_i, u_j` in the parameters' own coordinates, :math:`D_{ij} = \nabla_\theta
(u_i^\top H u_j)` says how a step changes the critical block of the Hessian. It is symmetric in `i`
and `j`, so that k directions have k(k+1)/2 of them, the pairs.
"""

import jax
import jax.numpy as jnp

from optax_igr._core import derivatives, trees
from optax_igr._core import top_eigenvectors as eigen
from optax_igr._core.trees import Tree


def pair_index(size: int) -> jax.Array:
    """Returns the matrix of the numbers of the pairs `(i, j)`."""
    first, second = jnp.triu_indices(size)
    numbers = jnp.zeros((size, size), int).at[first, second].set(jnp.arange(first.size))
    return jnp.maximum(numbers, numbers.T)


def third_derivatives(settings, value, params, half, vectors, critical) -> Tree:
    """Returns the block of :math:`P^{-1/2} D_{ij}` over the pairs; zero where one is not critical.

    One at a time: together they would need the memory of as many backward passes.
    """

    def one_pair(indices):
        i, j = indices
        u, v = (times(half, jax.tree.map(lambda x, n=n: x[n], vectors)) for n in (i, j))
        return jax.lax.cond(
            critical[i] & critical[j],
            lambda: times(half, third_derivative(settings, value, params, u, v)),
            lambda: jax.tree.map(jnp.zeros_like, params),
        )

    size = critical.shape[0]
    return jax.lax.map(one_pair, jnp.triu_indices(size))


def third_derivative(settings, value, params, u, v):
    r"""Returns :math:`\nabla_\theta (u^\top H v)`: the Hessian of :math:`u^\top \nabla L`, times `v`."""

    def forward(p):
        return jax.jvp(value, (p,), (u,))[1]

    def backward(p):
        return trees.inner_product(derivatives.gradient(value, p), u)

    mode = settings.hvp
    slope = backward if mode in (*derivatives.DIFFERENCE_MODES, "reverse_over_reverse") else forward
    if mode == "auto":
        # A loss with a backward rule of its own may have no forward derivative.
        try:
            jax.eval_shape(forward, params)
        except Exception:
            slope = backward
    return derivatives.hessian_vector_product(slope, params, v, mode=mode, name=settings.name)


def times(x: Tree, y: Tree) -> Tree:
    """Multiplies two trees entry by entry."""
    return jax.tree.map(jnp.multiply, x, y)


def square_root(matrix: jax.Array) -> jax.Array:
    """Returns the symmetric root of a positive semidefinite matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    return vectors * jnp.sqrt(jnp.maximum(values, 0))[None] @ vectors.T


def one(tree: Tree) -> Tree:
    """Makes a block of one vector."""
    return jax.tree.map(lambda x: x[None], tree)


def weighted_sum(weights: jax.Array, block: Tree) -> Tree:
    """Sums the vectors of a block with these weights."""
    return jax.tree.map(lambda x: x[0], eigen.combine(weights[None], block))


def without(vectors: Tree, critical: jax.Array, tree: Tree) -> Tree:
    """Takes away the components along the critical vectors."""
    weights = jnp.where(critical, eigen.gram(vectors, one(tree))[:, 0], 0)
    return trees.subtract(tree, weighted_sum(weights, vectors))
