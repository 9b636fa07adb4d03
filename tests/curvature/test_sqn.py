"""Stochastic L-BFGS against the paper's algorithm 1 in dense matrices, on a loss that is not quadratic."""

import re
from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optax_igr
from optax_igr.curvature.sqn import mean_with
from tests.curvature import dense

NUM_SAMPLES, SIZE = 60, 6
LOSS = dense.logistic_regression(NUM_SAMPLES, SIZE)
GRADIENT, HESSIAN = dense.derivatives(LOSS)
INTERVAL, MEMORY, RATE = 3, 2, 0.3


def batches(size, num_steps, seed):
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(NUM_SAMPLES, size, replace=False) for _ in range(num_steps)])


def algorithm_1(w, gradient_batches, curvature_batches, hessian_point, powell=None):
    """Byrd et al's algorithm 1; `hessian_point` chooses between w̄ and what it is mistaken for."""
    pairs, mean, last_mean, iterates = [], 0, None, [w]
    for k, (batch, curvature_batch) in enumerate(
        zip(gradient_batches, curvature_batches, strict=True), 1
    ):
        gradient = np.asarray(GRADIENT(w, batch))
        mean = mean + w / INTERVAL
        direction = gradient if k <= 2 * INTERVAL else dense.inverse_hessian(pairs) @ gradient
        w = w - RATE * direction
        if k % INTERVAL == 0:
            if last_mean is not None:
                s = mean - last_mean
                point = {"mean": mean, "current": iterates[-1], "last mean": last_mean}[
                    hessian_point
                ]
                y = np.asarray(HESSIAN(point, curvature_batch)) @ s
                y = y if powell is None else dense.powell(pairs, s, y, powell)
                pairs = [*pairs, (s, y)][-MEMORY:]
            mean, last_mean = 0, mean
        iterates.append(w)
    return np.stack(iterates)


def run(optimizer, w, gradient_batches, curvature_batches):
    _, unravel = jax.flatten_util.ravel_pytree({"a": jnp.zeros([2, 2]), "b": jnp.zeros([2])})

    def on_tree(indices):
        return lambda p: LOSS(jax.flatten_util.ravel_pytree(p)[0], indices)

    def step(carry, batch):
        params, state = carry
        grads = jax.grad(on_tree(batch[0]))(params)
        updates, state = optimizer.update(
            grads, state, params, curvature_value_fn=on_tree(batch[1])
        )
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), jax.flatten_util.ravel_pytree(params)[0]

    @jax.jit
    def scanned(w):
        params = unravel(w)
        carry = (params, optimizer.init(params))
        return jax.lax.scan(step, carry, (gradient_batches, curvature_batches))

    (_, state), iterates = scanned(w)
    return np.concatenate([w[None], iterates]), state[0]


START = np.linspace(-1, 1, SIZE)
BATCHES = batches(10, 20, seed=1), batches(30, 20, seed=2)


@pytest.mark.parametrize("form", ["two_loop", "gram"])
def test_every_step_is_that_of_algorithm_1(form):
    optimizer = optax_igr.sqn(RATE, memory_size=MEMORY, pair_interval=INTERVAL, form=form)
    found, state = run(optimizer, START, *BATCHES)
    expected = algorithm_1(START, *BATCHES, hessian_point="mean")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert (state.memory.pair_count, state.memory.rejected_count) == (5, 0)
    # A Hessian taken elsewhere is far outside of what passes above.
    for point in ("current", "last mean"):
        wrong = algorithm_1(START, *BATCHES, hessian_point=point)
        assert np.abs(found - wrong).max() > 1e-3


def test_every_damped_step_is_that_of_powell():
    # A fraction of 0.9 of what the model says damps pairs of a convex loss too.
    options = {"memory_size": MEMORY, "pair_interval": INTERVAL, "powell_damping": 0.9}
    found, _ = run(optax_igr.sqn(RATE, **options), START, *BATCHES)
    expected = algorithm_1(START, *BATCHES, hessian_point="mean", powell=0.9)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
    plain = algorithm_1(START, *BATCHES, hessian_point="mean")
    assert np.abs(found - plain).max() > 1e-3


def test_the_first_pair_is_made_at_2L_and_used_from_2L_plus_1():
    optimizer = optax_igr.scale_by_sqn(pair_interval=INTERVAL)
    matrix = jnp.asarray(dense.spd(SIZE, 5.0))
    evaluated = []

    def value_fn(p):
        jax.debug.callback(lambda: evaluated.append(len(plain)))
        return p @ matrix @ p / 2

    params, state = jnp.ones(SIZE), optimizer.init(jnp.ones(SIZE))
    update = jax.jit(lambda g, s, p: optimizer.update(g, s, p, curvature_value_fn=value_fn))
    plain, counts = [], []
    for _ in range(3 * INTERVAL + 1):
        grads = matrix @ params
        updates, state = update(grads, state, params)
        jax.effects_barrier()
        plain.append(bool(jnp.array_equal(updates, grads)))
        counts.append(int(state.memory.pair_count))
        params = params - 0.05 * updates
    assert plain == [True] * 2 * INTERVAL + [False] * (INTERVAL + 1)
    assert counts == [0] * (2 * INTERVAL - 1) + [1] * INTERVAL + [2] * 2
    # The curvature batch is looked at in these two steps alone.
    assert set(evaluated) == {2 * INTERVAL - 1, 3 * INTERVAL - 1}


@pytest.mark.parametrize("form", ["two_loop", "gram"])
@pytest.mark.parametrize(
    "optimizer",
    [optax_igr.sqn, partial(optax_igr.slbfgs, anchor_interval=5)],
    ids=["sqn", "slbfgs"],
)
def test_a_step_copies_no_history(optimizer, form):
    """The direction reads the pairs that the same update may overwrite."""
    optimizer = optimizer(0.1, memory_size=4, pair_interval=3, form=form)
    params = {"w": jnp.zeros([5000]), "b": jnp.zeros([100, 30])}

    def value_fn(p):
        return sum(jnp.sum(x**4) for x in jax.tree.leaves(p))

    def step(params, state):
        functions = ("value_fn", "full_value_fn", "curvature_value_fn")
        grads = jax.grad(value_fn)(params)
        updates, state = optimizer.update(
            grads, state, params, **dict.fromkeys(functions, value_fn)
        )
        return jax.tree.map(jnp.add, params, updates), state

    arguments = jax.eval_shape(lambda p: (p, optimizer.init(p)), params)
    text = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile().as_text()
    history = r"f64\[4,(?:5000|100,30)\]"
    assert re.search(history, text)
    assert re.findall(history + r"\S* copy\(", text) == []


@pytest.mark.parametrize("form", ["two_loop", "gram"])
def test_sharded_steps_past_the_first_pair_compile_once_and_equal_one_device(form):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    optimizer = optax_igr.sqn(0.05, memory_size=2, pair_interval=INTERVAL, form=form)
    scales = jnp.geomspace(1, 5, 16)

    def value_fn(p):
        return jnp.sum(scales * p**2 + p**4)

    found = []
    for params in (jnp.linspace(-1, 1, 16), jax.device_put(jnp.linspace(-1, 1, 16), sharding)):

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state):
            grads = jax.grad(value_fn)(params)
            updates, state = optimizer.update(grads, state, params, curvature_value_fn=value_fn)
            return params + updates, state

        with jax.set_mesh(mesh):
            params, state = params.copy(), optimizer.init(params)
            for _ in range(2 * INTERVAL + 2):
                params, state = step(params, state)
        assert step._cache_size() == 1
        assert state[0].memory.pair_count == 1
        found.append((params, state[0].memory.steps))
    np.testing.assert_allclose(*(np.asarray(p) for p, _ in found), rtol=1e-12)
    assert found[1][1].sharding.spec == PartitionSpec(None, "x")


def test_the_pairs_of_a_quadratic_are_exact():
    matrix = jnp.asarray(dense.spd(SIZE, 100.0))

    def value_fn(p):
        return p @ matrix @ p / 2

    optimizer = optax_igr.scale_by_sqn(memory_size=4, pair_interval=2)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(
            matrix @ params, state, params, curvature_value_fn=value_fn
        )
        return (params - 0.01 * updates, state), params

    start = jnp.ones(SIZE)
    (_, state), iterates = jax.jit(
        lambda: jax.lax.scan(step, (start, optimizer.init(start)), length=10)
    )()
    memory = state.memory
    assert memory.pair_count == 4
    means = np.asarray(iterates).reshape(5, 2, SIZE).mean(axis=1)
    np.testing.assert_allclose(memory.steps, np.diff(means, axis=0), rtol=0, atol=1e-15)
    expected = memory.steps @ matrix
    error = np.linalg.norm(memory.gradient_changes - expected)
    assert error <= 1e-15 * np.linalg.norm(expected)


def test_negative_curvature_is_rejected_and_directions_still_descend():
    matrix = jnp.diag(jnp.asarray([-1.0, -0.5, 0.5, 1.0, 2.0, 3.0]))

    def value_fn(p):
        return p @ matrix @ p / 2 + jnp.sum(p**4) / 40

    optimizer = optax_igr.scale_by_sqn(memory_size=3, pair_interval=2)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(value_fn)(params)
        updates, state = optimizer.update(grads, state, params, curvature_value_fn=value_fn)
        return (params - 0.1 * grads, state), grads @ updates

    start = jnp.full([SIZE], 0.01)
    (_, state), slopes = jax.jit(
        lambda: jax.lax.scan(step, (start, optimizer.init(start)), length=200)
    )()
    assert slopes.min() > 0
    assert state.memory.rejected_count > 0
    assert state.memory.pair_count > 0


def test_averages_of_bfloat16_iterates_keep_small_steps():
    params = jnp.ones([2], jnp.bfloat16)
    mean = jnp.zeros([2], jnp.float32)
    for k in range(8):
        mean = mean_with(mean, params + jnp.bfloat16(2**-7 if k == 3 else 0), k)
    np.testing.assert_allclose(mean, 1 + 2**-10, rtol=1e-7)
    np.testing.assert_array_equal(mean_with(mean * jnp.nan, params, 0), 1.0)
