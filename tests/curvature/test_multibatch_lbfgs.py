"""Multi-batch L-BFGS against dense matrices and Optax, and the sampler of overlapping batches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from tests.curvature import dense

NUM_SAMPLES, SIZE, BATCH, SHARED = 60, 6, 12, 3
LOSS = dense.logistic_regression(NUM_SAMPLES, SIZE)
GRADIENT, _ = dense.derivatives(LOSS)
START = np.linspace(-1, 1, SIZE)


def overlapping(num_steps, num_samples=NUM_SAMPLES, batch_size=BATCH, overlap=0.25, seed=0):
    batches = optax_igr.overlapping_batches(num_samples, batch_size, overlap, seed=seed)
    return np.stack(list(itertools.islice(batches, num_steps)))


def run(optimizer, w, batches, num_shared, loss_fn=LOSS):
    def step(carry, batch):
        w, state = carry
        updates, state = optimizer.update(
            jax.grad(loss_fn)(w, batch),
            state,
            w,
            overlap_value_fn=lambda p: loss_fn(p, batch[:num_shared]),
        )
        w = w + updates
        return (w, state), w

    @jax.jit
    def scanned(w):
        return jax.lax.scan(step, (w, optimizer.init(w)), batches)

    (_, state), iterates = scanned(w)
    return np.concatenate([w[None], iterates]), state[0].memory


def reference(w, batches, memory_size, rate, powell=None, shared_part=slice(SHARED)):
    pairs, iterates = [], [w]
    for index, batch in enumerate(batches):
        if index > 0:
            s = w - iterates[-2]
            shared = batch[shared_part]
            y = np.asarray(GRADIENT(w, shared)) - np.asarray(GRADIENT(iterates[-2], shared))
            y = y if powell is None else dense.powell(pairs, s, y, powell)
            pairs = [*pairs, (s, y)][-memory_size:]
        gradient = np.asarray(GRADIENT(w, batch))
        w = w - rate * (dense.inverse_hessian(pairs) @ gradient if pairs else gradient)
        iterates.append(w)
    return np.stack(iterates)


@pytest.mark.parametrize("powell", [None, 0.9])
@pytest.mark.parametrize("form", ["two_loop", "gram"])
def test_every_step_is_that_of_the_dense_method(powell, form):
    batches = overlapping(12)
    optimizer = optax_igr.multibatch_lbfgs(0.3, memory_size=3, powell_damping=powell, form=form)
    found, memory = run(optimizer, START, batches, SHARED)
    expected = reference(START, batches, 3, 0.3, powell)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    assert (memory.pair_count, memory.rejected_count) == (11, 0)
    # Gradients on other samples than those shared are far outside of what passes above.
    for part in (slice(None), slice(-SHARED, None)):
        wrong = reference(START, batches, 3, 0.3, powell, shared_part=part)
        assert np.abs(found - wrong).max() > 1e-3
    if powell is not None:
        assert np.abs(found - reference(START, batches, 3, 0.3)).max() > 1e-3


def test_full_overlap_is_the_lbfgs_of_optax_on_a_convex_loss():
    everything = np.tile(np.arange(NUM_SAMPLES), (8, 1))
    iterates, _ = run(
        optax_igr.multibatch_lbfgs(0.5, memory_size=3), START, everything, NUM_SAMPLES
    )
    theirs = optax.scale_by_lbfgs(memory_size=3)
    ours = optax_igr.scale_by_multibatch_lbfgs(memory_size=3)
    their_state, our_state = (t.init(jnp.asarray(START)) for t in (theirs, ours))

    @jax.jit
    def directions(w, their_state, our_state):
        gradient = jax.grad(LOSS)(w, everything[0])

        def value_fn(p):
            return LOSS(p, everything[0])

        return (
            theirs.update(gradient, their_state, w),
            ours.update(gradient, our_state, w, overlap_value_fn=value_fn),
        )

    for index, w in enumerate(iterates):
        (expected, their_state), (found, our_state) = directions(w, their_state, our_state)
        # Optax caps the length of its very first step.
        if index > 0:
            np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_overlap_gradients_recombine_to_that_of_the_batch():
    before, batch, after = overlapping(3)
    parts = batch[:SHARED], batch[SHARED:-SHARED], batch[-SHARED:]
    np.testing.assert_array_equal(parts[0], before[-SHARED:])
    np.testing.assert_array_equal(parts[2], after[:SHARED])
    combined = sum(len(part) * np.asarray(GRADIENT(START, part)) for part in parts) / BATCH
    np.testing.assert_allclose(combined, GRADIENT(START, batch), rtol=0, atol=1e-15)


def test_consistent_pairs_are_all_accepted_where_naive_ones_are_not():
    """The naive ones are the differences of gradients of two batches, which optax.lbfgs takes."""
    loss_fn = dense.logistic_regression(1000, 20, seed=3)
    batches = overlapping(150, num_samples=1000, batch_size=100, seed=1)
    _, memory = run(optax_igr.multibatch_lbfgs(0.1), np.zeros(20), batches, 25, loss_fn)
    assert (memory.pair_count, memory.rejected_count) == (149, 0)

    naive = optax.with_extra_args_support(optax.chain(optax.scale_by_lbfgs(), optax.sgd(0.1)))

    def step(carry, batch):
        w, state = carry
        gradient = jax.grad(loss_fn)(w, batch)
        updates, state = naive.update(gradient, state, w)
        return (w + updates, state), (w, gradient)

    start = jnp.zeros(20)
    _, (iterates, gradients) = jax.jit(
        lambda: jax.lax.scan(step, (start, naive.init(start)), batches)
    )()
    products = jnp.sum(jnp.diff(iterates, axis=0) * jnp.diff(gradients, axis=0), axis=1)
    assert jnp.mean(products <= 0) > 0.1


@pytest.mark.parametrize("powell", [None, 0.2])
def test_every_direction_through_a_saddle_descends(powell):
    curvatures = jnp.asarray([-1.0, -0.5, 0.5, 1.0, 2.0, 3.0])

    def value_fn(p):
        return jnp.sum(curvatures * p**2) / 2 + jnp.sum(p**4) / 40

    transform = optax_igr.scale_by_multibatch_lbfgs(memory_size=3, powell_damping=powell)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(value_fn)(params)
        updates, state = transform.update(grads, state, params, overlap_value_fn=value_fn)
        return (params - 0.1 * grads, state), grads @ updates

    start = jnp.full([SIZE], 0.01)
    (_, state), slopes = jax.jit(
        lambda: jax.lax.scan(step, (start, transform.init(start)), length=100)
    )()
    assert slopes.min() > 0
    assert state.memory.pair_count > 0
    # Damped pairs are not rejected, but for the first one, which meets no model yet.
    assert (state.memory.rejected_count > 1) == (powell is None)


def test_a_converged_run_stays_where_it_is_though_its_steps_are_zero():
    """The pairs of zero steps are rejected and the memory is dropped, and I is far too long a step."""
    curvatures = jnp.geomspace(1, 2e4, 8, dtype=jnp.float32)

    def value_fn(p):
        return jnp.sum(curvatures * (p - 1) ** 2) / 2

    optimizer = optax_igr.multibatch_lbfgs(0.5)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(
            jax.grad(value_fn)(params), state, params, overlap_value_fn=value_fn
        )
        return (params + updates, state), value_fn(params)

    start = jnp.linspace(0, 1, 8, dtype=jnp.float32)
    (_, state), losses = jax.jit(
        lambda: jax.lax.scan(step, (start, optimizer.init(start)), length=1000)
    )()
    assert state[0].memory.dropped_count > 0
    assert losses[200:].max() < 1e-11


@pytest.mark.parametrize(("num_samples", "batch_size", "overlap"), [(100, 10, 0.3), (103, 8, 0.5)])
def test_batches_overlap_by_their_fraction_and_cover_the_data(num_samples, batch_size, overlap):
    num_shared = round(overlap * batch_size)
    per_epoch = (num_samples - batch_size) // (batch_size - num_shared) + 1
    batches = overlapping(3 * per_epoch, num_samples, batch_size, overlap, seed=2)
    for batch in batches:
        assert len(set(batch)) == batch_size
    for before, batch in itertools.pairwise(batches):
        np.testing.assert_array_equal(before[-num_shared:], batch[:num_shared])
        assert len(set(before) & set(batch)) == num_shared
    for epoch in batches.reshape(3, per_epoch, batch_size):
        left_out = num_samples - len(set(epoch.flat))
        assert 0 <= left_out < batch_size - num_shared
        for before, batch in zip(epoch[:-2], epoch[2:], strict=True):
            assert not set(before) & set(batch)
    orders = batches.reshape(3, -1)
    assert not np.array_equal(orders[0], orders[1])


@pytest.mark.parametrize("overlap", [0.0, 0.01, 0.6, 1.0, -0.1])
def test_an_overlap_out_of_range_is_named(overlap):
    with pytest.raises(ValueError, match="overlapping_batches: `overlap`"):
        optax_igr.overlapping_batches(100, 10, overlap)
