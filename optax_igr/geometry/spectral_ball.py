r"""The projection onto the weights of bounded spectral norm: singular values are clipped.

.. math:: \mathrm{P}(W) = \operatorname*{argmin}_{\|X\|_2 \le c} \|X - W\|_F = U \min(S, c) V^*

Dividing the whole weight by :math:`\|W\|_2 / c` also lands in the ball, but further away: diag(3, 2, 0.5) goes to
(1, 1, 0.5) by the projection, a distance of 2.24, and to (1, 0.67, 0.17) by the division, one of 2.43.

References:
  Lefkimmiatis et al, `Hessian Schatten-Norm Regularization for Linear Inverse Problems
  <https://arxiv.org/abs/1209.3318>`_, 2013, proposition 1
"""

from typing import Any

import jax

from optax_igr._core import hyperparameters
from optax_igr.operators import clip, leaves

_NAME = "projection_spectral_ball"


def projection_spectral_ball(
    tree: Any, radius: hyperparameters.Scalar, *, operator: Any = None
) -> Any:
    r"""Projects every weight onto the spectral ball of a radius.

    .. math:: W = U S V^* \;\mapsto\; U \min(S, c) V^*

    It takes no singular value decomposition but about 60 products of matrices of each weight's smaller side in float32
    (100 in float64), and as many again for each factor of 4 by which the norm exceeds the radius. A weight in the ball
    stays as it is, to the bit.

    Args:
      tree: the parameters. Biases, and whatever `operator` leaves alone, stay as they are.
      radius: c, above 0.
      operator: what each weight is, as in :func:`optax_igr.add_schatten_decay`. Every matrix of a stack is projected
        on its own.

    Returns:
      A tree like `tree`.

    Raises:
      ValueError: for a bad radius, a leaf of more than two axes without an operator, or a convolution for which the
        projection has no closed form. There is one with circular padding, without strides and dilation, for a kernel
        as large as the input. The clipped operator of a smaller kernel belongs to no kernel of its size, and with zero
        padding to none at all; :func:`optax_igr.add_spectral_decay` serves every convolution.

    Examples:
      >>> import functools, jax.numpy as jnp, optax, optax_igr
      >>> clipped = optax_igr.projection_spectral_ball(jnp.diag(jnp.array([3.0, 2.0, 0.5])), 1.0)
      >>> print(clipped.diagonal().round(3))
      [1.  1.  0.5]
      >>> ball = functools.partial(optax_igr.projection_spectral_ball, radius=1.0)
      >>> optimizer = optax.chain(optax.adam(1e-3), optax_igr.keep_params_in(ball))

    References:
      Lefkimmiatis et al, `Hessian Schatten-Norm Regularization for Linear Inverse Problems
      <https://arxiv.org/abs/1209.3318>`_, 2013
    """
    if callable(radius):
        raise ValueError(f"{_NAME}: `radius` must be a constant, got a schedule.")
    hyperparameters.check_scalar_or_schedule(_NAME, "radius", radius, above=0)
    chosen = leaves.resolve(_NAME, tree, operator)

    def project(path, choice, leaf):
        if choice is None:
            return leaf
        if not choice.contains_every_clip(leaf.shape):
            raise ValueError(
                f"{_NAME}: leaf {jax.tree_util.keystr(path) or 'at the root'} of shape {list(leaf.shape)} is a "
                f"convolution whose projection has no closed form; one has it with circular padding, without strides "
                f"and dilation, for a kernel as large as the input. Got {choice}. Use add_spectral_decay."
            )
        clipped = clip.clip_singular_values(choice, leaf, radius)
        return clipped.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(project, chosen, tree, is_leaf=lambda x: x is None)
