r"""Schatten norms of a weight as an operator, their gradients, and power iteration.

The Schatten norm with exponent p is the p-norm of the singular values,

.. math::
  \|W\|_{S_p} = \Big( \sum_i \sigma_i^p \Big)^{1/p}, \qquad
  \nabla \tfrac{1}{2} \|W\|_{S_p}^2 = \|W\|_{S_p}^{2-p} \, W (W^* W)^{p/2 - 1},

the Frobenius norm at p = 2 and the spectral norm in the limit. For :math:`p = 2^{t+1}` it takes t squarings of the
Gram matrix :math:`W^* W`: it *is* t steps of Gram iteration. Each is divided by its largest entry, which for a
positive semidefinite matrix stands on the diagonal, so that no power overflows; the gradient needs no logarithm of
what was divided by, for Euler's identity :math:`\langle W, \nabla \tfrac{1}{2} \|W\|^2 \rangle = \|W\|^2` gives its
length.

References:
  Delattre et al, `Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration
  <https://arxiv.org/abs/2305.16173>`_, 2023
  Yoshida, Miyato, `Spectral Norm Regularization for Improving the Generalizability of Deep Learning
  <https://arxiv.org/abs/1705.10941>`_, 2017
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optax_igr._core import trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.operators import _spectral_clip
from optax_igr.operators.leaves import Operator

_HIGHEST = jax.lax.Precision.HIGHEST


def schatten_norm(
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
        if gram_steps == 0:
            weighted = multiplicity * matrices
            squared = _sum(jnp.real(matrices.conj() * weighted))
            return _adjoint(pull_back, weighted), _root(squared)[..., 0, 0, 0]
        largest = _nonzero(
            jax.lax.stop_gradient(jnp.max(jnp.abs(matrices), (-3, -2, -1), keepdims=True))
        )
        scaled = matrices / largest
        power, log_norm = _gram_power(scaled, multiplicity, gram_steps, precision)
        is_tall = scaled.shape[-2] >= scaled.shape[-1]
        factors = (scaled, power) if is_tall else (power, scaled)
        direction = multiplicity * jnp.matmul(*factors, precision=precision)
        inner = _sum(jnp.real(scaled.conj() * direction))
        length = jnp.where(inner > 0, largest * jnp.exp(2 * log_norm) / _nonzero(inner), 0)
        norm = jnp.where(inner > 0, largest * jnp.exp(log_norm), 0)
        return _adjoint(pull_back, length * direction), norm[..., 0, 0, 0]

    return _in_auto_mode(compute, 2, _wide(weight))


def power_iteration(
    operator: Operator, weight: jax.Array, vector: jax.Array, num_steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Returns the gradient :math:`\sigma u v^*` of half the squared spectral norm, :math:`\sigma` and v.

    One step is :math:`u \leftarrow Wv / \|Wv\|`, :math:`v \leftarrow W^* u / \|W^* u\|`, :math:`\sigma = \|W^* u\|`.

    Args:
      operator: what the weight is.
      weight: real or complex.
      vector: v, of shape `[*stack, *domain]`; it stays where the weight is zero or not finite.
      num_steps: at least 1.

    Returns:
      The gradient, like `weight` and exact for the present u and v; :math:`\sigma`, at most the norm, for each
      operator of the stack; and v. All in float32 or wider.
    """

    def compute(weight, vector):
        num_stacked = len(operator.stack_shape(weight.shape))
        axes = tuple(range(num_stacked, vector.ndim))

        def step(_, carry):
            vector, *_ = carry
            image, pull_back = jax.vjp(lambda v: operator.apply(weight, v), vector)
            left, _ = _unit(image, num_stacked)
            right, norm = _unit(_adjoint(pull_back, left), num_stacked)
            is_sound = jnp.isfinite(norm) & (norm > 0)
            return jnp.where(is_sound, right, vector), left, norm

        first = step(0, (vector,))
        vector, left, norm = (
            jax.lax.fori_loop(1, num_steps, step, first) if num_steps > 1 else first
        )
        _, pull_back = jax.vjp(lambda w: operator.apply(w, vector), weight)
        norm = jnp.squeeze(norm, axes)
        per_operator = jnp.reshape(norm, norm.shape + (1,) * (left.ndim - num_stacked))
        return _adjoint(pull_back, per_operator * left), norm, vector

    return _in_auto_mode(compute, 3, _wide(weight), vector)


def clip_singular_values(operator: Operator, weight: jax.Array, radius: Scalar) -> jax.Array:
    """Returns the weight whose operator has its singular values clipped, in float32 or wider."""

    def compute(weight):
        matrices, pull_back = jax.vjp(lambda w: operator.blocks(w).matrices, weight)
        blocks = operator.blocks(weight)
        multiplicity = _multiplicity(blocks)
        clipped = _spectral_clip.clip_singular_values(
            matrices, jnp.asarray(radius, matrices.real.dtype)
        )
        weighted = multiplicity * clipped
        # The map to the blocks is an isometry but for this factor, so its adjoint inverts it.
        return (_adjoint(pull_back, weighted) / blocks.num_places,)

    return _in_auto_mode(compute, 1, _wide(weight))[0]


def zero_norm(operator: Operator, weight: jax.Array) -> jax.Array:
    """Returns a zero for each operator of the stack, in the dtype of its norm."""
    dtype = jnp.finfo(trees.widened(weight.dtype)).dtype
    return jnp.zeros(operator.stack_shape(weight.shape), dtype)


def initial_vector(operator: Operator, weight: jax.Array) -> jax.Array:
    """Returns unit vectors of fixed pseudo-random direction, of shape `[*stack, *domain]`."""
    num_stacked = len(operator.stack_shape(weight.shape))
    shape = operator.stack_shape(weight.shape) + operator.domain_shape(weight.shape)
    vector = jax.random.normal(jax.random.key(0), shape, trees.widened(weight.dtype))
    return _unit(vector, num_stacked)[0]


def spectral_norm_bound(operator: Operator, weight: jax.Array) -> jax.Array:
    r"""Returns the spectral norm from the blocks: exact where `operator.is_exact`, else an upper bound.

    It is the Schatten norm of an exponent so large that the two agree to the last digit. Unlike an eigenvalue
    decomposition it batches on every device, and several of them at once cannot block one another's threads on a CPU.
    """
    matrices = operator.blocks(_wide(weight)).matrices
    largest = _nonzero(jnp.max(jnp.abs(matrices), (-3, -2, -1), keepdims=True))
    # With n singular values and exponent 2p the excess is a factor of at most n^(1/2p).
    num_steps = jnp.finfo(matrices.dtype).nmant + 2

    def square(step, carry):
        gram, log_norm = carry
        gram, factor = _by_largest(jnp.matmul(gram, gram, precision=_HIGHEST))
        return gram, log_norm + jnp.ldexp(jnp.log(factor), -step - 1)

    gram, factor = _by_largest(_gram(matrices / largest, _HIGHEST))
    _, log_norm = jax.lax.fori_loop(1, num_steps, square, (gram, jnp.log(factor) / 2))
    is_zero = jnp.max(jnp.abs(matrices), (-3, -2, -1), keepdims=True) == 0
    return jnp.where(is_zero, 0, largest * jnp.exp(log_norm))[..., 0, 0, 0]


def converged_spectral_norm(
    operator: Operator, weight: jax.Array, tolerance: float, max_steps: int
) -> jax.Array:
    r"""Returns the spectral norm by power iteration until :math:`\|W^* W v - \sigma^2 v\| \le \epsilon \sigma^2`."""
    weight = _wide(weight)
    vector = initial_vector(operator, weight)

    def unconverged(carry):
        step, _, change, _ = carry
        return (step < max_steps) & jnp.any(change > tolerance)

    def iterate(carry):
        step, vector, _, _ = carry
        _, norm, moved = power_iteration(operator, weight, vector, 1)
        # For unit vectors, the residual over σ² is the distance that one step moves v.
        num_stacked = norm.ndim
        _, change = _unit(moved - vector, num_stacked)
        return step + 1, moved, jnp.reshape(change, norm.shape), norm

    stack = operator.stack_shape(weight.shape)
    start = jnp.full(stack, jnp.inf, vector.real.dtype)
    return jax.lax.while_loop(unconverged, iterate, (0, vector, start, start))[3]


def _gram_power(scaled, multiplicity, gram_steps, precision):
    """Returns a multiple of (W*W)^(2^t - 1) on the smaller side of W, and the logarithm of the norm."""
    gram, largest = _by_largest(_gram(scaled, precision))
    power, log_norm = gram, jnp.log(largest) / 2
    for step in range(1, gram_steps):
        gram, largest = _by_largest(jnp.matmul(gram, gram, precision=precision))
        power, _ = _by_largest(jnp.matmul(power, gram, precision=precision))
        log_norm = log_norm + jnp.log(largest) / 2 ** (step + 1)
    squared = _sum(multiplicity * jnp.abs(gram) ** 2)
    return power, log_norm + jnp.log(_nonzero(squared)) / 2 ** (gram_steps + 1)


def _gram(matrices, precision):
    adjoint = jnp.swapaxes(matrices, -1, -2).conj()
    is_tall = matrices.shape[-2] >= matrices.shape[-1]
    factors = (adjoint, matrices) if is_tall else (matrices, adjoint)
    return jnp.matmul(*factors, precision=precision)


def _by_largest(matrices):
    """Divides positive semidefinite blocks by their largest entry, one for each operator of the stack."""
    diagonal = jnp.real(jnp.diagonal(matrices, axis1=-2, axis2=-1))
    largest = _nonzero(jax.lax.stop_gradient(jnp.max(diagonal, (-2, -1)))[..., None, None, None])
    return matrices / largest, largest


def _adjoint(pull_back: Callable, cotangent: jax.Array) -> jax.Array:
    """Applies the adjoint of a linear map, of which JAX returns the transpose."""
    (pulled,) = pull_back(cotangent.conj())
    return pulled.conj()


def _unit(vectors, num_stacked):
    """Returns unit vectors and their norms, which keep the dimensions; a zero vector stays zero."""
    axes = tuple(range(num_stacked, vectors.ndim))
    largest = _nonzero(jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axes, keepdims=True)))
    scaled = vectors / largest
    norm = _root(jnp.sum(jnp.real(scaled.conj() * scaled), axes, keepdims=True))
    return scaled / _nonzero(norm), largest * norm


def _multiplicity(blocks):
    counts = jnp.asarray(blocks.multiplicity, blocks.matrices.real.dtype)
    return jnp.reshape(counts, (1,) * (blocks.matrices.ndim - 3) + (-1, 1, 1))


def _sum(blocks):
    return jnp.sum(blocks, (-3, -2, -1), keepdims=True)


def _root(squared):
    """The square root, with the derivative zero at zero."""
    return jnp.where(squared > 0, jnp.sqrt(_nonzero(squared)), 0)


def _nonzero(x):
    return jnp.where(x > 0, x, 1)


def _wide(weight):
    return weight.astype(trees.widened(weight.dtype))


def _in_auto_mode(compute: Callable, num_results: int, weight: jax.Array, *vectors: Any) -> Any:
    """Calls `compute` with the sharding of its products left to the compiler, where a mesh is explicit.

    The first result is sharded as the weight is; the others are replicated.
    """
    sharding = jax.typeof(weight).sharding
    if not any(sharding.spec):
        return compute(weight, *vectors)
    out_sharding = (sharding, *[PartitionSpec()] * (num_results - 1))
    return jax.sharding.auto_axes(compute, out_sharding=out_sharding)(weight, *vectors)
