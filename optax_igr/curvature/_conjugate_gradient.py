r"""Conjugate gradients on pytrees, truncated where the curvature turns negative.

Where A is positive definite, every iterate minimizes :math:`\tfrac12 x^\top A x - b^\top x` over the directions so far.
A direction p with :math:`p^\top A p \le 0` shows that A is not positive definite, and ends the solve. Every iterate
before it is a direction of descent.

References:
  Steihaug, `The Conjugate Gradient Method and Trust Regions in Large Scale Optimization
  <https://doi.org/10.1137/0720042>`_, 1983
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from optax_igr._core import control_flow, derivatives, trees
from optax_igr._core.hyperparameters import Scalar


class Solution(NamedTuple):
    """An approximate solution x of A x = b, its residual b - A x, and how the solve went."""

    x: chex.ArrayTree
    residual: chex.ArrayTree
    num_products: jax.Array
    met_negative_curvature: jax.Array


def truncated_cg(
    operator: derivatives.LinearMap,
    b: chex.ArrayTree,
    start: chex.ArrayTree | None = None,
    *,
    max_steps: int,
    tolerance: Scalar,
) -> Solution:
    r"""Solves :math:`Ax = b` by conjugate gradients up to the first direction of negative curvature.

    Args:
      operator: :math:`v \mapsto Av`, symmetric.
      b: in float32 or wider.
      start: a direction. The solve begins at the minimizer of the model along it, or at zero where there is none. None
        begins at zero and saves a product.
      max_steps: the largest number of conjugate gradient steps.
      tolerance: the residual to stop at, in units of b.

    Returns:
      The solution. It is b itself where negative curvature is met before anything else.
    """
    zeros = jax.tree.map(jnp.zeros_like, b)
    x, residual, num_products = zeros, b, 0
    if start is not None:
        # Along a direction that was good a step ago one product often does the work of several from zero.
        curved = operator(start)
        curvature = trees.inner_product(start, curved)
        along = trees.inner_product(start, b)
        is_usable = (curvature > 0) & jnp.isfinite(along / jnp.where(curvature > 0, curvature, 1))
        factor = jnp.where(is_usable, along / jnp.where(is_usable, curvature, 1), 0)
        x = trees.scale(factor, start)
        residual = jax.tree.map(
            lambda r, c: r - jnp.where(is_usable, c, 0),
            residual,
            trees.scale(factor, curved),
        )
        num_products = 1
    # In float32 the residual that is updated drifts from b - Ax, but more slowly than these few steps converge.
    is_zero = trees.squared_norm(x) == 0
    target = tolerance**2 * trees.squared_norm(b)

    def is_unfinished(carry):
        (*_, squared_residual), steps, met_negative = carry
        return (steps < max_steps) & ~met_negative & (squared_residual > target)

    def step(carry):
        (x, residual, p, squared_residual), steps, _ = carry
        curved = operator(p)
        curvature = trees.inner_product(p, curved)
        is_positive = curvature > 0
        length = squared_residual / jnp.where(is_positive, curvature, 1)
        # Nothing but b itself is known to descend where the very first curvature is negative.
        fallback = jnp.where(is_zero & (steps == 0), 1, 0)
        length = jnp.where(is_positive, length, fallback)
        x = trees.add(x, trees.scale(length, p))
        residual = trees.subtract(residual, trees.scale(length, curved))
        new_squared = trees.squared_norm(residual)
        p = trees.add(residual, trees.scale(new_squared / squared_residual, p))
        return (x, residual, p, new_squared), steps + 1, ~is_positive

    vectors = (x, residual, residual, trees.squared_norm(residual))
    carry = (vectors, jnp.zeros([], jnp.int32), jnp.zeros([], bool))
    vectors, steps, met_negative = control_flow.while_loop(is_unfinished, step, carry)
    return Solution(vectors[0], vectors[1], num_products + steps, met_negative)
