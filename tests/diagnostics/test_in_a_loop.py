"""Every diagnostic inside a compiled training loop says what it says after it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_igr
from optax_igr import diagnostics

INPUTS = jax.random.normal(jax.random.key(0), (12, 3))
LABELS = (INPUTS[:, 0] > 0).astype(int)


def apply_fn(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def value_fn(params):
    logits = apply_fn(params, INPUTS)
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def accuracy(params):
    return jnp.mean(jnp.argmax(apply_fn(params, INPUTS), axis=-1) == LABELS)


def report(params):
    noisy = diagnostics.parameter_robustness(accuracy, params, jax.random.key(1), [0.3], draws=3)
    bounds = diagnostics.lipschitz_bounds(apply_fn, params, INPUTS[:4], num_steps=3)
    attacked = diagnostics.input_robustness(apply_fn, params, INPUTS, LABELS, [0.2], num_steps=3)
    return {
        "loss": diagnostics.implicit_regularization(value_fn, params, 0.1).modified_loss,
        "sharpness": diagnostics.sharpness(value_fn, params, num_steps=4).eigenvalue,
        "lower": bounds.lower,
        "upper": bounds.upper,
        "noise": noisy.mean[0],
        "attack": attacked.pgd_accuracy[0],
        "norm": diagnostics.spectral_norm(params["in"]),
    }


def test_they_run_at_some_steps_of_a_scan_beside_what_the_transforms_measure():
    keys = jax.random.split(jax.random.key(2))
    params = {"in": jax.random.normal(keys[0], (3, 4)), "out": jax.random.normal(keys[1], (4, 2))}
    optimizer = optax.chain(
        diagnostics.monitor_drift(),
        optax_igr.add_spectral_decay(1e-2, power_steps=20),
        optax_igr.add_schatten_decay(1e-3, gram_steps=3),
        optax.sgd(0.1),
    )
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(report, params))

    def step(carry, count):
        params, state = carry
        updates, state = optimizer.update(jax.grad(value_fn)(params), state, params)
        measured = jax.lax.cond(count % 2 == 1, report, lambda _: empty, params)
        names = ("relative_drift", "spectral_norms", "schatten_norms")
        told = {name: optax.tree.get(state, name) for name in names}
        return (optax.apply_updates(params, updates), state), (params, measured, told)

    _, (visited, measured, told) = jax.jit(
        lambda params: jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(4))
    )(params)
    last = jax.tree.map(lambda x: x[3], visited)
    after = jax.jit(report)(last)
    for name, found in measured.items():
        np.testing.assert_allclose(found[3], after[name], rtol=1e-5, err_msg=name)
        assert found[2] == 0
    assert told["relative_drift"][1] > 0
    for name in ("in", "out"):
        norm = np.linalg.norm(np.float64(last[name]), 2)
        np.testing.assert_allclose(told["spectral_norms"][name][3], norm, rtol=1e-3)
        assert told["schatten_norms"][name][3] >= norm * (1 - 1e-6)
