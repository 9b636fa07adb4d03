r"""Principal flow: the path that gradient descent follows, eigendirection by eigendirection.

.. math::
  \dot\theta = \sum_i \frac{\log(1 - h\lambda_i)}{h\lambda_i} (u_i^\top g)\, u_i

with :math:`\lambda_i, u_i` the eigenpairs of the Hessian. It sums all terms of the modified flow
in which no third derivative occurs, so on a quadratic it is gradient descent itself. The factor
is :math:`-1 - h\lambda/2 - (h\lambda)^2/3 - \dots`, has no bound at :math:`h\lambda = 1`, and is
complex beyond, where gradient descent changes sign at each step: :math:`\log(1 - h\lambda) =
\log|1 - h\lambda| + i\pi`.

References:
  Rosca et al, `On a continuous time model of gradient descent dynamics and instability in deep
  learning <https://arxiv.org/abs/2302.01952>`_, 2023
"""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from optax_igr._core import derivatives, hyperparameters
from optax_igr._core.hyperparameters import Scalar
from optax_igr.flows import _leaves

Branch = Literal["real", "complex"]


def principal_flow(
    value_fn: derivatives.ValueFn, step_size: Scalar, *, branch: Branch = "real"
) -> _leaves.Field:
    r"""The flow along the Hessian's eigendirections, for problems with a small dense Hessian.

    Args:
      value_fn: `params -> scalar`.
      step_size: the length `h` of gradient descent's steps, above 0.
      branch: "real" gives NaN where the Hessian has an eigenvalue above :math:`1/h`, and no
        error, so that it may run under `jax.jit`. "complex" gives the complex velocity with
        :math:`\log(-1) = i\pi`; the parameters are complex, `value_fn` must be holomorphic in
        them (compositions of sums, products, tanh, exp: no absolute values), and the general
        eigenvalue decomposition that this needs may run on the CPU alone. Over a whole number of
        steps, the flow of a quadratic comes back to the reals.

    Returns:
      A field, on real parameters, or on complex ones for `branch="complex"` (real ones are
      converted). An integer or boolean leaf has velocity zero.

    Raises:
      ValueError: if an argument is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_igr import flows
      >>> value_fn = lambda x: jnp.sum(x**2) / 2
      >>> field = flows.principal_flow(value_fn, step_size=0.5)
      >>> print(f"{field(jnp.array([1.0]))[0]:.4f}, {jnp.log(0.5) / 0.5:.4f}")
      -1.3863, -1.3863

    References:
      Rosca et al, `On a continuous time model of gradient descent dynamics and instability in deep
      learning <https://arxiv.org/abs/2302.01952>`_, 2023
    """
    hyperparameters.check_scalar("principal_flow", "step_size", step_size, above=0)
    hyperparameters.check_choice("principal_flow", "branch", branch, get_args(Branch))
    holomorphic = branch == "complex"

    def velocity(params, fill):
        flat, unravel = ravel_pytree(params)

        def flat_value(x):
            return value_fn(fill(unravel(x)))

        gradient = jax.grad(flat_value, holomorphic=holomorphic)(flat)
        if holomorphic:
            hessian = jax.jacfwd(jax.grad(flat_value, holomorphic=True), holomorphic=True)(flat)
            eigenvalues, vectors = jnp.linalg.eig(hessian)
            # The decomposition of a complex symmetric matrix is not orthogonal.
            components = jnp.linalg.solve(vectors, gradient)
        else:
            eigenvalues, vectors = jnp.linalg.eigh(jax.hessian(flat_value)(flat))
            components = vectors.T @ gradient
        factors = principal_factor(step_size * eigenvalues)
        return unravel(vectors @ (factors * components))

    field = _leaves.on_whole_tree("principal_flow", velocity)
    if not holomorphic:
        return field
    return lambda params: field(jax.tree.map(_to_complex, params))


def principal_factor(x: chex.Array) -> chex.Array:
    r"""Returns :math:`\log(1 - x)/x`, which is -1 at zero; real numbers above one give NaN."""
    # Both branches of a `where` are differentiated: the one not taken must stay finite.
    small = jnp.abs(x) < jnp.finfo(x.dtype).eps
    safe = jnp.where(small, 1, x)
    return jnp.where(small, -1 - x / 2, _log_one_minus(safe) / safe)


def _log_one_minus(x: jax.Array) -> jax.Array:
    if not jnp.iscomplexobj(x):
        return jnp.log1p(-x)
    # The cut runs up from x = 1, away from the real axis, where rounding would choose its side.
    return jnp.log(-1j * (1 - x)) + 0.5j * jnp.pi


def _to_complex(x):
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x.astype(jnp.result_type(x.dtype, jnp.complex64))
