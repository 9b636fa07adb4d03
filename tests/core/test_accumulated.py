"""Inside `optax.MultiSteps`, the micro-batches of a batch are the batch, also for what reads `grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr

BARE = {"ema": 0.0, "decay": 0.0, "first_step": None, "warmup_steps": None}
OPTIMIZERS = {
    "extrapolated_gradient_penalty": lambda: optax_igr.extrapolated_gradient_penalty(
        optax.sgd(0.1), 0.02
    ),
    "adapt_scale": lambda: optax_igr.adapt_scale(
        optax.sgd(0.1), 0.1, **BARE, max_relative_update=None
    ),
    "egdd": lambda: optax_igr.egdd(0.1, gain_rate=0.1, scale_rate=0.1),
    # Behind another transform, where the incoming updates are not the gradient.
    "scale_by_gain": lambda: optax.chain(
        optax.add_decayed_weights(1.0), optax_igr.scale_by_gain(0.1), optax.sgd(0.1)
    ),
    "monitor_drift": lambda: optax.chain(
        optax.scale(3.0), optax_igr.diagnostics.monitor_drift(), optax.sgd(0.1)
    ),
}
SAMPLES = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)))


def loss_fn(w, samples):
    return jnp.mean(jnp.cosh(samples @ w - 1))


def train(optimizer, batches):
    """The loop of the README, which hands over value and gradient of each batch."""
    w = jnp.array([0.3, -0.2, 0.5])
    state = optimizer.init(w)

    @jax.jit
    def step(w, state, samples):
        def value_fn(w):
            return loss_fn(w, samples)

        value, grad = jax.value_and_grad(value_fn)(w)
        updates, state = optimizer.update(grad, state, w, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(w, updates), state

    for _ in range(3):
        for samples in batches:
            w, state = step(w, state, samples)
    return w, state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_micro_batches_are_the_batch(name):
    expected, whole_state = train(OPTIMIZERS[name](), [SAMPLES])
    parts = [SAMPLES[:2], SAMPLES[2:4], SAMPLES[4:6], SAMPLES[6:]]
    accumulating = optax.MultiSteps(
        optax_igr.accumulated(OPTIMIZERS[name]()), 4, accumulator_dtype=jnp.float64
    )
    found, state = train(accumulating, parts)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-12),
        state.inner_opt_state,
        whole_state,
    )


def test_hands_on_everything_but_the_value_of_one_micro_batch():
    received = {}

    def update(updates, state, params=None, **extra_args):
        received.update(extra_args)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    optimizer = optax_igr.accumulated(inner)
    given = {"value": 1.0, "grad": jnp.array(7.0), "value_fn": abs, "key": "anything"}
    updates, _ = optimizer.update(jnp.array(2.0), optimizer.init(0.0), 0.0, **given)
    assert updates == received["grad"] == 2.0
    assert received.keys() == {"grad", "value_fn", "key"}


def test_what_is_no_optimizer_is_named():
    with pytest.raises(ValueError, match=r"accumulated: `optimizer` must be .*MultiSteps"):
        optax_igr.accumulated(optax.MultiSteps(optax.sgd(0.1), 2))
