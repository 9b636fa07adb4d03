r"""Which pairs enter the memory of L-BFGS: the guard, Powell's damping, and when the memory is dropped.

A pair is accepted if it is finite, if

.. math:: s^\top y > \cos_{min} \|s\| \|y\|,

and if its size, an average of the curvatures that it has met, is within a factor of :math:`R = 10^6` of that of the
newest pair :math:`(s', y')`:

.. math:: \frac{1}{R} \le \frac{\|y\|}{\|s\|} \Big/ \frac{\|y'\|}{\|s'\|} \le R .

The first condition keeps H positive definite, so that :math:`-Hg` descends. No scaling of the loss or of the parameters
changes it. The second one rejects the pair of a step at which the loss was far out of scale.

A rejected pair is counted and changes no pair. After ten rejections in a row the pairs are dropped, because they may be
what causes the rejections: if H is far too small, the parameters do not move, every step is zero, and every pair is
rejected. Then :math:`H = \min(\gamma, 1) I`, and each further rejection multiplies it by 10, up to I, until a pair is
accepted.

A push reads the memory once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from optax_igr._core import control_flow, hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.curvature import _lbfgs_memory
from optax_igr.curvature._lbfgs_memory import FORMS, Form, LBFGSMemory

# A float32 computation resolves condition numbers up to about 1e7; a larger jump is not curvature.
MAX_SIZE_RATIO = 1e6
MAX_REJECTIONS_IN_A_ROW = 10
# A converged run rejects pairs too, as its steps are zero. There a jump of H to I would throw the parameters away.
REGROWTH = 10.0


class MemoryOptions(NamedTuple):
    """How pairs are kept, judged and used, wherever they come from."""

    memory_size: int = 10
    min_cosine: Scalar = 1e-4
    powell_damping: Scalar | None = None
    history_dtype: Any = None
    form: Form = "two_loop"

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
      powell_damping: c, see :func:`damped_gradient_change`; None damps nothing. A pair that meets an empty memory, and
        so no B, is never damped.

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
    slot: jax.Array | None = None,
) -> LBFGSMemory:
    """Makes a pair and pushes it where the condition holds, under `jax.lax.cond`; see :func:`push`.

    Args:
      condition: whether a pair is due.
      memory: the memory so far.
      make_pair: returns s and y.
      min_cosine: as in :func:`push`.
      powell_damping: as in :func:`push`.
      slot: that of `_lbfgs_memory.apply_and_next_slot`, where the memory is multiplied by before the pair is pushed.
        The histories are then written in place, after they have been read.
    """

    def offered():
        return _entry(memory, *make_pair(), min_cosine, powell_damping)

    def none():
        flags = jnp.zeros([], bool), jnp.zeros([], bool)
        return (*_lbfgs_memory.oldest_pair(memory), memory.products, *flags)

    # What leaves the branch is what a pair changes, not the histories: those would be copied, in either branch.
    step, change, products, accepted, rejected = control_flow.cond(condition, offered, none)
    slot = _lbfgs_memory.next_slot(memory) if slot is None else slot
    return LBFGSMemory(
        steps=_with_slot(memory.steps, step, slot),
        gradient_changes=_with_slot(memory.gradient_changes, change, slot),
        products=products,
        **_counted(memory, accepted, rejected),
    )


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


def _entry(memory, step, gradient_change, min_cosine, powell_damping):
    """Returns what the oldest slot and the products become, and whether the pair is accepted or rejected."""
    is_empty = memory.held_count == 0
    if powell_damping is not None:
        curved = _lbfgs_memory.apply_inverse(memory, step)
        damped = damped_gradient_change(step, gradient_change, curved, powell_damping)
        gradient_change = _where(is_empty, trees.widen(gradient_change), damped)
    # What is judged, and what the products are made of, is the pair as it is stored.
    step = _cast_to_history(step, memory.steps)
    gradient_change = _cast_to_history(gradient_change, memory.gradient_changes)
    squared_step, curvature, squared_change = (
        trees.inner_product(*pair).astype(memory.products.dtype)
        for pair in ((step, step), (step, gradient_change), (gradient_change, gradient_change))
    )
    accepted = _is_acceptable(squared_step, curvature, squared_change, min_cosine)
    accepted &= is_empty | _is_in_scale(memory, squared_step, squared_change)

    slot = _lbfgs_memory.next_slot(memory)
    other = _lbfgs_memory.num_slots(memory) + slot
    products = memory.products
    for index, vector, with_step, with_change in (
        (slot, step, squared_step, curvature),
        (other, gradient_change, curvature, squared_change),
    ):
        row = _lbfgs_memory.products_with(memory, vector)
        row = row.at[slot].set(with_step).at[other].set(with_change)
        products = products.at[index, :].set(row).at[:, index].set(row)
    old_step, old_change = _lbfgs_memory.oldest_pair(memory)
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


def _is_in_scale(memory, squared_step, squared_change):
    """Says whether |y|/|s| of a pair is within a factor of that of the newest pair."""
    newest = (memory.pair_count - 1) % _lbfgs_memory.num_slots(memory)
    squares = jnp.diagonal(memory.products)
    last_step, last_change = squares[newest], squares[_lbfgs_memory.num_slots(memory) + newest]
    # Roots before products: a fourth power would overflow in float32.
    found = jnp.sqrt(squared_change) * jnp.sqrt(last_step)
    expected = jnp.sqrt(squared_step) * jnp.sqrt(last_change)
    return (found <= MAX_SIZE_RATIO * expected) & (expected <= MAX_SIZE_RATIO * found)


def _counted(memory, accepted, rejected):
    """Returns the counts and the scale of H after a pair was accepted, rejected, or neither."""
    was_empty = memory.held_count == 0
    in_a_row = jnp.where(accepted, 0, memory.rejected_in_a_row + rejected.astype(jnp.int32))
    dropped = ~was_empty & (in_a_row >= MAX_REJECTIONS_IN_A_ROW)
    held = jnp.minimum(
        memory.held_count + accepted.astype(jnp.int32), _lbfgs_memory.num_slots(memory)
    )
    grown = memory.empty_scale * jnp.where(was_empty & rejected, REGROWTH, 1.0)
    empty_scale = jnp.where(
        dropped, _lbfgs_memory.initial_scale(memory), grown.astype(memory.empty_scale.dtype)
    )
    return {
        "pair_count": memory.pair_count + accepted.astype(jnp.int32),
        "held_count": jnp.where(dropped, 0, held),
        "rejected_count": memory.rejected_count + rejected.astype(jnp.int32),
        "rejected_in_a_row": jnp.where(dropped, 0, in_a_row),
        "dropped_count": memory.dropped_count + dropped.astype(jnp.int32),
        # I is where a run starts, so its learning rate suits it.
        "empty_scale": jnp.minimum(empty_scale, 1),
    }


def _with_slot(history, tree, slot):
    return jax.tree.map(
        lambda h, x: jax.lax.dynamic_update_index_in_dim(h, x, slot, axis=0), history, tree
    )


def _cast_to_history(tree, history):
    return jax.tree.map(lambda x, h: x.astype(h.dtype), tree, history)


def _where(condition, x, y):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)
