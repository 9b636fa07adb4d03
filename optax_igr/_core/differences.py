r"""Hessian-vector products by differences of gradients, and the length of their perturbation.

.. math::
  \text{forward: } \tfrac{1}{\epsilon} (\nabla L(\theta + \epsilon v) - \nabla L(\theta)) \quad
  \text{backward: } \tfrac{1}{\epsilon} (\nabla L(\theta) - \nabla L(\theta - \epsilon v)) \quad
  \text{central: } \tfrac{1}{2\epsilon} (\nabla L(\theta + \epsilon v) - \nabla L(\theta - \epsilon v))

with :math:`\epsilon = r / \|v\|`: the radius :math:`r` is the length of the perturbation itself.

A difference knows nothing of kinks. Between its two points a unit of a ReLU network may turn on, and its gradient
jumps by an amount that the division by :math:`\epsilon` makes large; an exact mode takes the derivative of the piece
that :math:`\theta` lies on. With the default radius this module keeps to one piece of a loss with kinks where it can:

- The radius is small.
- A central difference compares its two halves. Where they disagree by more than a fifth a unit has turned on in one
  of them, and the smaller half is the result. It tries a radius eight times as wide first, which rounds less, and
  the small one only where the halves disagree there: three gradients, or five.
- A parameter that is exactly zero is moved below zero first, by some :math:`\epsilon |v|`. At initialization a zero
  bias on an input that is zero there (the margin of an image) puts a unit exactly at its kink, and every radius
  across it. JAX takes the derivative of ReLU at zero as zero, which is that of the side below.

A loss without kinks (see `jumps`) takes none of this, and two gradients. One unit that turns on is enough to spoil a
one-sided difference, which cannot notice: it warns where the loss has kinks. With a radius of the caller's own the
formulas hold as they stand.
"""

import warnings
from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp

from optax_igr._core import control_flow, precision, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.trees import Tree

# The largest error by rounding alone that passes without a word, and the least epsilon of narrow formats.
_LOUD_ROUNDING = 0.1
_NARROW_EPSILON = 2.0**-20
# How far the halves of a central difference may be apart, as a part of the smaller.
_DISAGREEMENT = 0.2
# How much wider a central difference tries first, and by how much rounding may enlarge a difference.
_WIDER = 8
_LARGER_BY_ROUNDING = 1.5

_announced: set[tuple] = set()


def default_radius(mode: str, num_parameters: int, found: precision.Precision) -> float:
    r"""Returns the length of a difference's perturbation.

    .. math::
      r = 3 \sqrt\varepsilon \text{ one-sided}, \quad 2 \sqrt[3]\varepsilon \text{ central}

    for a smooth loss and the machine epsilon :math:`\varepsilon` of the coarsest format in it, where the two errors of
    a difference balance: curvature of the gradient, which grows with the radius, and rounding, which falls with it.
    In a format narrower than float32 it is half of that. A loss with kinks takes

    .. math:: r = \min\big( b,\ \max(10^{-3} / \sqrt n,\ 64 \varepsilon) \big), \qquad
      b = \sqrt\varepsilon / 3 \text{ one-sided}, \quad \sqrt[3]\varepsilon / 4 \text{ central}

    for n parameters, so that few units turn on within it. Rounding of the gradient then counts for more as training
    goes on: a small gradient is what remains of larger numbers that cancel.

    Relative errors of :math:`Hg` against the exact mode, on digits (dense networks of 15,000 and 26,000 parameters,
    convolutions of 2,000; batches of 64 and 128, softmax cross-entropy, zero biases at the start). A wider radius does
    not help a one-sided difference with kinks: one unit that turns on within it makes it 2 to 7,000 times too large
    (in 1 of 12 halves that were measured on trained networks at this radius). Rows of ReLU, one-sided: forward.

    ============================================ ======================== =======================
    network                                      one-sided                central
    ============================================ ======================== =======================
    float32, tanh and GELU, fresh                0.001 to 0.002           under 0.001
    float32, tanh and GELU, loss 0.5 to 0.02     0.001 to 0.003           under 0.001
    float32, tanh and GELU, loss 0.007 to 0.001  0.01 to 0.016            0.001
    bfloat16, tanh and GELU, dense               0.06 to 0.2; 0.7 at a    0.02 to 0.09; 0.15 at a
                                                 loss of 0.001            loss of 0.001
    bfloat16, tanh and GELU, convolutions        0.2 to 0.5               0.06 to 0.3
    float32, ReLU, fresh, dense                  0.007 to 0.02            0.001 to 0.04
    float32, ReLU, fresh, convolutions           forward 0.003, backward  0.003
                                                 over 1
    float32, ReLU, loss 0.85 to 0.14             0.01 to 0.13             0.001 to 0.01
    float32, ReLU, loss 0.02 to 0.005            0.1 to 0.6               0.002 to 0.08
    float32, ReLU, loss 0.003 to 0.002           0.1 to 1.1               0.03 to 0.8
    ============================================ ======================== =======================
    """
    epsilon = found.epsilon
    root = epsilon ** (1 / 3) if mode == "central_difference" else epsilon**0.5
    if not found.has_kinks:
        balance = root * (2 if mode == "central_difference" else 3)
        # In a narrow format the curvature of the gradient is felt already at half of it.
        return balance if epsilon < _NARROW_EPSILON else balance / 2
    largest = root / (4 if mode == "central_difference" else 3)
    return min(largest, max(1e-3 / max(num_parameters, 1) ** 0.5, 64 * epsilon))


def difference(
    value_fn: Callable[[Tree], jax.Array],
    gradient_fn: Callable[[Tree], Tree],
    params: Tree,
    vector: Tree,
    *,
    mode: str,
    radius: Scalar | None = None,
    gradient_at_params: Tree | None = None,
    name: str = "difference",
) -> Tree:
    r"""Returns the difference of two gradients that approximates :math:`Hv`.

    Args:
      value_fn: `params -> scalar`; only its precision is asked.
      gradient_fn: `params -> gradient`.
      params: floating or complex leaves.
      vector: a tree like `params`.
      mode: `forward_difference`, `backward_difference` or `central_difference`.
      radius: the length of the perturbation; None takes :func:`default_radius`, and so does a traced radius
        that is not finite and positive.
      gradient_at_params: the base of a one-sided difference, where it is known.
      name: the public name of the caller, for the warning.

    Returns:
      A tree like `params`, in float32 or wider.

    .. note::
      It warns, once, where rounding is more than a tenth of the result or the loss is computed in a narrow format.
    """
    if trees.is_narrow(params):
        gradient_at_params = None
    params, vector = trees.widen(params), trees.widen(vector)
    found = precision.of(value_fn, params, gradient_fn)
    default = default_radius(mode, sum(x.size for x in jax.tree.leaves(params)), found)
    _announce(name, mode, default if radius is None else radius, radius is None, found)
    offset = _positive(radius, default) / _length(vector)
    meets_kinks = radius is None and found.has_kinks
    base_params, is_moved = params, jnp.zeros([], bool)
    if meets_kinks:
        base_params, is_moved = _below_zero(params, vector, offset)

    def gradient_at(distance):
        shift = trees.cast_like(trees.scale(distance, vector), params)
        return gradient_fn(trees.add(base_params, shift))

    if mode == "central_difference":
        # Rounding keeps the halves of a smooth function apart too, in a narrow format by too much to compare them.
        if meets_kinks and _has_near_kinks(found) and found.epsilon < _NARROW_EPSILON:
            return _central_on_one_piece(gradient_fn, params, vector, offset)
        ahead, behind = gradient_at(offset), gradient_at(-offset)
        return trees.scale(1 / (2 * offset), trees.subtract(ahead, behind))
    base = _gradient_at_base(gradient_fn, base_params, gradient_at_params, meets_kinks, is_moved)
    if mode == "forward_difference":
        change = trees.subtract(gradient_at(offset), base)
    else:
        change = trees.subtract(base, gradient_at(-offset))
    return trees.scale(1 / offset, change)


def _central_on_one_piece(gradient_fn, params, vector, offset):
    """Returns the difference over a wide radius, which rounds less, or over a near one where the wide one jumps."""
    wide, agrees = _on_one_piece(gradient_fn, params, vector, _WIDER * offset)

    def with_near(_):
        near, _ = _on_one_piece(gradient_fn, params, vector, offset)
        # A jump makes a difference larger by a multiple, rounding by a part.
        limit = _LARGER_BY_ROUNDING**2 * trees.squared_norm(near)
        is_spoiled = ~agrees & (trees.squared_norm(wide) > limit)
        return jax.tree.map(lambda n, w: jnp.where(is_spoiled, n, w), near, wide)

    if jax.sharding.get_abstract_mesh().manual_axes:
        # As in `_gradient_at_base`.
        return with_near(None)
    return control_flow.cond(agrees, lambda _: wide, with_near, None)


def _on_one_piece(gradient_fn, params, vector, offset):
    """Returns the central difference where its halves agree, else the smaller half, and whether they agree."""
    base_params, _ = _below_zero(params, vector, offset)

    def gradient_at(distance):
        shift = trees.cast_like(trees.scale(distance, vector), params)
        return gradient_fn(trees.add(base_params, shift))

    # The gradient that is known comes from another program, which rounds otherwise: by up to an eighth of a half.
    base = gradient_fn(base_params)
    ahead = trees.scale(1 / offset, trees.subtract(gradient_at(offset), base))
    behind = trees.scale(1 / offset, trees.subtract(base, gradient_at(-offset)))
    # A jump makes one half larger.
    sizes = [trees.squared_norm(half) for half in (ahead, behind)]
    disagreement = trees.squared_norm(trees.subtract(ahead, behind))
    agrees = disagreement <= _DISAGREEMENT**2 * jnp.minimum(*sizes)
    result = jax.tree.map(
        lambda a, b: jnp.where(agrees, (a + b) / 2, jnp.where(sizes[0] < sizes[1], a, b)),
        ahead,
        behind,
    )
    return result, agrees


def _has_near_kinks(found: precision.Precision) -> bool:
    # In float64 the radius is so small that no unit turns on within it.
    return found.has_kinks and found.epsilon > 2.0**-40


def _length(vector: Tree) -> jax.Array:
    """Returns the norm, or 1 for a zero vector, which is not perturbed at all."""
    length = trees.norm(vector)
    return jnp.where(length > 0, length, 1)


def _positive(radius: Scalar | None, default: float) -> Scalar:
    if radius is None:
        return default
    # A schedule may pass through 0, where the quotient is 0/0 and its limit finite.
    return jnp.where(jnp.isfinite(radius) & (jnp.asarray(radius) > 0), radius, default)


def _below_zero(params: Tree, vector: Tree, offset: Scalar) -> tuple[Tree, jax.Array]:
    """Moves the parameters that are exactly zero below it, by more than the perturbation moves them."""

    def is_moved(p, v):
        # A complex number has no side of zero.
        return jnp.zeros(p.shape, bool) if jnp.iscomplexobj(p) else (p == 0) & (v != 0)

    moves = jax.tree.map(is_moved, params, vector)
    moved = jax.tree.map(
        lambda p, v, m: jnp.where(m, (-8 * offset * jnp.abs(v)).astype(p.dtype), p),
        params,
        vector,
        moves,
    )
    any_moved = jax.tree.map(jnp.any, moves)
    return moved, jnp.any(jnp.asarray([*jax.tree.leaves(any_moved), False]))


def _gradient_at_base(gradient_fn, base_params, gradient_at_params, meets_kinks, is_moved):
    if gradient_at_params is None:
        return gradient_fn(base_params)
    if not meets_kinks:
        return gradient_at_params
    if jax.sharding.get_abstract_mesh().manual_axes:
        # The devices of a `shard_map` might disagree about a branch, and then wait in it for one another for ever.
        return gradient_fn(base_params)
    # After the first steps of training nothing is exactly zero: the gradient that is known serves.
    return control_flow.cond(is_moved, gradient_fn, lambda _: gradient_at_params, base_params)


def _announce(name, mode, radius, is_default, found):
    """Warns, once, where a difference is known to be far from the product."""
    if isinstance(radius, jax.core.Tracer) or not radius > 0:
        return
    error = found.epsilon / float(radius)
    if error >= _LOUD_ROUNDING or found.epsilon >= _NARROW_EPSILON:
        why = (
            f"subtracts gradients that `value_fn` computes in {found.name}: at the radius {float(radius):.1e} "
            f"rounding alone is about {error:.0%} of their difference, and a larger radius has a larger error of "
            "its own. Use an exact mode, or compute the loss in float32 (`jax_default_matmul_precision`)."
        )
    elif is_default and _has_near_kinks(found) and mode != "central_difference":
        why = (
            "does not notice where the gradient jumps, and `value_fn` has kinks (as of a ReLU): a step in which one "
            "unit turns on is wrong, "
            "and once the loss is small (0.02) rounding is a third of the result. "
            "Use an exact mode, or hvp='central_difference', which compares its two halves."
        )
    else:
        return
    key = (name, mode, why if is_default else found.name)
    if key in _announced:
        return
    warnings.warn(f"{name}: hvp={mode!r} {why}", stacklevel=2)
    _announced.add(key)
