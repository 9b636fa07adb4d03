r"""The norms of a weight as an operator, for one weight: spectral, Schatten, Frobenius, and an upper bound.

.. math:: \|W\|_2 \le \|W\|_{S_p} \le \|W\|_F

References:
  Sedghi, Gupta, Long, `The Singular Values of Convolutional Layers <https://arxiv.org/abs/1805.10408>`_, 2019
  Delattre et al, `Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration
  <https://arxiv.org/abs/2305.16173>`_, 2023
"""

import jax
import jax.numpy as jnp

from optax_igr._core import hyperparameters
from optax_igr.operators import leaves, power_iteration, schatten
from optax_igr.operators.leaves import Operator


def spectral_norm(
    w: jax.Array,
    *,
    operator: Operator | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> jax.Array:
    r"""Returns the spectral norm of a weight as an operator: the largest factor by which it stretches an input.

    .. math:: \|W\|_2 = \max_x \frac{\|W x\|}{\|x\|}

    For a matrix, and for a circular convolution whose strides divide the grid, it is exact: Gram iteration runs to the
    last digit. For another convolution it is power iteration with the convolution itself, which approaches the norm
    from below.

    Args:
      w: a weight of at least two axes.
      operator: what it is; by default a matrix, where it has two axes.
      tolerance: of power iteration, on the residual :math:`\|W^* W v - \sigma^2 v\| / \sigma^2`, at least 0. The
        relative error of the norm is the square of the residual, divided by the gap to the second singular value.
      max_steps: of power iteration, at least 1. After so many it ends, converged or not.

    Returns:
      A number for each operator of the stack, in float32 or wider.

    Raises:
      ValueError: for a weight of fewer than two axes, or of more without an operator, and for a `tolerance` or
        `max_steps` out of range.

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
    name = "spectral_norm"
    hyperparameters.check_positive_integer(name, "max_steps", max_steps)
    hyperparameters.check_scalar(name, "tolerance", tolerance, at_least=0)
    chosen, w = _chosen(name, w, operator)
    if chosen.is_exact(w.shape):
        return schatten.spectral_norm_bound(chosen, w)
    return power_iteration.converged_norm(chosen, w, tolerance, max_steps)


def spectral_norm_bound(w: jax.Array, *, operator: Operator | None = None) -> jax.Array:
    r"""Returns an upper bound of the spectral norm of a weight as an operator.

    .. math:: \|W\|_2 \le \max_\omega \|\hat K(\omega)\|_2

    For a convolution with zero padding it is the norm of the circular convolution that contains it; elsewhere it is
    the norm itself, to rounding.

    Args:
      w: a weight of at least two axes.
      operator: what it is; by default a matrix, where it has two axes.

    Returns:
      A number for each operator of the stack, in float32 or wider.

    Raises:
      ValueError: for a weight of fewer than two axes, or of more without an operator.

    Examples:
      >>> import jax.numpy as jnp, optax_igr, optax_igr.operators
      >>> kernel = jnp.ones([3, 3, 1, 1])
      >>> conv = optax_igr.conv_operator((8, 8), padding="SAME")
      >>> for norm in (optax_igr.operators.spectral_norm, optax_igr.operators.spectral_norm_bound):
      ...     print(f"{norm(kernel, operator=conv):.3f}")
      8.291
      9.000

    References:
      Sedghi, Gupta, Long, `The Singular Values of Convolutional Layers <https://arxiv.org/abs/1805.10408>`_, 2019
    """
    chosen, w = _chosen("spectral_norm_bound", w, operator)
    return schatten.spectral_norm_bound(chosen, w)


def schatten_norm(w: jax.Array, gram_steps: int, *, operator: Operator | None = None) -> jax.Array:
    r"""Returns the Schatten norm of a weight as an operator, with the exponent :math:`2^{t+1}`.

    .. math:: \|W\|_{S_p} = \Big( \sum_i \sigma_i^p \Big)^{1/p}, \qquad p = 2^{t+1}

    Args:
      w: a weight of at least two axes.
      gram_steps: t, at least 0. At 0 it is the Frobenius norm; the more steps, the closer to the spectral norm.
      operator: what it is; by default a matrix, where it has two axes.

    Returns:
      A number for each operator of the stack, in float32 or wider. For a convolution with zero padding it is the norm
      of the circular convolution that contains it, an upper bound.

    Raises:
      ValueError: for a weight of fewer than two axes, or of more without an operator, and for a bad `gram_steps`.

    Examples:
      >>> import jax.numpy as jnp, optax_igr.operators
      >>> w = jnp.diag(jnp.array([4.0, 3.0]))
      >>> print([f"{optax_igr.operators.schatten_norm(w, t):.3f}" for t in range(4)])
      ['5.000', '4.285', '4.048', '4.002']

    References:
      Delattre et al, `Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration
      <https://arxiv.org/abs/2305.16173>`_, 2023
    """
    hyperparameters.check_integer("schatten_norm", "gram_steps", gram_steps, at_least=0)
    chosen, w = _chosen("schatten_norm", w, operator)
    highest = jax.lax.Precision.HIGHEST
    return schatten.gradient_and_norm(chosen, w, gram_steps, precision=highest)[1]


def frobenius_norm(w: jax.Array, *, operator: Operator | None = None) -> jax.Array:
    r"""Returns the Frobenius norm of a weight as an operator.

    .. math:: \|W\|_F = \Big( \sum_i \sigma_i^2 \Big)^{1/2}

    A convolution has one row for each place of its output, so its norm is that of the kernel times the root of the
    number of places, where the padding is circular.

    Args:
      w: a weight of at least two axes.
      operator: what it is; by default a matrix, where it has two axes.

    Returns:
      A number for each operator of the stack, in float32 or wider. For a convolution with zero padding it is the norm
      of the circular convolution that contains it, an upper bound.

    Raises:
      ValueError: for a weight of fewer than two axes, or of more without an operator.

    Examples:
      >>> import jax.numpy as jnp, optax_igr.operators
      >>> print(f"{optax_igr.operators.frobenius_norm(jnp.diag(jnp.array([4.0, 3.0]))):.3f}")
      5.000
      >>> conv = optax_igr.conv_operator((8, 8), padding="CIRCULAR")
      >>> print(f"{optax_igr.operators.frobenius_norm(jnp.ones([3, 3, 1, 1]), operator=conv):.3f}")
      24.000

    References:
      Sedghi, Gupta, Long, `The Singular Values of Convolutional Layers <https://arxiv.org/abs/1805.10408>`_, 2019
    """
    chosen, w = _chosen("frobenius_norm", w, operator)
    return schatten.gradient_and_norm(chosen, w, gram_steps=0)[1]


def _chosen(name, w, operator):
    w = jnp.asarray(w)
    chosen = leaves.resolve(name, w, operator)
    if chosen is None:
        raise ValueError(
            f"{name}: `w` must be a weight of at least two axes and one entry, of real or complex numbers; got shape "
            f"{list(w.shape)} of {w.dtype}."
        )
    return chosen, w
