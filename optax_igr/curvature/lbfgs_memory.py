r"""The memory of L-BFGS: pairs in a ring buffer, and the matrices that they define.

A pair is a step :math:`s` and the change :math:`y` of a gradient along it. From the last M pairs and
:math:`H_0 = \gamma I` with :math:`\gamma = s^\top y / y^\top y` of the newest one,

.. math::
  H \leftarrow (I - \rho s y^\top) H (I - \rho y s^\top) + \rho s s^\top, \qquad \rho = 1 / y^\top s,

oldest pair first, stands for the inverse of the Hessian. Where the pairs come from is for others to know: the memory
takes them (`push`), and multiplies by H (`apply`) and by its inverse B (`apply_inverse`).

A pair is accepted if both it and its products are finite and

.. math:: s^\top y > \cos_{min} \|s\| \|y\|,

which no scaling of the loss or of the parameters changes; then H is positive definite, and :math:`-Hg` descends.
A rejected pair is counted and leaves everything else as it was, bit for bit.

Beside the pairs the memory keeps their inner products, so that `apply` has two forms: the two-loop recursion, 2M
inner products one after the other, and the Gram form, whose 2M inner products are independent (on a mesh: one
reduction instead of 2M) and which solves two triangular systems of size M. For P parameters both read the memory twice,
4MP numbers; a `push` reads it once. The memory itself is 2MP numbers.

References:
  Nocedal, `Updating Quasi-Newton Matrices with Limited Storage <https://doi.org/10.2307/2006193>`_, 1980
  Byrd, Nocedal, Schnabel, `Representations of quasi-Newton matrices and their use in limited memory methods
  <https://doi.org/10.1007/BF01582063>`_, 1994
  Chen, Wang, Zhou, `Large-scale L-BFGS using MapReduce
  <https://papers.nips.cc/paper/2014/hash/e49b8b4053df9505e1f48c3a701c0682-Abstract.html>`_, 2014
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from optax_igr._core import hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar

FORMS = ("two_loop", "gram")


class LBFGSMemory(NamedTuple):
    """The last pairs and their inner products.

    Attributes:
      steps: s, a tree like the parameters with a leading axis of M slots.
      gradient_changes: y, likewise.
      products: the inner products of [S; Y] among themselves, [2M, 2M].
      pair_count: how many pairs were accepted; the next one goes to this slot, modulo M.
      rejected_count: how many were rejected.
    """

    steps: chex.ArrayTree
    gradient_changes: chex.ArrayTree
    products: jax.Array
    pair_count: jax.Array
    rejected_count: jax.Array


class MemoryOptions(NamedTuple):
    """How pairs are kept, judged and used, wherever they come from."""

    memory_size: int = 10
    min_cosine: Scalar = 1e-4
    powell_damping: Scalar | None = None
    history_dtype: Any = None
    form: str = "two_loop"

    def check(self, transform: str) -> None:
        """Raises a `ValueError` that names the option and what was expected."""
        check_number = hyperparameters.check_scalar
        hyperparameters.check_positive_integer(transform, "memory_size", self.memory_size)
        check_number(transform, "min_cosine", self.min_cosine, at_least=0, below=1)
        if self.powell_damping is not None:
            check_number(transform, "powell_damping", self.powell_damping, above=0, below=1)
        hyperparameters.check_choice(transform, "form", self.form, FORMS)
        if self.history_dtype is not None and not jnp.issubdtype(self.history_dtype, jnp.floating):
            raise ValueError(
                f"{transform}: `history_dtype` must be a real floating dtype or None, "
                f"got {self.history_dtype!r}."
            )


def init(params: chex.ArrayTree, memory_size: int, history_dtype: Any = None) -> LBFGSMemory:
    """Makes an empty memory, whose histories are sharded like the parameters.

    Args:
      params: floating or complex leaves; only their shapes, dtypes and shardings matter.
      memory_size: M, the number of slots.
      history_dtype: of the pairs; None means float32, or float64 where the parameter is.
    """

    def history():
        return jax.tree.map(lambda p: _slots(p, memory_size, history_dtype), params)

    widest = [jnp.finfo(trees.widened(p.dtype)).dtype for p in jax.tree.leaves(params)]
    size = 2 * memory_size
    return LBFGSMemory(
        steps=history(),
        gradient_changes=history(),
        products=jnp.zeros([size, size], jnp.result_type(jnp.float32, *widest)),
        pair_count=jnp.zeros([], jnp.int32),
        rejected_count=jnp.zeros([], jnp.int32),
    )


def push(
    memory: LBFGSMemory,
    step: chex.ArrayTree,
    gradient_change: chex.ArrayTree,
    *,
    min_cosine: Scalar = 1e-4,
    powell_damping: Scalar | None = None,
) -> LBFGSMemory:
    r"""Puts a pair in the place of the oldest one, if it passes the guard.

    Args:
      memory: the memory so far.
      step: s, a tree like the parameters.
      gradient_change: y, likewise.
      min_cosine: the least cosine of the angle between s and y.
      powell_damping: c, see :func:`damped_gradient_change`; None damps nothing. The first pair, which meets no B
        yet, is never damped.

    Returns:
      The memory with the pair, or the same memory with one more rejection.
    """
    return push_if(
        True,
        memory,
        lambda: (step, gradient_change),
        min_cosine=min_cosine,
        powell_damping=powell_damping,
    )


def push_if(
    condition: bool | jax.Array,
    memory: LBFGSMemory,
    make_pair: Callable[[], tuple[chex.ArrayTree, chex.ArrayTree]],
    *,
    min_cosine: Scalar = 1e-4,
    powell_damping: Scalar | None = None,
) -> LBFGSMemory:
    """Makes a pair and pushes it where the condition holds, under `jax.lax.cond`; see :func:`push`."""

    def offered():
        return _entry(memory, *make_pair(), min_cosine, powell_damping)

    def none():
        counts = jnp.zeros([], bool), jnp.zeros([], bool)
        return (*_oldest(memory), memory.products, *counts)

    # What leaves the branch is what a pair changes, not the histories: those would be copied, in either branch.
    step, change, products, accepted, rejected = jax.lax.cond(condition, offered, none)
    slot = memory.pair_count % _size(memory)
    return LBFGSMemory(
        steps=_set(memory.steps, step, slot),
        gradient_changes=_set(memory.gradient_changes, change, slot),
        products=products,
        pair_count=memory.pair_count + accepted.astype(jnp.int32),
        rejected_count=memory.rejected_count + rejected.astype(jnp.int32),
    )


def apply(memory: LBFGSMemory, vector: chex.ArrayTree, form: str = "two_loop") -> chex.ArrayTree:
    """Returns the product of H and a vector, in float32 or wider; the vector itself from an empty memory.

    Args:
      memory: the pairs.
      vector: a tree like the parameters.
      form: `two_loop` or `gram`.
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
    order, filled = _newest_first(memory)
    size, sigma = _size(memory), 1 / _initial_scale(memory)
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
    right = factors * _products_with(memory, vector)[both]
    solved = unit * jnp.linalg.solve(unit[:, None] * middle * unit[None, :], unit * right)
    coefficients = jnp.zeros_like(solved).at[both].set(-factors * solved)
    return trees.add(trees.scale(sigma, vector), _combine(memory, coefficients, vector))


def damped_gradient_change(
    step: chex.ArrayTree,
    gradient_change: chex.ArrayTree,
    curved_step: chex.ArrayTree,
    powell_damping: Scalar,
) -> chex.ArrayTree:
    r"""Returns Powell's :math:`r = \theta y + (1 - \theta) Bs`, with :math:`s^\top r \ge c\,s^\top B s`.

    .. math::
      \theta = 1 \text{ if } s^\top y \ge c\,s^\top B s, \qquad
      \theta = \frac{(1-c)\,s^\top B s}{s^\top B s - s^\top y} \text{ otherwise}

    Args:
      step: s.
      gradient_change: y.
      curved_step: Bs.
      powell_damping: c in (0, 1); 0.2 is usual.

    References:
      Powell, `Algorithms for nonlinear constraints that use Lagrangian functions
      <https://doi.org/10.1007/BF01588967>`_, 1978
    """
    found = trees.inner_product(step, gradient_change)
    modelled = trees.inner_product(step, curved_step)
    is_enough = found >= powell_damping * modelled
    gap = jnp.where(is_enough, 1, jnp.subtract(modelled, found))
    theta = jnp.where(is_enough, 1, (1 - powell_damping) * modelled / gap)
    return trees.add(
        trees.scale(theta, trees.widen(gradient_change)),
        trees.scale(1 - theta, trees.widen(curved_step)),
    )


def _two_loop(memory, vector):
    order, filled = _newest_first(memory)
    curvatures = jnp.diagonal(memory.products, _size(memory))
    inverse_curvatures = jnp.where(filled, 1 / jnp.where(filled, curvatures[order], 1), 0)

    def to_older(vector, pair):
        slot, inverse_curvature = pair
        alpha = inverse_curvature * trees.inner_product(_pair(memory.steps, slot), vector)
        return _add_scaled(vector, -alpha, _pair(memory.gradient_changes, slot)), alpha

    def to_newer(vector, pair):
        slot, inverse_curvature, alpha = pair
        change = _pair(memory.gradient_changes, slot)
        beta = inverse_curvature * trees.inner_product(change, vector)
        return _add_scaled(vector, alpha - beta, _pair(memory.steps, slot)), None

    vector, alphas = jax.lax.scan(to_older, vector, (order, inverse_curvatures))
    vector = trees.scale(_initial_scale(memory), vector)
    pairs = (order, inverse_curvatures, alphas)
    return jax.lax.scan(to_newer, vector, pairs, reverse=True)[0]


def _gram(memory, vector):
    order, filled = _newest_first(memory)
    size, gamma = _size(memory), _initial_scale(memory)
    both_filled = filled[:, None] & filled[None, :]
    step_change = memory.products[order[:, None], size + order[None, :]]
    step_change = jnp.where(both_filled, step_change, jnp.eye(size, dtype=step_change.dtype))
    change_change = memory.products[size + order[:, None], size + order[None, :]]
    products = _products_with(memory, vector)
    # Newest first, a pair meets what the newer ones left: the two loops are two triangular solves.
    older = jnp.tril(step_change)
    alphas = solve_triangular(older, products[order], lower=True)
    at_oldest = products[size + order] - jnp.sum(change_change * alphas[None, :], axis=1)
    right = jnp.diagonal(step_change) * alphas - gamma * at_oldest
    deltas = solve_triangular(older, right, lower=True, trans=1)
    coefficients = jnp.zeros_like(products)
    coefficients = coefficients.at[order].set(deltas).at[size + order].set(-gamma * alphas)
    return trees.add(trees.scale(gamma, vector), _combine(memory, coefficients, vector))


def _entry(memory, step, gradient_change, min_cosine, powell_damping):
    """Returns what the oldest slot and the products become, and whether the pair is accepted or rejected."""
    if powell_damping is not None:
        curved = apply_inverse(memory, step)
        damped = damped_gradient_change(step, gradient_change, curved, powell_damping)
        gradient_change = _where(memory.pair_count > 0, damped, trees.widen(gradient_change))
    # What is judged, and what the products are made of, is the pair as it is stored.
    step = _cast_to_history(step, memory.steps)
    gradient_change = _cast_to_history(gradient_change, memory.gradient_changes)
    squared_step, curvature, squared_change = (
        trees.inner_product(*pair).astype(memory.products.dtype)
        for pair in ((step, step), (step, gradient_change), (gradient_change, gradient_change))
    )
    accepted = _is_acceptable(squared_step, curvature, squared_change, min_cosine)

    slot = memory.pair_count % _size(memory)
    other = _size(memory) + slot
    products = memory.products
    for index, vector, with_step, with_change in (
        (slot, step, squared_step, curvature),
        (other, gradient_change, curvature, squared_change),
    ):
        row = _products_with(memory, vector).at[slot].set(with_step).at[other].set(with_change)
        products = products.at[index, :].set(row).at[:, index].set(row)
    old_step, old_change = _oldest(memory)
    return (
        _where(accepted, step, old_step),
        _where(accepted, gradient_change, old_change),
        jnp.where(accepted, products, memory.products),
        accepted,
        ~accepted,
    )


def _is_acceptable(squared_step, curvature, squared_change, min_cosine):
    safe = jnp.where(curvature > 0, curvature, 1)
    numbers = jnp.stack([squared_step, curvature, squared_change, 1 / safe, squared_change / safe])
    is_positive = curvature > min_cosine * jnp.sqrt(squared_step) * jnp.sqrt(squared_change)
    return is_positive & jnp.all(jnp.isfinite(numbers)) & (squared_change > 0)


def _oldest(memory):
    slot = memory.pair_count % _size(memory)
    return _pair(memory.steps, slot), _pair(memory.gradient_changes, slot)


def _initial_scale(memory):
    newest = _size(memory) + (memory.pair_count - 1) % _size(memory)
    curvature = memory.products[newest - _size(memory), newest]
    squared = memory.products[newest, newest]
    is_empty = memory.pair_count == 0
    return jnp.where(is_empty, 1, curvature / jnp.where(is_empty, 1, squared))


def _newest_first(memory):
    ages = jnp.arange(_size(memory))
    return (memory.pair_count - 1 - ages) % _size(memory), ages < memory.pair_count


def _size(memory):
    return memory.products.shape[0] // 2


def _slots(leaf, memory_size, dtype):
    dtype = trees.widened(leaf.dtype) if dtype is None else dtype
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        dtype = jnp.promote_types(dtype, jnp.complex64)
    # From the leaf itself, so that every slot is sharded as the leaf is.
    zeros = jnp.zeros_like(leaf, dtype=dtype)
    return jnp.broadcast_to(zeros[None], (memory_size, *zeros.shape))


def _cast_to_history(tree, history):
    return jax.tree.map(lambda x, h: x.astype(h.dtype), tree, history)


def _pair(history, slot):
    return jax.tree.map(
        lambda h: jax.lax.dynamic_index_in_dim(h, slot, axis=0, keepdims=False), history
    )


def _set(history, tree, slot):
    return jax.tree.map(
        lambda h, x: jax.lax.dynamic_update_index_in_dim(h, x, slot, axis=0), history, tree
    )


def _where(condition, x, y):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)


def _add_scaled(vector, factor, history):
    def leaf(v, h):
        return v + factor.astype(jnp.finfo(v.dtype).dtype) * h.astype(v.dtype)

    return jax.tree.map(leaf, vector, history)


def _products_with(memory, vector):
    """Returns the inner products of [S; Y] with a vector, [2M]."""

    def leaf(history, v):
        dtype = jnp.promote_types(trees.widened(history.dtype), trees.widened(v.dtype))
        entries = jnp.real(history.astype(dtype).conj() * v.astype(dtype)[None])
        return jnp.sum(entries, axis=range(1, entries.ndim)).astype(memory.products.dtype)

    def with_history(history):
        zeros = jnp.zeros([_size(memory)], memory.products.dtype)
        return sum(jax.tree.leaves(jax.tree.map(leaf, history, vector)), zeros)

    return jnp.concatenate([with_history(memory.steps), with_history(memory.gradient_changes)])


def _combine(memory, coefficients, vector):
    r"""Returns :math:`\sum_i c_i s_i + \sum_i c_{M+i} y_i` in the dtypes of `vector`."""

    def leaf(steps, changes, v):
        def combine(history, c):
            c = jnp.expand_dims(c.astype(jnp.finfo(v.dtype).dtype), range(1, history.ndim))
            # A contraction by `dot` would round to bfloat16 or TF32 on accelerators.
            return jnp.sum(c * history.astype(v.dtype), axis=0)

        size = _size(memory)
        return combine(steps, coefficients[:size]) + combine(changes, coefficients[size:])

    return jax.tree.map(leaf, memory.steps, memory.gradient_changes, vector)
