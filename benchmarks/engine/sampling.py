"""What chance decides of a run: where it starts, and which examples each of its steps sees.

Both depend on the seed alone, the same for every technique and rate. They are drawn in programs of their own, apart
from the steps: random bits and sorts compile slowly, and once is enough for all techniques of a problem.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from benchmarks.problems.problem import Problem


def keys(seeds: chex.Array) -> chex.PRNGKey:
    """Returns the key of each seed."""
    return jax.vmap(jax.random.key)(seeds)


def initial_params(problem: Problem, keys: chex.PRNGKey) -> chex.ArrayTree:
    """Returns the starts of the runs with these keys."""
    # Cached by the function, since all techniques of a problem begin alike.
    return _compiled_init(problem.init)(keys)


def batches(problem: Problem, keys: chex.PRNGKey, num_steps: int) -> chex.Array | None:
    """Returns the examples that each run sees at each step, each epoch in a new order; None where it sees all."""
    if problem.num_examples is None or problem.batch_size is None:
        return None
    return _draw(keys, problem.num_examples, problem.batch_size, num_steps)


@functools.lru_cache(maxsize=8)
def _compiled_init(init):
    return jax.jit(jax.vmap(lambda key: init(jax.random.fold_in(key, 0))))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(keys, num_examples, batch_size, num_steps):
    steps_per_epoch = max(1, num_examples // batch_size)
    epochs = jnp.arange(1, 1 + -(-num_steps // steps_per_epoch))

    def one_run(key):
        def one_epoch(epoch):
            examples = jnp.arange(num_examples, dtype=jnp.int32)
            order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
            # Whole batches alone; the rest of an epoch changes with its order.
            return order[: steps_per_epoch * batch_size].reshape(steps_per_epoch, batch_size)

        # One epoch after the other: the sorts of all epochs at once would need their memory at once.
        return jax.lax.map(one_epoch, epochs).reshape(-1, batch_size)[:num_steps]

    return jax.vmap(one_run)(keys)
