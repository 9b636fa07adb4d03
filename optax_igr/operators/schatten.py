r"""Schatten norms of a weight as an operator, and their gradients.

The Schatten norm with exponent p is the p-norm of the singular values,

.. math::
  \|W\|_{S_p} = \Big( \sum_i \sigma_i^p \Big)^{1/p}, \qquad
  \nabla \tfrac{1}{2} \|W\|_{S_p}^2 = \|W\|_{S_p}^{2-p} \, W (W^* W)^{p/2 - 1},

the Frobenius norm at p = 2 and the spectral norm in the limit. For :math:`p = 2^{t+1}` it takes t squarings of the
Gram matrix :math:`W^* W`. Delattre et al call them Gram iteration. Each square is divided by its largest entry, so no
power overflows; the largest entry of a positive semidefinite matrix is on its diagonal. The gradient does not need the
logarithm of these divisors: its length follows from Euler's identity
:math:`\langle W, \nabla \tfrac{1}{2} \|W\|^2 \rangle = \|W\|^2`.

References:
  Delattre et al, `Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration
  <https://arxiv.org/abs/2305.16173>`_, 2023
"""

from typing import Any

import jax
import jax.numpy as jnp

from optax_igr.operators import _arrays
from optax_igr.operators.leaves import Operator

_HIGHEST = jax.lax.Precision.HIGHEST
# The axes of the blocks of one operator: block, row, column.
_BLOCKS = (-3, -2, -1)


def gradient_and_norm(
    operator: Operator, weight: jax.Array, gram_steps: int, precision: Any = None
) -> tuple[jax.Array, jax.Array]:
    r"""Returns the gradient of half the squared Schatten norm, and the norm.

    Args:
      operator: what the weight is.
      weight: real or complex.
      gram_steps: t; the exponent is :math:`2^{t+1}`.
      precision: of the matrix products.

    Returns:
      The gradient, like `weight`, and the norm of each operator of the stack, both in float32 or wider. Where the
      blocks of the operator are those of a larger one, both belong to that one.
    """

    def compute(weight):
        matrices, pull_back = jax.vjp(lambda w: operator.blocks(w).matrices, weight)
        multiplicity = _multiplicity(operator.blocks(weight))
        scale = _arrays.magnitude(matrices, _BLOCKS)
        scaled = _arrays.divide(matrices, scale)
        if gram_steps == 0:
            squared = _sum(multiplicity * _arrays.squared_modulus(scaled))
            norm = scale * _arrays.root(squared)
            return _arrays.adjoint(pull_back, _arrays.multiply(multiplicity, matrices)), norm[
                ..., 0, 0, 0
            ]
        power, log_norm = _gram_power(scaled, multiplicity, gram_steps, precision)
        is_tall = scaled.shape[-2] >= scaled.shape[-1]
        factors = (scaled, power) if is_tall else (power, scaled)
        direction = _arrays.multiply(multiplicity, jnp.matmul(*factors, precision=precision))
        inner = _sum(jnp.real(scaled.conj() * direction))
        length = jnp.exp(2 * log_norm) / _arrays.nonzero(inner)
        norm = jnp.where(inner == 0, 0, scale * jnp.exp(log_norm))
        # The scale comes last: a product of two large factors in front of a small direction may overflow.
        length = jnp.where(inner == 0, 0, length)
        gradient = _arrays.multiply(scale, _arrays.multiply(length, direction))
        return _arrays.adjoint(pull_back, gradient), norm[..., 0, 0, 0]

    return _arrays.in_auto_mode(compute, 2, _arrays.widened(weight))


def spectral_norm_bound(operator: Operator, weight: jax.Array) -> jax.Array:
    r"""Returns the spectral norm from the blocks: exact where `operator.is_exact`, else an upper bound.

    It is the Schatten norm of an exponent so large that the two agree to the last digit. Unlike an eigenvalue
    decomposition it batches on every device, and several of them at once cannot block one another's threads on a CPU.
    """
    matrices = operator.blocks(_arrays.widened(weight)).matrices
    scale = _arrays.magnitude(matrices, _BLOCKS)
    # With n singular values and exponent 2p the excess is a factor of at most n^(1/2p).
    num_steps = jnp.finfo(matrices.dtype).nmant + 2

    def square(step, carry):
        gram, log_norm = carry
        gram, factor = _by_largest(jnp.matmul(gram, gram, precision=_HIGHEST))
        return gram, log_norm + jnp.ldexp(jnp.log(factor), -step - 1)

    gram, factor = _by_largest(_gram(_arrays.divide(matrices, scale), _HIGHEST))
    _, log_norm = jax.lax.fori_loop(1, num_steps, square, (gram, jnp.log(factor) / 2))
    is_zero = jnp.max(jnp.abs(matrices), _BLOCKS, keepdims=True) == 0
    return jnp.where(is_zero, 0, scale * jnp.exp(log_norm))[..., 0, 0, 0]


def _gram_power(scaled, multiplicity, gram_steps, precision):
    """Returns a multiple of (W*W)^(2^t - 1) on the smaller side of W, and the logarithm of the norm."""
    gram, largest = _by_largest(_gram(scaled, precision))
    power, log_norm = gram, jnp.log(largest) / 2
    for step in range(1, gram_steps):
        gram, largest = _by_largest(jnp.matmul(gram, gram, precision=precision))
        power, _ = _by_largest(jnp.matmul(power, gram, precision=precision))
        log_norm = log_norm + jnp.log(largest) / 2 ** (step + 1)
    squared = _sum(multiplicity * _arrays.squared_modulus(gram))
    return power, log_norm + jnp.log(_arrays.nonzero(squared)) / 2 ** (gram_steps + 1)


def _gram(matrices, precision):
    adjoint = jnp.swapaxes(matrices, -1, -2).conj()
    is_tall = matrices.shape[-2] >= matrices.shape[-1]
    factors = (adjoint, matrices) if is_tall else (matrices, adjoint)
    return jnp.matmul(*factors, precision=precision)


def _by_largest(matrices):
    """Divides positive semidefinite blocks by their largest entry, one for each operator of the stack."""
    diagonal = jnp.real(jnp.diagonal(matrices, axis1=-2, axis2=-1))
    largest = jax.lax.stop_gradient(jnp.max(diagonal, (-2, -1)))[..., None, None, None]
    largest = _arrays.nonzero(largest)
    return _arrays.divide(matrices, largest), largest


def _multiplicity(blocks):
    counts = jnp.asarray(blocks.multiplicity, blocks.matrices.real.dtype)
    return jnp.reshape(counts, (1,) * (blocks.matrices.ndim - 3) + (-1, 1, 1))


def _sum(blocks):
    return jnp.sum(blocks, _BLOCKS, keepdims=True)
