r"""The products of the matrices that pairs stand for: H, in two forms, and its inverse B.

References:
  Nocedal, `Updating Quasi-Newton Matrices with Limited Storage <https://doi.org/10.2307/2006193>`_, 1980
  Byrd, Nocedal, Schnabel, `Representations of quasi-Newton matrices and their use in limited memory methods
  <https://doi.org/10.1007/BF01582063>`_, 1994
  Chen, Wang, Zhou, `Large-scale L-BFGS using MapReduce
  <https://papers.nips.cc/paper/2014/hash/e49b8b4053df9505e1f48c3a701c0682-Abstract.html>`_, 2014
"""

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from optax_igr._core import trees
from optax_igr.curvature import pair_ring
from optax_igr.curvature.pair_ring import LBFGSMemory

FORMS = ("two_loop", "gram")


def apply(memory: LBFGSMemory, vector: chex.ArrayTree, form: str = "two_loop") -> chex.ArrayTree:
    """Returns the product of H and a vector, in float32 or wider; the vector itself from an empty memory.

    Args:
      memory: the pairs.
      vector: a tree like the parameters.
      form: `two_loop` or `gram`.
    """
    return apply_and_next_slot(memory, vector, form)[0]


def apply_and_next_slot(
    memory: LBFGSMemory, vector: chex.ArrayTree, form: str
) -> tuple[chex.ArrayTree, jax.Array]:
    """Returns the product of H and a vector, and the slot that the next pair goes to.

    Both forms end with a loop from the oldest pair to the newest, and the slot is where that loop stops. Whatever is
    written there waits for the product: XLA copies a buffer that is written where nothing says it has been read.
    """
    form_of = {"two_loop": _two_loop, "gram": _gram}
    return form_of[form](memory, trees.widen(vector))


def apply_inverse(memory: LBFGSMemory, vector: chex.ArrayTree) -> chex.ArrayTree:
    r"""Returns the product of :math:`B = H^{-1}` and a vector, in float32 or wider.

    .. math::
      B = \sigma I - \begin{pmatrix} \sigma S & Y \end{pmatrix}
      \begin{pmatrix} \sigma S^\top S & L \\ L^\top & -D \end{pmatrix}^{-1}
      \begin{pmatrix} \sigma S^\top \\ Y^\top \end{pmatrix}, \qquad \sigma = 1/\gamma,

    where D is the diagonal of :math:`S^\top Y` and L its part in which the step is newer than the change.
    """
    vector = trees.widen(vector)
    order, filled = pair_ring.newest_first(memory)
    size, sigma = pair_ring.num_slots(memory), 1 / pair_ring.initial_scale(memory)
    both = jnp.concatenate([order, size + order])
    is_filled = jnp.concatenate([filled, filled])
    products = memory.products[both[:, None], both[None, :]]
    newer = jnp.triu(products[:size, size:], 1)
    diagonal = jnp.diag(jnp.diag(products[:size, size:]))
    middle = jnp.block([[sigma * products[:size, :size], newer], [newer.T, -diagonal]])
    middle = jnp.where(
        is_filled[:, None] & is_filled[None, :], middle, jnp.eye(2 * size, dtype=middle.dtype)
    )
    # Steps of very different length would make this system look singular in float32.
    unit = 1 / jnp.sqrt(jnp.abs(jnp.diag(middle)))
    factors = jnp.where(jnp.arange(2 * size) < size, sigma, 1)
    right = factors * pair_ring.products_with(memory, vector)[both]
    solved = unit * jnp.linalg.solve(unit[:, None] * middle * unit[None, :], unit * right)
    coefficients = jnp.zeros_like(solved).at[both].set(-factors * solved)
    return trees.add(trees.scale(sigma, vector), _combine(memory, coefficients, vector))


def _two_loop(memory, vector):
    order, filled = pair_ring.newest_first(memory)
    curvatures = jnp.diagonal(memory.products, pair_ring.num_slots(memory))
    inverse_curvatures = jnp.where(filled, 1 / jnp.where(filled, curvatures[order], 1), 0)

    def to_older(vector, pair):
        slot, inverse_curvature = pair
        alpha = inverse_curvature * trees.inner_product(
            pair_ring.slot_of(memory.steps, slot), vector
        )
        return _add_scaled(vector, -alpha, pair_ring.slot_of(memory.gradient_changes, slot)), alpha

    def to_newer(carry, pair):
        vector, slot = carry
        inverse_curvature, alpha = pair
        change = pair_ring.slot_of(memory.gradient_changes, slot)
        beta = inverse_curvature * trees.inner_product(change, vector)
        vector = _add_scaled(vector, alpha - beta, pair_ring.slot_of(memory.steps, slot))
        return (vector, pair_ring.slot_after(memory, slot)), None

    vector, alphas = jax.lax.scan(to_older, vector, (order, inverse_curvatures))
    vector = trees.scale(pair_ring.initial_scale(memory), vector)
    pairs = (inverse_curvatures, alphas)
    return jax.lax.scan(to_newer, (vector, order[-1]), pairs, reverse=True)[0]


def _gram(memory, vector):
    order, filled = pair_ring.newest_first(memory)
    size, gamma = pair_ring.num_slots(memory), pair_ring.initial_scale(memory)
    both_filled = filled[:, None] & filled[None, :]
    step_change = memory.products[order[:, None], size + order[None, :]]
    step_change = jnp.where(both_filled, step_change, jnp.eye(size, dtype=step_change.dtype))
    change_change = memory.products[size + order[:, None], size + order[None, :]]
    products = pair_ring.products_with(memory, vector)
    # Newest first, a pair meets what the newer ones left: the two loops are two triangular solves.
    older = jnp.tril(step_change)
    alphas = solve_triangular(older, products[order], lower=True)
    at_oldest = products[size + order] - jnp.sum(change_change * alphas[None, :], axis=1)
    right = jnp.diagonal(step_change) * alphas - gamma * at_oldest
    deltas = solve_triangular(older, right, lower=True, trans=1)

    def to_newer(carry, coefficients):
        vector, slot = carry
        for history, coefficient in zip(
            (memory.steps, memory.gradient_changes), coefficients, strict=True
        ):
            vector = _add_scaled(vector, coefficient, pair_ring.slot_of(history, slot))
        return (vector, pair_ring.slot_after(memory, slot)), None

    start = (trees.scale(gamma, vector), order[-1])
    return jax.lax.scan(to_newer, start, (deltas, -gamma * alphas), reverse=True)[0]


def _add_scaled(vector, factor, history):
    def leaf(v, h):
        return v + factor.astype(jnp.finfo(v.dtype).dtype) * h.astype(v.dtype)

    return jax.tree.map(leaf, vector, history)


def _combine(memory, coefficients, vector):
    r"""Returns :math:`\sum_i c_i s_i + \sum_i c_{M+i} y_i` in the dtypes of `vector`."""

    def leaf(steps, changes, v):
        def combine(history, c):
            c = jnp.expand_dims(c.astype(jnp.finfo(v.dtype).dtype), range(1, history.ndim))
            # A contraction by `dot` would round to bfloat16 or TF32 on accelerators.
            return jnp.sum(c * history.astype(v.dtype), axis=0)

        size = pair_ring.num_slots(memory)
        return combine(steps, coefficients[:size]) + combine(changes, coefficients[size:])

    return jax.tree.map(leaf, memory.steps, memory.gradient_changes, vector)
