"""The ring buffer of L-BFGS: the last pairs, which slots they are in, and their inner products."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from optax_igr._core import trees


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


def num_slots(memory: LBFGSMemory) -> int:
    """Returns M."""
    return memory.products.shape[0] // 2


def newest_first(memory: LBFGSMemory) -> tuple[jax.Array, jax.Array]:
    """Returns the slots in the order of age, and whether each holds a pair."""
    ages = jnp.arange(num_slots(memory))
    return (memory.pair_count - 1 - ages) % num_slots(memory), ages < memory.pair_count


def next_slot(memory: LBFGSMemory) -> jax.Array:
    """Returns the slot of the oldest pair, which the next one replaces."""
    return memory.pair_count % num_slots(memory)


def slot_after(memory: LBFGSMemory, slot: jax.Array) -> jax.Array:
    """Returns the slot of the pair after the one in this slot."""
    return (slot + 1) % num_slots(memory)


def oldest_pair(memory: LBFGSMemory) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Returns s and y from the slot of the oldest pair."""
    slot = next_slot(memory)
    return slot_of(memory.steps, slot), slot_of(memory.gradient_changes, slot)


def initial_scale(memory: LBFGSMemory) -> jax.Array:
    r"""Returns :math:`\gamma = s^\top y / y^\top y` of the newest pair, or 1."""
    newest = num_slots(memory) + (memory.pair_count - 1) % num_slots(memory)
    curvature = memory.products[newest - num_slots(memory), newest]
    squared = memory.products[newest, newest]
    is_empty = memory.pair_count == 0
    return jnp.where(is_empty, 1, curvature / jnp.where(is_empty, 1, squared))


def cast_to_history(tree: chex.ArrayTree, history: chex.ArrayTree) -> chex.ArrayTree:
    """Returns the tree in the dtypes of the history."""
    return jax.tree.map(lambda x, h: x.astype(h.dtype), tree, history)


def slot_of(history: chex.ArrayTree, slot: jax.Array) -> chex.ArrayTree:
    """Returns the s or the y of one slot."""
    return jax.tree.map(
        lambda h: jax.lax.dynamic_index_in_dim(h, slot, axis=0, keepdims=False), history
    )


def with_slot(history: chex.ArrayTree, tree: chex.ArrayTree, slot: jax.Array) -> chex.ArrayTree:
    """Returns the history with a tree in one slot."""
    return jax.tree.map(
        lambda h, x: jax.lax.dynamic_update_index_in_dim(h, x, slot, axis=0), history, tree
    )


def products_with(memory: LBFGSMemory, vector: chex.ArrayTree) -> jax.Array:
    """Returns the inner products of [S; Y] with a vector, [2M]."""

    def leaf(history, v):
        dtype = jnp.promote_types(trees.widened(history.dtype), trees.widened(v.dtype))
        entries = jnp.real(history.astype(dtype).conj() * v.astype(dtype)[None])
        return jnp.sum(entries, axis=range(1, entries.ndim)).astype(memory.products.dtype)

    def with_history(history):
        zeros = jnp.zeros([num_slots(memory)], memory.products.dtype)
        return sum(jax.tree.leaves(jax.tree.map(leaf, history, vector)), zeros)

    return jnp.concatenate([with_history(memory.steps), with_history(memory.gradient_changes)])


def _slots(leaf, memory_size, dtype):
    dtype = trees.widened(leaf.dtype) if dtype is None else dtype
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        dtype = jnp.promote_types(dtype, jnp.complex64)
    # From the leaf itself, so that every slot is sharded as the leaf is.
    zeros = jnp.zeros_like(leaf, dtype=dtype)
    return jnp.broadcast_to(zeros[None], (memory_size, *zeros.shape))
