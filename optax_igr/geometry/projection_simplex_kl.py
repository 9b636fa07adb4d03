r"""The projection onto the simplex in the Kullback-Leibler divergence, along an axis.

.. math:: \operatorname*{argmin}_{w \ge 0,\ \sum_i w_i = U} \mathrm{KL}(w | x) = U\,\frac{x}{\sum_j x_j}

References:
  Beck, Teboulle, `Mirror descent and nonlinear projected subgradient methods for convex optimization
  <https://doi.org/10.1016/S0167-6377(02)00231-6>`_, 2003
"""

from typing import Any

import jax
import jax.numpy as jnp

from optax_igr._core import trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.geometry import _domain


def projection_simplex_kl(tree: Any, *, axis: _domain.Axis = -1, total: Scalar = 1.0) -> Any:
    r"""Projects every leaf onto the simplex along `axis` in the Kullback-Leibler divergence.

    .. math:: x \mapsto U\,\frac{\max(x, 0)}{\sum_j \max(x_j, 0)}

    Where `optax.projections.projection_simplex` is Euclidean, sets small entries to exact zeros and takes the whole
    tree as one vector, this keeps the ratios of the entries and acts along an axis of each leaf. EG on the simplex is
    EG on the positive cone followed by it.

    Args:
      tree: leaves of any shape. A negative entry, which the divergence does not know, counts as zero; a group without
        a positive entry becomes uniform.
      axis: the axis or axes along which the entries sum to `total`; None is all axes of a leaf.
      total: U, the sum.

    Returns:
      A tree like `tree`.

    Raises:
      ValueError: for a bad `axis` or a `total` that is not positive.

    Examples:
      >>> import jax.numpy as jnp, optax_igr
      >>> print(optax_igr.projection_simplex_kl(jnp.array([[1.0, 3.0], [2.0, 2.0]]), total=2.0))
      [[0.5 1.5]
       [1.  1. ]]

    References:
      Beck, Teboulle, `Mirror descent and nonlinear projected subgradient methods for convex optimization
      <https://doi.org/10.1016/S0167-6377(02)00231-6>`_, 2003
    """
    axis = _domain.check_axis("projection_simplex_kl", axis)
    _domain.check_constant("projection_simplex_kl", "total", total, above=0)
    _domain.check_axes_exist("projection_simplex_kl", tree, axis, name="tree")

    def project(x: jax.Array) -> jax.Array:
        positive = jnp.maximum(x.astype(trees.widened(x.dtype)), 0)
        # Divided by the largest first: the sum of finite entries may be infinite.
        largest = jnp.max(positive, axis, keepdims=True)
        positive = jnp.where(largest > 0, positive / jnp.where(largest > 0, largest, 1), 1)
        return (total * positive / jnp.sum(positive, axis, keepdims=True)).astype(x.dtype)

    return jax.tree.map(project, tree)
