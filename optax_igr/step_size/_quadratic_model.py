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
    hvp: str = "forward_over_reverse",
    radius: hyperparameters.Scalar | None = None,
) -> QuadraticModel:
    """Returns the quadratic model of `value_fn` at `params` along a direction.

    Args:
      value_fn: `params -> scalar`; its Hessian is H.
      params: floating or complex leaves.
      direction: d, a tree like `params`.
      gradient: g, a tree like `params`.
      hvp: one of `derivatives.MODES`.
      radius: the length of a difference's perturbation.
    """
    product = derivatives.hessian_vector_product(
        value_fn, params, direction, mode=hvp, radius=radius
    )
    return QuadraticModel(
        slope=trees.inner_product(direction, gradient),
        curvature=trees.inner_product(direction, product),
        gradient_curvature=trees.inner_product(gradient, product),
        squared_product=trees.squared_norm(product),
    )


class Length(NamedTuple):
    r"""The norm of a tree as a product of two factors, since their product may overflow."""

    largest: jax.Array
    relative: jax.Array

    def inverse_of(self, numerator: jax.Array) -> jax.Array:
        """Returns the numerator over the norm, and zero for a norm of zero."""
        return divide(divide(numerator, self.relative), self.largest)

    def value(self) -> jax.Array:
        """Returns the norm, which may be infinite."""
        return self.largest * self.relative


def unit_direction(tree: chex.ArrayTree) -> tuple[chex.ArrayTree, Length]:
    """Returns a tree at unit length, in float32 or wider, and its length.

    The largest entry is divided out first: the square of an entry beyond 1e19 is no float32, nor is the inverse of one
    beyond 1e38.
    """
    tree = trees.widen(tree)
    dtype = trees.scalar_dtype(tree)
    maxima = [jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in jax.tree.leaves(tree) if x.size]
    largest = jnp.max(jnp.stack(maxima)) if maxima else jnp.zeros([], dtype)
    safe = jnp.where(largest > 0, largest, 1)
    unit, relative = trees.unit(
        jax.tree.map(lambda x: x / safe.astype(jnp.finfo(x.dtype).dtype), tree)
    )
    return unit, Length(largest, relative)


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns the quotient, and zero for a zero denominator; its derivative is finite there too."""
    is_zero = denominator == 0
    return jnp.where(is_zero, 0, numerator / jnp.where(is_zero, 1, denominator))
