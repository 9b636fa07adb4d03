"""Variance reduction against its own formula and identities, and its chain with stochastic L-BFGS."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from tests.curvature import dense

NUM_SAMPLES, SIZE, BATCH = 40, 5, 8
LOSS = dense.logistic_regression(NUM_SAMPLES, SIZE)
GRADIENT, HESSIAN = dense.derivatives(LOSS)
ALL = np.arange(NUM_SAMPLES)


def on(indices):
    return lambda p: LOSS(p, indices)


def update(transform, w, state, batch):
    return jax.jit(
        lambda g, s, p, b: transform.update(g, s, p, value_fn=on(b), full_value_fn=on(ALL))
    )(GRADIENT(w, batch), state, w, batch)


def random_batches(num_steps, size=BATCH, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(NUM_SAMPLES, size, replace=False) for _ in range(num_steps)])


def test_the_estimate_is_exact_at_the_anchor_and_unbiased_elsewhere():
    transform = optax_igr.svrg(anchor_interval=10)
    anchor, w = jnp.linspace(-1, 1, SIZE), jnp.linspace(0.5, 0.2, SIZE)
    partition = ALL.reshape(-1, BATCH)
    at_anchor, state = update(transform, anchor, transform.init(anchor), partition[0])
    np.testing.assert_allclose(at_anchor, GRADIENT(anchor, ALL), rtol=0, atol=1e-16)

    estimates = np.stack([update(transform, w, state, batch)[0] for batch in partition])
    full = np.asarray(GRADIENT(w, ALL))
    np.testing.assert_allclose(estimates.mean(axis=0), full, rtol=0, atol=2e-16)
    plain = np.stack([GRADIENT(w, batch) for batch in partition])
    assert estimates.std() > 1e-3, "an estimate without any noise would be the full gradient"
    assert np.abs(plain - full).max() > 1e-2


def reference(w, batches, interval, rate, direction=lambda k, w, v: v):
    iterates = [w]
    for k, batch in enumerate(batches, 1):
        if (k - 1) % interval == 0:
            anchor, full = w, np.asarray(GRADIENT(w, ALL))
        v = np.asarray(GRADIENT(w, batch)) - np.asarray(GRADIENT(anchor, batch)) + full
        w = w - rate * direction(k, w, v)
        iterates.append(w)
    return np.stack(iterates)


def run(optimizer, w, batches, curvature_batches=None):
    curvature_batches = batches if curvature_batches is None else curvature_batches

    def step(carry, batch):
        w, state = carry
        updates, state = optimizer.update(
            jax.grad(LOSS)(w, batch[0]),
            state,
            w,
            value_fn=on(batch[0]),
            full_value_fn=on(ALL),
            curvature_value_fn=on(batch[1]),
        )
        w = w + updates
        return (w, state), w

    @jax.jit
    def scanned(w):
        return jax.lax.scan(step, (w, optimizer.init(w)), (batches, curvature_batches))

    return np.concatenate([w[None], scanned(w)[1]])


def test_every_step_is_that_of_the_paper():
    start, batches = np.linspace(-1, 1, SIZE), random_batches(11)
    found = run(optax.chain(optax_igr.svrg(anchor_interval=4), optax.sgd(0.5)), start, batches)
    np.testing.assert_allclose(found, reference(start, batches, 4, 0.5), rtol=0, atol=1e-14)


def test_every_step_with_curvature_is_that_of_the_paper():
    start, batches = np.linspace(-1, 1, SIZE), random_batches(20)
    curvature_batches = random_batches(20, size=20, seed=1)
    interval, means, pairs, block = 2, [], [], []

    def direction(k, w, v):
        preconditioned = dense.inverse_hessian(pairs) @ v if pairs else v
        block.append(w)
        if k % interval == 0:
            means.append(np.mean(block, axis=0))
            block.clear()
            if len(means) > 1:
                s = means[-1] - means[-2]
                y = np.asarray(HESSIAN(means[-1], curvature_batches[k - 1])) @ s
                pairs[:] = [*pairs, (s, y)][-3:]
        return preconditioned

    expected = reference(start, batches, 5, 0.2, direction)
    optimizer = optax_igr.slbfgs(0.2, anchor_interval=5, memory_size=3, pair_interval=interval)
    found = run(optimizer, start, batches, curvature_batches)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_constant_rate_converges_to_the_last_digits():
    start, batches = np.zeros(SIZE), random_batches(1500)
    optimizer = optax_igr.slbfgs(0.1, anchor_interval=15, pair_interval=5)
    final = run(optimizer, start, batches, random_batches(1500, size=20, seed=1))[-1]
    plain = run(optax.with_extra_args_support(optax.sgd(0.1)), start, batches)[-1]
    assert np.linalg.norm(GRADIENT(final, ALL)) < 1e-13
    assert np.linalg.norm(GRADIENT(plain, ALL)) > 1e-3


def test_the_full_loss_is_evaluated_only_when_the_anchor_moves():
    transform = optax_igr.svrg(anchor_interval=3)
    evaluated, steps = [], []

    def full_value_fn(w):
        jax.debug.callback(lambda: evaluated.append(len(steps)))
        return LOSS(w, ALL)

    batch = ALL[:BATCH]
    jitted = jax.jit(
        lambda g, s, p: transform.update(g, s, p, value_fn=on(batch), full_value_fn=full_value_fn)
    )
    w = jnp.zeros(SIZE)
    state = transform.init(w)
    for step in range(1, 8):
        steps.append(step)
        updates, state = jitted(GRADIENT(w, batch), state, w)
        jax.effects_barrier()
        w = w - 0.1 * updates
    assert set(evaluated) == {1, 4, 7}


def test_without_an_interval_the_loop_decides_when_the_anchor_moves():
    transform = optax_igr.svrg(anchor_interval=None)
    batches = random_batches(4)
    w = jnp.linspace(-1, 1, SIZE)
    state, anchor = transform.init(w), None
    for index, batch in enumerate(batches):
        gradient = GRADIENT(w, batch)
        arguments = {"value_fn": on(batch)}
        if index in (1, 3):
            arguments["full_value_fn"], anchor = on(ALL), w
        found, state = transform.update(gradient, state, w, **arguments)
        expected = gradient
        if anchor is not None:
            expected = gradient - GRADIENT(anchor, batch) + GRADIENT(anchor, ALL)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
        w = w - 0.3 * found


@pytest.mark.parametrize("has_anchor", [False, True])
def test_a_broken_full_gradient_leaves_the_anchor(has_anchor):
    transform = optax_igr.svrg(anchor_interval=1)
    w, batch = jnp.linspace(-1, 1, SIZE), ALL[:BATCH]
    state = transform.init(w)
    if has_anchor:
        _, state = update(transform, w, state, batch)
    moved = w + 0.1
    gradient = GRADIENT(moved, batch)
    found, new_state = transform.update(
        gradient, state, moved, value_fn=on(batch), full_value_fn=lambda p: jnp.sum(p) * jnp.nan
    )
    expected = gradient
    if has_anchor:
        expected = gradient - GRADIENT(w, batch) + GRADIENT(w, ALL)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(new_state.anchor, state.anchor)
    assert new_state.has_anchor == has_anchor
