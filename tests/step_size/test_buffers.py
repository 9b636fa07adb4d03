"""No step copies a tree: XLA writes the donated state in place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from optax_igr.step_size import buffers

OPTIMIZERS = {
    "gain": optax.chain(optax_igr.scale_by_gain(1e-3), optax.sgd(1e-3)),
    "gain normalized": optax.chain(
        optax_igr.scale_by_gain(1e-3, signal="normalized", ema=0.9), optax.sgd(1e-3)
    ),
    "egdd": optax_igr.egdd(1e-3),
    "scale of adam": optax_igr.adapt_scale(optax.adam(1e-3), 0.01, max_relative_update=0.1),
    "scale by leaf": optax_igr.adapt_scale(optax.adam(1e-3), 0.01, granularity="leaf"),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_donated_step_needs_no_copy_of_the_tree(optimizer):
    params = {"w": jnp.ones([500, 500], jnp.float32), "v": jnp.ones([300, 500], jnp.float32)}
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    memory = step.lower(params, state, params).compile().memory_analysis()
    smallest_leaf = 4 * 300 * 500
    assert memory.temp_size_in_bytes < smallest_leaf / 10


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("other", [0.0, np.nan, np.inf], ids=["zero", "nan", "infinity"])
def test_what_is_waited_for_changes_no_value_and_no_derivative(dtype, other):
    x = jnp.asarray([0.0, -1.5, 3e38, 1e-30], dtype)
    computed = jnp.full(4, other, jnp.float32)
    never = buffers.never(jnp.zeros([], jnp.int32))

    def waiting(x):
        return buffers.after(buffers.written_once(x, never, computed), never, computed)

    np.testing.assert_array_equal(waiting(x), x)
    _, tangent = jax.jvp(waiting, (x,), (jnp.ones_like(x),))
    np.testing.assert_array_equal(tangent, jnp.ones_like(x))
