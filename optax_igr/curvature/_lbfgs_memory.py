r"""The memory of L-BFGS: the last pairs in a ring buffer, and products with the matrices that they define.

A pair is a step :math:`s` and the change :math:`y` of a gradient along it. The last M pairs, oldest first, and
:math:`H_0 = \gamma I` with :math:`\gamma = s^\top y / y^\top y` of the newest one define

.. math::
  H \leftarrow (I - \rho s y^\top) H (I - \rho y s^\top) + \rho s s^\top, \qquad \rho = 1 / y^\top s,

an approximation of the inverse Hessian. This file multiplies by H (`apply`) and by its inverse B (`apply_inverse`).
`_lbfgs_push` decides which pairs enter, and a transform where they come from.

H has two forms. The two-loop recursion takes 2M inner products, one after the other. The Gram form takes 2M inner
products that are independent of each other (on a mesh: one reduction instead of 2M), and solves two triangular systems
of size M. Both read the memory twice, 4MP numbers for P parameters; the memory itself is 2MP numbers.

References:
  Nocedal, `Updating Quasi-Newton Matrices with Limited Storage <https://doi.org/10.2307/2006193>`_, 1980
  Byrd, Nocedal, Schnabel, `Representations of quasi-Newton matrices and their use in limited memory methods
  <https://doi.org/10.1007/BF01582063>`_, 1994
  Chen, Wang, Zhou, `Large-scale L-BFGS using MapReduce
  <https://papers.nips.cc/paper/2014/hash/e49b8b4053df9505e1f48c3a701c0682-Abstract.html>`_, 2014
"""

from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from optax_igr._core import control_flow, paths, trees

Form = Literal["two_loop", "gram"]
FORMS: tuple[Form, ...] = get_args(Form)


class LBFGSMemory(NamedTuple):
    """The last pairs and their inner products.

    Attributes:
      steps: s, a tree like the parameters with a leading axis of M slots.
      gradient_changes: y, likewise.
      products: the inner products of [S; Y] among themselves, [2M, 2M].
      pair_count: how many pairs were accepted so far; the next one goes to this slot, modulo M.
      held_count: how many pairs H is made of, at most M; 0 again after the pairs were dropped.
      rejected_count: how many pairs were rejected so far.
      rejected_in_a_row: how many were rejected since the last accepted one, or since the pairs were dropped.
      dropped_count: how often the pairs were dropped.
      empty_scale: the factor of H = cI while no pair is held.
    """

    steps: chex.ArrayTree
    gradient_changes: chex.ArrayTree
    products: jax.Array
    pair_count: jax.Array
    held_count: jax.Array
    rejected_count: jax.Array
    rejected_in_a_row: jax.Array
    dropped_count: jax.Array
    empty_scale: jax.Array


def init(params: chex.ArrayTree, memory_size: int, history_dtype: Any = None) -> LBFGSMemory:
    """Makes an empty memory, whose histories are sharded like the parameters.

    Args:
      params: floating or complex leaves; only their shapes, dtypes and shardings matter.
      memory_size: M, the number of slots.
      history_dtype: of the pairs; None means float32, or float64 where the parameter is.
    """

    def history():
        # Without boxes, which say how the axes of an array are laid out over devices: a history has one axis more.
        unboxed = paths.unboxed(params)
        return jax.tree.map(lambda p: _slots(p, memory_size, history_dtype), unboxed)

    def count():
        return jnp.zeros([], jnp.int32)

    widest = [jnp.finfo(trees.widened(p.dtype)).dtype for p in jax.tree.leaves(params)]
    dtype = trees.widest(jnp.float32, *widest)
    return LBFGSMemory(
        steps=history(),
        gradient_changes=history(),
        products=jnp.zeros([2 * memory_size, 2 * memory_size], dtype),
        pair_count=count(),
        held_count=count(),
        rejected_count=count(),
        rejected_in_a_row=count(),
        dropped_count=count(),
        empty_scale=jnp.ones([], dtype),
    )


def apply(memory: LBFGSMemory, vector: chex.ArrayTree, form: Form = "two_loop") -> chex.ArrayTree:
    """Returns the product of H and a vector, in float32 or wider; the vector itself from a fresh memory.

    Args:
      memory: the pairs.
      vector: a tree like the parameters.
      form: `two_loop` or `gram`.
    """
    return apply_and_next_slot(memory, vector, form)[0]


def apply_and_next_slot(
    memory: LBFGSMemory, vector: chex.ArrayTree, form: Form
) -> tuple[chex.ArrayTree, jax.Array]:
    """Returns the product of H and a vector, and the slot that the next pair goes to.

    Both forms end with a loop from the oldest pair to the newest, and the slot is where that loop stops. So a write to
    this slot waits for the product. XLA would copy a buffer whose write it cannot order after the reads.
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
    order, filled = newest_first(memory)
    size, sigma = num_slots(memory), 1 / initial_scale(memory)
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
    # Slots that are not filled may still hold pairs that were dropped.
    right = jnp.where(is_filled, factors * products_with(memory, vector)[both], 0)
    solved = unit * jnp.linalg.solve(unit[:, None] * middle * unit[None, :], unit * right)
    coefficients = jnp.zeros_like(solved).at[both].set(-factors * solved)
    return trees.add(trees.scale(sigma, vector), _combine(memory, coefficients, vector))


def num_slots(memory: LBFGSMemory) -> int:
    """Returns M."""
    return memory.products.shape[0] // 2


def newest_first(memory: LBFGSMemory) -> tuple[jax.Array, jax.Array]:
    """Returns the slots in the order of age, and whether each holds a pair."""
    ages = jnp.arange(num_slots(memory), dtype=jnp.int32)
    return (memory.pair_count - 1 - ages) % num_slots(memory), ages < memory.held_count


def next_slot(memory: LBFGSMemory) -> jax.Array:
    """Returns the slot of the oldest pair, which the next one replaces."""
    return memory.pair_count % num_slots(memory)


def slot_after(memory: LBFGSMemory, slot: jax.Array) -> jax.Array:
    """Returns the slot of the pair after the one in this slot."""
    return (slot + 1) % num_slots(memory)


def slot_of(history: chex.ArrayTree, slot: jax.Array) -> chex.ArrayTree:
    """Returns the s or the y of one slot."""
    return jax.tree.map(
        lambda h: jax.lax.dynamic_index_in_dim(h, slot, axis=0, keepdims=False), history
    )


def oldest_pair(memory: LBFGSMemory) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Returns s and y from the slot that the next pair goes to."""
    slot = next_slot(memory)
    return slot_of(memory.steps, slot), slot_of(memory.gradient_changes, slot)


def initial_scale(memory: LBFGSMemory) -> jax.Array:
    r"""Returns :math:`\gamma = s^\top y / y^\top y` of the newest pair, or the factor of an empty memory."""
    newest = num_slots(memory) + (memory.pair_count - 1) % num_slots(memory)
    curvature = memory.products[newest - num_slots(memory), newest]
    squared = memory.products[newest, newest]
    is_empty = memory.held_count == 0
    return jnp.where(is_empty, memory.empty_scale, curvature / jnp.where(is_empty, 1, squared))


def products_with(memory: LBFGSMemory, vector: chex.ArrayTree) -> jax.Array:
    """Returns the inner products of [S; Y] with a vector, [2M]."""

    def leaf(history, v):
        dtype = trees.widest(trees.widened(history.dtype), trees.widened(v.dtype))
        entries = jnp.real(history.astype(dtype).conj() * v.astype(dtype)[None])
        return jnp.sum(entries, axis=range(1, entries.ndim)).astype(memory.products.dtype)

    def with_history(history):
        zeros = jnp.zeros([num_slots(memory)], memory.products.dtype)
        return sum(jax.tree.leaves(jax.tree.map(leaf, history, vector)), zeros)

    return jnp.concatenate([with_history(memory.steps), with_history(memory.gradient_changes)])


def _two_loop(memory, vector):
    order, filled = newest_first(memory)
    curvatures = jnp.diagonal(memory.products, num_slots(memory))
    # A zero skips the slots that hold no pair: both loops run over all of them.
    inverse_curvatures = jnp.where(filled, 1 / jnp.where(filled, curvatures[order], 1), 0)

    def to_older(vector, pair):
        slot, inverse_curvature = pair
        step = slot_of(memory.steps, slot)
        change = slot_of(memory.gradient_changes, slot)
        alpha = inverse_curvature * trees.inner_product(step, vector)
        return _add_scaled(vector, -alpha, change), alpha

    def to_newer(carry, pair):
        vector, slot = carry
        inverse_curvature, alpha = pair
        step = slot_of(memory.steps, slot)
        change = slot_of(memory.gradient_changes, slot)
        beta = inverse_curvature * trees.inner_product(change, vector)
        vector = _add_scaled(vector, alpha - beta, step)
        return (vector, slot_after(memory, slot)), None

    vector, alphas = control_flow.scan(to_older, vector, (order, inverse_curvatures))
    vector = trees.scale(initial_scale(memory), vector)
    pairs = (inverse_curvatures, alphas)
    return control_flow.scan(to_newer, (vector, order[-1]), pairs, reverse=True)[0]


def _gram(memory, vector):
    order, filled = newest_first(memory)
    size, gamma = num_slots(memory), initial_scale(memory)
    both_filled = filled[:, None] & filled[None, :]
    step_change = memory.products[order[:, None], size + order[None, :]]
    step_change = jnp.where(both_filled, step_change, jnp.eye(size, dtype=step_change.dtype))
    change_change = memory.products[size + order[:, None], size + order[None, :]]
    products = products_with(memory, vector)
    # Slots that are not filled may still hold pairs that were dropped.
    with_steps = jnp.where(filled, products[order], 0)
    with_changes = jnp.where(filled, products[size + order], 0)
    # A pair is applied to what the newer pairs left: the two loops are two triangular solves.
    older = jnp.tril(step_change)
    alphas = solve_triangular(older, with_steps, lower=True)
    at_oldest = with_changes - jnp.sum(change_change * alphas[None, :], axis=1)
    right = jnp.where(filled, jnp.diagonal(step_change) * alphas - gamma * at_oldest, 0)
    deltas = solve_triangular(older, right, lower=True, trans=1)

    def to_newer(carry, coefficients):
        vector, slot = carry
        for history, coefficient in zip(
            (memory.steps, memory.gradient_changes), coefficients, strict=True
        ):
            vector = _add_scaled(vector, coefficient, slot_of(history, slot))
        return (vector, slot_after(memory, slot)), None

    start = (trees.scale(gamma, vector), order[-1])
    return control_flow.scan(to_newer, start, (deltas, -gamma * alphas), reverse=True)[0]


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

        size = num_slots(memory)
        return combine(steps, coefficients[:size]) + combine(changes, coefficients[size:])

    return jax.tree.map(leaf, memory.steps, memory.gradient_changes, vector)


def _slots(leaf, memory_size, dtype):
    dtype = trees.widened(leaf.dtype) if dtype is None else dtype
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        dtype = trees.widest(dtype, jnp.complex64)
    # From the leaf itself, so that every slot is sharded as the leaf is.
    zeros = jnp.zeros_like(leaf, dtype=dtype)
    return jnp.broadcast_to(zeros[None], (memory_size, *zeros.shape))
