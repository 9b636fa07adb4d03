r"""The largest factor by which a layer stretches its input.

References:
  Sedghi, Gupta, Long, `The Singular Values of Convolutional Layers <https://arxiv.org/abs/1805.10408>`_, 2019
"""

import jax
import jax.numpy as jnp

from optax_igr.operators import Operator, leaves, norms


def spectral_norm(
    w: jax.Array,
    *,
    operator: Operator | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> jax.Array:
    r"""Returns the spectral norm of a weight as an operator.

    .. math:: \|W\|_2 = \max_x \frac{\|W x\|}{\|x\|}

    Exact for matrices, by Gram iteration to the last digit, and for circular convolutions whose strides divide the
    grid, by the same at every frequency; for other convolutions by power iteration with the convolution itself.

    Args:
      w: a weight of at least two axes.
      operator: what it is; by default a matrix, where it has two axes.
      tolerance: of power iteration, on the residual :math:`\|W^* W v - \sigma^2 v\| / \sigma^2`. The relative error
        of the norm is of its square, divided by the gap to the second singular value.
      max_steps: of power iteration.

    Returns:
      A number for each operator of the stack, in float32 or wider.

    Raises:
      ValueError: for a weight of fewer than two axes, or of more without an operator.

    Examples:
      >>> import jax.numpy as jnp, optax_igr, optax_igr.diagnostics
      >>> print(f"{optax_igr.diagnostics.spectral_norm(jnp.ones([3, 3])):.3f}")
      3.000
      >>> conv = optax_igr.conv_operator((8, 8), padding="CIRCULAR")
      >>> print(f"{optax_igr.diagnostics.spectral_norm(jnp.ones([3, 3, 1, 1]), operator=conv):.3f}")
      9.000

    References:
      Sedghi, Gupta, Long, `The Singular Values of Convolutional Layers <https://arxiv.org/abs/1805.10408>`_, 2019
    """
    w = jnp.asarray(w)
    chosen = leaves.resolve("spectral_norm", w, operator)
    if chosen is None:
        raise ValueError(
            f"spectral_norm: `w` must be a weight of at least two axes, got shape {list(w.shape)}."
        )
    if chosen.is_exact(w.shape):
        return norms.spectral_norm_bound(chosen, w)
    return norms.converged_spectral_norm(chosen, w, tolerance, max_steps)
