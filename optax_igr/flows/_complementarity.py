r"""The covariance that keeps the critical curvatures at their threshold.

With a Gram operator :math:`B` the semidefinite complementarity problem

.. math:: X \succeq 0, \quad A + B[X] \succeq 0, \quad \langle X, A + B[X] \rangle = 0

says that :math:`X` is a minimizer of the convex quadratic
:math:`\langle A, X \rangle + \tfrac12 \langle X, B[X] \rangle` over the positive semidefinite
matrices. The projection onto those takes one `eigh` of a :math:`k \times k` matrix, so accelerated
projected gradient solves it in fixed shapes, under `jax.jit` and `jax.vmap`.

References:
  Cohen et al, `Understanding Optimization in Deep Learning with Central Flows
  <https://arxiv.org/abs/2410.24206>`_, 2025
  O'Donoghue, Candès, `Adaptive Restart for Accelerated Gradient Schemes
  <https://arxiv.org/abs/1204.3982>`_, 2015
"""

import jax
import jax.numpy as jnp

_MAX_ITERATIONS = 500


def solve(offset: jax.Array, gram: jax.Array) -> jax.Array:
    """Returns X for A = `offset` of shape `(k, k)` and B = `gram` of shape `(k, k, k, k)`.

    Where B vanishes nothing can hold the curvature, and X is zero.
    """
    k = offset.shape[0]
    epsilon = jnp.finfo(offset.dtype).eps
    largest = jnp.linalg.eigvalsh(gram.reshape(k * k, k * k))[-1]
    # Below this, B is the rounding of a quadratic's third derivative.
    holds = largest > jnp.finfo(offset.dtype).tiny / epsilon
    step = jnp.where(holds, 1 / jnp.where(holds, largest, 1), 0)

    def improve(carry):
        x, point, momentum, _, count = carry
        new = _project(point - step * (offset + jnp.einsum("ijkl,kl->ij", gram, point)))
        change = new - x
        # The momentum has carried the point uphill: without a restart it would oscillate.
        restart = jnp.sum((point - new) * change) > 0
        momentum = jnp.where(restart, 1, momentum)
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        point = new + jnp.where(restart, 0, (momentum - 1) / following) * change
        size = jnp.linalg.norm(change) + jnp.linalg.norm(point - new)
        return new, point, following, size / (jnp.linalg.norm(new) + step), count + 1

    def unfinished(carry):
        return (carry[3] > 2 * epsilon) & (carry[4] < _MAX_ITERATIONS)

    start = jnp.zeros_like(offset)
    one, count = jnp.ones([], offset.dtype), jnp.zeros([], jnp.int32)
    return jax.lax.while_loop(unfinished, improve, (start, start, one, one, count))[0]


def _project(matrix: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return vectors * jnp.maximum(values, 0)[None] @ vectors.T
