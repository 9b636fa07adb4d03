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

from optax_igr._core import hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.curvature import pair_ring
from optax_igr.curvature.bfgs_products import FORMS as FORMS
from optax_igr.curvature.bfgs_products import apply as apply
from optax_igr.curvature.bfgs_products import apply_and_next_slot as apply_and_next_slot
from optax_igr.curvature.bfgs_products import apply_inverse as apply_inverse
from optax_igr.curvature.pair_ring import LBFGSMemory as LBFGSMemory
from optax_igr.curvature.pair_ring import init as init


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
    slot: jax.Array | None = None,
) -> LBFGSMemory:
    """Makes a pair and pushes it where the condition holds, under `jax.lax.cond`; see :func:`push`.

    Args:
      condition: whether a pair is due.
      memory: the memory so far.
      make_pair: returns s and y.
      min_cosine: as in :func:`push`.
      powell_damping: as in :func:`push`.
      slot: that of :func:`apply_and_next_slot`, where the memory is multiplied by before the pair is pushed: then the
        histories are written in place after they have been read.
    """

    def offered():
        return _entry(memory, *make_pair(), min_cosine, powell_damping)

    def none():
        counts = jnp.zeros([], bool), jnp.zeros([], bool)
        return (*pair_ring.oldest_pair(memory), memory.products, *counts)

    # What leaves the branch is what a pair changes, not the histories: those would be copied, in either branch.
    step, change, products, accepted, rejected = jax.lax.cond(condition, offered, none)
    slot = pair_ring.next_slot(memory) if slot is None else slot
    return LBFGSMemory(
        steps=pair_ring.with_slot(memory.steps, step, slot),
        gradient_changes=pair_ring.with_slot(memory.gradient_changes, change, slot),
        products=products,
        pair_count=memory.pair_count + accepted.astype(jnp.int32),
        rejected_count=memory.rejected_count + rejected.astype(jnp.int32),
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
    if powell_damping is not None:
        curved = apply_inverse(memory, step)
        damped = damped_gradient_change(step, gradient_change, curved, powell_damping)
        gradient_change = _where(memory.pair_count > 0, damped, trees.widen(gradient_change))
    # What is judged, and what the products are made of, is the pair as it is stored.
    step = pair_ring.cast_to_history(step, memory.steps)
    gradient_change = pair_ring.cast_to_history(gradient_change, memory.gradient_changes)
    squared_step, curvature, squared_change = (
        trees.inner_product(*pair).astype(memory.products.dtype)
        for pair in ((step, step), (step, gradient_change), (gradient_change, gradient_change))
    )
    accepted = _is_acceptable(squared_step, curvature, squared_change, min_cosine)

    slot = pair_ring.next_slot(memory)
    other = pair_ring.num_slots(memory) + slot
    products = memory.products
    for index, vector, with_step, with_change in (
        (slot, step, squared_step, curvature),
        (other, gradient_change, curvature, squared_change),
    ):
        row = pair_ring.products_with(memory, vector)
        row = row.at[slot].set(with_step).at[other].set(with_change)
        products = products.at[index, :].set(row).at[:, index].set(row)
    old_step, old_change = pair_ring.oldest_pair(memory)
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


def _where(condition, x, y):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)
