r"""Clipping of singular values by matrix products alone.

With :math:`A = W^* W` on the smaller side and the radius c,

.. math::
  U \min(S, c) V^* = c\, W \max(A, c^2 I)^{-1/2}, \qquad
  2 \max(A, c^2 I) = A + c^2 I + |A - c^2 I|, \qquad |B| = B \operatorname{sign}(B),

and the sign and the inverse root are limits of Newton and Schulz's iteration
:math:`X \leftarrow \frac{3}{2} \rho X - \frac{1}{2} \rho^3 X^3`. The scaling :math:`\rho` of Chen and Chow lets an
eigenvalue grow by 2.5 a step and not by 1.5. An eigenvalue of :math:`B = A - c^2 I` too small to reach its sign is too
small to matter in :math:`|B|`: the iteration has a fixed length, and no gap is needed.

The Gram matrix squares the condition, so W is clipped in stages, each to a quarter of its norm at least. Against a
singular value decomposition it is products, which batch on every device, and no LAPACK, whose threads wait for one
another on a busy CPU.

References:
  Chen, Chow, `A Stable Scaling of Newton-Schulz for Improving the Sign Function Computation of a Hermitian Matrix
  <https://www.mcs.anl.gov/papers/P5059-0114.pdf>`_, 2014
  Higham, `Functions of Matrices <https://doi.org/10.1137/1.9780898717778>`_, 2008, section 6.3
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from optax_igr.operators import _arrays

_HIGHEST = jax.lax.Precision.HIGHEST
# A stage clips at no less than the norm over this.
_STAGE = 4.0
# The bound of the norm is the Schatten norm of this exponent.
_EXPONENT = 16
_EPS = float(np.finfo(np.float64).eps)
# With a larger scaling, rounding can turn the sign of the largest eigenvalue.
_LARGEST_SCALING = 1.69770248525577


@jax.custom_jvp
def clip_singular_values(matrices: jax.Array, radius: jax.Array) -> jax.Array:
    """Returns matrices of shape `[..., m, n]` with their singular values clipped at the radius.

    Args:
      matrices: real or complex, of float32 or wider.
      radius: above 0, a scalar of their real dtype.

    Returns:
      The matrices, to a few units of rounding in their largest singular value; exactly as they came where no singular
      value is above the radius. Differentiable forwards and backwards, for one more evaluation.
    """
    return _clip(matrices, radius)


@clip_singular_values.defjvp
def _(primals, tangents):
    matrices, radius = primals
    clipped = clip_singular_values(matrices, radius)

    def along(_, tangent):
        # Without scaling: between its bounds the scaled iteration is chaotic, and so its derivatives grow.
        clip = functools.partial(_clip, radius=radius, largest_scaling=1.0)
        return jax.jvp(clip, (matrices,), (tangent,))[1]

    # The projection onto a convex set is the gradient of a convex function, so its derivative is its own adjoint. A
    # solve with the identity is how a linear map of known transpose is told to JAX. The derivative by the radius
    # follows from P(sW, sc) = s P(W, c).
    growth = tangents[1] / radius
    change = jax.lax.custom_linear_solve(
        lambda x: x,
        tangents[0] - _arrays.multiply(growth, matrices),
        solve=along,
        transpose_solve=lambda _, cotangent: along(None, cotangent.conj()).conj(),
    )
    return clipped, change + _arrays.multiply(growth, clipped)


def _clip(matrices, radius, largest_scaling=_LARGEST_SCALING):
    limit = _most_stages(matrices.dtype, matrices.shape)

    def is_unfinished(carry):
        count, _, is_above = carry
        return (count < limit) & is_above

    def stage(carry):
        count, matrices, _ = carry
        clipped, is_above = _clip_by_quarter(matrices, radius, largest_scaling)
        return count + 1, clipped, jnp.any(is_above)

    # No weight lies in a ball of radius zero but zero, and no number of stages reaches it.
    start = (jnp.zeros([], jnp.int32), matrices, radius > 0)
    clipped = jax.lax.while_loop(is_unfinished, stage, start)[1]
    # Zero at zero, and NaN where the radius is negative or NaN.
    elsewhere = jnp.sqrt(jnp.minimum(jax.lax.stop_gradient(radius), 0)).astype(clipped.dtype)
    return jnp.where(radius > 0, clipped, elsewhere)


def _most_stages(dtype, shape):
    """Returns how many stages lead from the largest norm to the least radius that the dtype holds."""
    info = jnp.finfo(dtype)
    log_size = np.log2(max(shape[-2:]))
    range_of_norms = float(np.log2(info.max) - np.log2(info.smallest_subnormal)) + log_size
    # A stage clips at a quarter of the bound, which exceeds the norm by `size ** (1 / _EXPONENT)` at most. Half of the
    # gain of a stage of the largest weights that fit a computer is a floor that rounding cannot take away.
    gain = max(np.log2(_STAGE) - log_size / _EXPONENT, 0.5)
    return int(np.ceil(range_of_norms / gain)) + 1


def _clip_by_quarter(matrices, radius, largest_scaling):
    """Clips at the radius or at a quarter of a bound of the norm; says whether a norm may be above the radius."""
    is_zero = jnp.max(jnp.abs(matrices), (-2, -1), keepdims=True) == 0
    scale = _arrays.magnitude(matrices, (-2, -1))
    scaled, radius = _arrays.divide(matrices, scale), radius / scale
    is_tall = scaled.shape[-2] >= scaled.shape[-1]
    adjoint = jnp.swapaxes(scaled, -1, -2).conj()
    gram = _product(adjoint, scaled) if is_tall else _product(scaled, adjoint)
    eye = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    # No norm is less than the largest entry, which is 1 at least but for a zero matrix.
    bound = jax.lax.stop_gradient(jnp.sqrt(jnp.maximum(_norm_bound(gram), 1)))
    # A zero matrix has arrived; its bound of 1 is above the radius for ever.
    is_above = ~is_zero & (bound > _STAGE * radius)
    radius = jnp.clip(radius, bound / _STAGE, 2 * bound)
    gram = _arrays.divide(gram, radius**2)
    spread = jnp.maximum(1, (bound / radius) ** 2)
    sign = _sign(_arrays.divide(gram - eye, spread), largest_scaling)
    # Half of the trace plus half of the dimension counts the singular values above the radius.
    is_inside = jnp.real(jnp.trace(sign, axis1=-2, axis2=-1)) < 0.5 - gram.shape[-1]
    at_least_one = (gram + eye + _product(gram - eye, sign)) / 2
    root = _arrays.divide(
        _inverse_root(_arrays.divide(at_least_one, spread), 1 / _STAGE), jnp.sqrt(spread)
    )
    clipped = _product(scaled, root) if is_tall else _product(root, scaled)
    clipped = _arrays.multiply(scale, clipped)
    return jnp.where(is_inside[..., None, None], matrices, clipped), is_above


def _norm_bound(gram):
    """Returns an upper bound of the norm of positive semidefinite matrices, from the fourth power."""
    factors = []
    for _ in range(2):
        # Such a matrix has its largest entry on the diagonal. Divided by it, no power overflows.
        diagonal = jnp.real(jnp.diagonal(gram, axis1=-2, axis2=-1))
        largest = jnp.max(diagonal, -1)[..., None, None]
        factors.append(largest)
        gram = _arrays.divide(gram, _arrays.nonzero(largest))
        gram = _product(gram, gram)
    bound = jnp.sqrt(jnp.sum(_arrays.squared_modulus(gram), (-2, -1), keepdims=True))
    for factor in reversed(factors):
        bound = factor * jnp.sqrt(bound)
    return bound


def _sign(matrices, largest_scaling):
    """Returns the sign of Hermitian matrices of norm at most 1."""
    smallest = float(jnp.finfo(matrices.dtype).eps)
    scalings = jnp.asarray(_scalings(smallest, largest_scaling), matrices.dtype)

    def step(i, x):
        rho = scalings[i]
        return 1.5 * rho * x - 0.5 * rho**3 * _product(x, _product(x, x))

    return jax.lax.fori_loop(0, len(scalings), step, matrices)


def _inverse_root(matrices, smallest):
    """Returns the inverse square root of Hermitian matrices with eigenvalues from `smallest**2` to 1."""
    scalings = jnp.asarray(_scalings(smallest, 2.0), matrices.dtype)
    eye = jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)

    def step(i, carry):
        root, inverse = carry
        rho = scalings[i]
        factor = 1.5 * rho * eye - 0.5 * rho**3 * _product(inverse, root)
        return _product(root, factor), _product(factor, inverse)

    return jax.lax.fori_loop(0, len(scalings), step, (matrices, eye))[1]


@functools.cache
def _scalings(smallest: float, largest_scaling: float) -> np.ndarray:
    """Returns the scaling of each step until numbers from `smallest` to 1 are 1 in float64."""
    found = []
    # A number grows by half at least in each step, so 53 binary digits take fewer than 100.
    for _ in range(100):
        if 1 - smallest <= _EPS:
            break
        rho = min((3 / (1 + smallest + smallest**2)) ** 0.5, largest_scaling)
        smallest = min(rho * smallest * (3 - (rho * smallest) ** 2) / 2, rho * (3 - rho**2) / 2)
        found.append(rho)
    # One step more cleans up what rounding left.
    return np.array([*found, 1.0])


def _product(a, b):
    return jnp.matmul(a, b, precision=_HIGHEST)
