"""Training goes on after one step at which the loss is finite and far out of scale."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr

OPTIMIZERS = {
    "multibatch_lbfgs": partial(optax_igr.multibatch_lbfgs, 0.1),
    "sqn": partial(optax_igr.sqn, 0.1, pair_interval=2),
}
FUNCTIONS = ("value_fn", "full_value_fn", "curvature_value_fn", "overlap_value_fn")
SPIKES = (1e2, 1e5, 1e8, 1e12, 1e15)


def training(optimizer, dtype, num_steps):
    """Returns `(spike, spiked_step) -> losses` of a regression whose loss is multiplied at one step."""
    rng = np.random.default_rng(4)
    inputs = jnp.asarray(rng.normal(size=(64, 8)) * np.geomspace(1, 3, 8), jnp.float32)
    targets = jnp.sum(inputs * jnp.linspace(-1, 1, 8, dtype=jnp.float32)[None], axis=1)

    def loss_fn(w):
        outputs = jnp.sum(inputs * w.astype(jnp.float32)[None], axis=1)
        return jnp.mean((outputs - targets) ** 2) / 2

    def step(carry, factor):
        w, state = carry

        def value_fn(w):
            return factor * loss_fn(w)

        functions = dict.fromkeys(FUNCTIONS, value_fn)
        updates, state = optimizer.update(jax.grad(value_fn)(w), state, w, **functions)
        w = optax.apply_updates(w, updates)
        return (w, state), loss_fn(w)

    assert loss_fn(jnp.zeros([8])) > 1

    @jax.jit
    def run(spike, spiked_step):
        w = jnp.zeros([8], dtype)
        factors = jnp.where(jnp.arange(num_steps) == spiked_step, spike, 1)
        return jax.lax.scan(step, (w, optimizer.init(w)), factors.astype(jnp.float32))[1]

    return run


def assert_recovers(optimizer, spiked_steps, num_steps=300):
    for dtype, level in ((jnp.float32, 1e-10), (jnp.bfloat16, 2e-2)):
        run = training(optimizer, dtype, num_steps)
        for spike in SPIKES:
            for spiked_step in spiked_steps:
                losses = run(spike, spiked_step)
                assert losses[-1] < level, (dtype, spike, spiked_step)


@pytest.mark.parametrize("powell_damping", [None, 0.2])
@pytest.mark.parametrize("memory_size", [1, 10])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_a_clipped_gradient(name, memory_size, powell_damping):
    """At the step of the first pair, at that of a later one, and between two pairs of SQN."""
    optimizer = OPTIMIZERS[name](memory_size=memory_size, powell_damping=powell_damping)
    assert_recovers(optax.chain(optax.clip_by_global_norm(1.0), optimizer), (1, 3, 5, 8))


def test_without_clipping_the_way_back_is_that_of_the_learning_rate():
    """The parameters are thrown away by a factor of the spike, the memory is not."""
    assert_recovers(OPTIMIZERS["multibatch_lbfgs"](), (5,), num_steps=600)
    assert_recovers(optax_igr.slbfgs(0.1, anchor_interval=3, pair_interval=2), (4,), num_steps=600)


def test_newton_steps_do_not_see_the_scale_of_the_loss():
    assert_recovers(optax_igr.newton_cg(1.0), (5,), num_steps=30)
