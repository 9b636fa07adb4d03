r"""The largest eigenvalue of the Hessian, by Lanczos iteration on Hessian-vector products.

From a random unit vector, k products make an orthonormal basis Q of a Krylov space in which the Hessian is
tridiagonal, :math:`Q^\top H Q = T`. The largest eigenvalue :math:`\theta` of T, with eigenvector s, approaches that
of H from below, and the last row says how far it is from *an* eigenvalue of H:

.. math:: \min_i |\lambda_i - \theta| \le \|H Q s - \theta Q s\| = \beta_k |s_k|

References:
  Parlett, `The Symmetric Eigenvalue Problem <https://doi.org/10.1137/1.9781611971163>`_, 1998, chapter 13
  Ghorbani et al, `An Investigation into Neural Net Optimization via Hessian Eigenvalue Density
  <https://arxiv.org/abs/1901.10159>`_, 2019
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_igr._core import derivatives, hyperparameters, trees
from optax_igr._core.derivatives import ValueFn
from optax_igr._core.hyperparameters import Scalar
from optax_igr.diagnostics import _progress

_NAME = "sharpness"


class Sharpness(NamedTuple):
    r"""The largest eigenvalue of the Hessian.

    Attributes:
      eigenvalue: the algebraically largest; negative curvature can be larger in size, and is not meant.
      error_estimate: the norm of the residual; an eigenvalue of the Hessian lies as close as this.
      stability_threshold: :math:`2/\gamma`, beyond which gradient descent with this learning rate diverges along the
        eigenvector; None without a learning rate.
    """

    eigenvalue: jax.Array
    error_estimate: jax.Array
    stability_threshold: Any


def sharpness(
    value_fn: ValueFn,
    params: Any,
    *,
    num_steps: int = 20,
    learning_rate: Scalar | None = None,
    key: jax.Array | None = None,
    hvp: derivatives.Mode = "auto",
    radius: Scalar | None = None,
    progress: _progress.Progress | None = None,
) -> Sharpness:
    r"""Returns the largest eigenvalue of the Hessian at the parameters, with its error.

    .. math:: \lambda_{max}(\nabla^2 L(\theta))

    It needs `pip install "optax_igr[diagnostics]"`, and the memory of `num_steps` copies of the parameters.

    Args:
      value_fn: `params -> scalar`, L.
      params: a pytree; the Hessian is that in its real leaves, in float32 or wider.
      num_steps: of Lanczos iteration, a Hessian-vector product each; no more than parameters are taken.
      learning_rate: :math:`\gamma`, for the threshold :math:`2/\gamma` beside it.
      key: of the random start; None takes a fixed one.
      hvp: how a Hessian-vector product is computed, as in :func:`optax_igr.add_gradient_penalty`.
      radius: the length of a difference's perturbation.
      progress: called with the number of products done and to do.

    Returns:
      A :class:`Sharpness`.

    Raises:
      ImportError: without matfree.
      ValueError: for a bad argument, or complex parameters.

    Examples:
      >>> import jax.numpy as jnp, optax_igr.diagnostics
      >>> value_fn = lambda p: p["a"] ** 2 + 3 * p["a"] * p["b"] - 4 * p["b"] ** 2
      >>> params = {"a": jnp.array(1.0), "b": jnp.array(2.0)}
      >>> found = optax_igr.diagnostics.sharpness(value_fn, params, num_steps=2, learning_rate=0.5)
      >>> print(f"{found.eigenvalue:.3f} against {found.stability_threshold} (the other is -8.831)")
      2.831 against 4.0 (the other is -8.831)

    References:
      Cohen et al, `Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability
      <https://arxiv.org/abs/2103.00065>`_, 2021
    """
    try:
        from matfree import decomp
    except ImportError as error:
        raise ImportError(
            f'{_NAME} needs matfree: pip install "optax_igr[diagnostics]".'
        ) from error
    hyperparameters.check_positive_integer(_NAME, "num_steps", num_steps)
    if callable(radius):
        raise ValueError(f"{_NAME}: `radius` must be a number, got a schedule.")
    derivatives.check_mode(_NAME, hvp, radius)
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(params)):
        raise ValueError(
            f"{_NAME}: complex parameters have no linear Hessian; give `value_fn` of their real and imaginary parts."
        )
    differentiable, fill = trees.select(_NAME, trees.widen(trees.as_arrays(params)))
    size = sum(x.size for x in jax.tree.leaves(differentiable))
    if size == 0:
        raise ValueError(f"{_NAME}: `params` has no real parameter.")
    num_steps = min(num_steps, size)
    tick = _progress.ticker(progress, num_steps)
    hessian = derivatives.hessian_operator(
        lambda p: value_fn(fill(p)), differentiable, mode=hvp, radius=radius, name=_NAME
    )

    def product(vector):
        tick()
        return hessian(vector)

    key = jax.random.key(0) if key is None else key
    leaves, structure = jax.tree.flatten(differentiable)
    start = structure.unflatten(
        jax.random.normal(k, x.shape, x.dtype)
        for k, x in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    )
    lanczos = decomp.hessenberg(num_steps, reortho="full", custom_vjp=False)
    _, projected, residual, _ = lanczos(product, trees.unit(start)[0])
    projected = jnp.asarray(projected)
    diagonal, below = jnp.diagonal(projected), jnp.diagonal(projected, -1)
    last = trees.norm(residual).astype(diagonal.dtype)
    eigenvalue, error = _largest_ritz_value(diagonal, below, last)
    threshold = None if learning_rate is None else 2 / learning_rate
    return Sharpness(eigenvalue, error, threshold)


def _largest_ritz_value(diagonal, below, last):
    """Returns the largest eigenvalue of the tridiagonal matrix up to a breakdown, and its residual.

    Where a Krylov space is exhausted the next vector is noise, and so is the rest of the matrix. The first diagonal
    entry in its place adds no eigenvalue above the largest.
    """
    couplings = jnp.append(below, last)
    scale = jnp.max(jnp.where(jnp.isfinite(diagonal), jnp.abs(diagonal), 0))
    tolerance = 10 * jnp.finfo(diagonal.dtype).eps * scale
    broken = ~(jnp.abs(couplings) > tolerance)
    sound_before = jnp.cumsum(broken, dtype=jnp.int32) - broken.astype(jnp.int32) == 0
    diagonal = jnp.where(sound_before, diagonal, diagonal[0])
    couplings = jnp.where(sound_before & ~broken, couplings, 0)
    matrix = jnp.diag(diagonal) + jnp.diag(couplings[:-1], 1) + jnp.diag(couplings[:-1], -1)
    values, vectors = jnp.linalg.eigh(matrix)
    return values[-1], jnp.abs(couplings[-1] * vectors[-1, -1])
