r"""The quadratic model of a loss along a direction, from one Hessian-vector product.

.. math:: L(\theta + \tau d) \approx L(\theta) + \tau\,d^\top g + \tfrac12 \tau^2\,d^\top H d
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from optax_igr._core import derivatives, hyperparameters, trees


class QuadraticModel(NamedTuple):
    r"""Along a direction: :math:`d^\top g`, :math:`d^\top H d`, :math:`g^\top H d` and :math:`\|Hd\|^2`."""

    slope: jax.Array
    curvature: jax.Array
    gradient_curvature: jax.Array
    squared_product: jax.Array


def quadratic_model(
    value_fn: derivatives.ValueFn,
    params: Any,
    direction: chex.ArrayTree,
    gradient: chex.ArrayTree,
    *,
    hvp: derivatives.Mode = "auto",
    radius: hyperparameters.Scalar | None = None,
    name: str = "quadratic_model",
) -> QuadraticModel:
    """Returns the quadratic model of `value_fn` at `params` along a direction.

    Args:
      value_fn: `params -> scalar`; its Hessian is H.
      params: floating or complex leaves.
      direction: d, a tree like `params`.
      gradient: g, a tree like `params`.
      hvp: one of `derivatives.MODES`.
      radius: the length of a difference's perturbation.
      name: the public name of the caller, for errors and warnings.
    """
    product = derivatives.hessian_vector_product(
        value_fn, params, direction, mode=hvp, radius=radius, name=name
    )
    return QuadraticModel(
        slope=trees.inner_product(direction, gradient),
        curvature=trees.inner_product(direction, product),
        gradient_curvature=trees.inner_product(gradient, product),
        squared_product=trees.squared_norm(product),
    )


class PowerOfTwo(NamedTuple):
    """A power of two as a product of two, since the inverse of a large one is no normal number."""

    first: jax.Array
    second: jax.Array

    def over(self, x: jax.Array) -> jax.Array:
        """Returns x divided by the power; it may underflow or overflow."""
        return x / self.first / self.second

    def times(self, x: jax.Array) -> jax.Array:
        """Returns x multiplied by the power; it may underflow or overflow."""
        return x * self.first * self.second


def moderate(tree: chex.ArrayTree) -> tuple[chex.ArrayTree, PowerOfTwo]:
    """Returns a tree in float32 or wider whose largest entry is about one, and the power of two it was divided by.

    The square of an entry beyond 1e19 is no float32, nor is that of one below 1e-19. A power of two rounds nothing: a
    product that is zero stays zero.
    """
    tree = trees.widen(tree)
    dtype = trees.scalar_dtype(tree)
    # Leaf by leaf: a ravel would gather sharded leaves.
    maxima = [jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in jax.tree.leaves(tree) if x.size]
    largest = jnp.max(jnp.stack(maxima)) if maxima else jnp.zeros([], dtype)
    _, exponent = jnp.frexp(jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1))
    # Two halves: the inverse of 2**127 is no normal number, and XLA multiplies by inverses.
    half = exponent // 2
    one = jnp.ones([], dtype)
    power = PowerOfTwo(jnp.ldexp(one, half), jnp.ldexp(one, exponent - half))
    return trees.scale(1 / power.second, trees.scale(1 / power.first, tree)), power


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns the quotient, and zero for a zero denominator; its derivative is finite there too."""
    # A quotient that is selected away still makes its derivative NaN, and stops a program under `jax_debug_nans`.
    is_zero = denominator == 0
    return jnp.where(is_zero, 0, numerator / jnp.where(is_zero, 1, denominator))
