"""What runs are said to cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from benchmarks.experiments import curvature_techniques
from benchmarks.techniques import pass_counting as metering

SCALES = jnp.asarray([1.0, 3.0, 10.0])


def value_fn(p):
    return jnp.sum(jnp.cosh(SCALES * (p - 1)))


def run(technique, num_steps):
    optimizer = technique.make(1.0, num_steps)
    params, states = jnp.zeros(3), [optimizer.init(jnp.zeros(3))]
    offered = {"value_fn": value_fn, "full_value_fn": value_fn}
    update = jax.jit(lambda g, s, p: optimizer.update(g, s, p, **offered))
    for _ in range(num_steps):
        updates, state = update(jax.grad(value_fn)(params), states[-1], params)
        params = params + updates
        states.append(state)
    return states, params


def test_newton_is_charged_for_its_products_when_it_steps():
    states, _ = run(curvature_techniques.NEWTON, 30)
    passes = np.diff([float(s.spent.passes) for s in states])
    # Two steps an epoch, and a step of Newton in one and a half epochs.
    due = np.arange(30) % 3 == 0
    assert np.all(passes[~due] == 0)
    for charged, state in zip(
        passes[due], [s for s, d in zip(states[1:], due, strict=True) if d], strict=True
    ):
        direction, _, search = state.inner[1]
        losses = 1 + int(search.info.num_linesearch_steps)
        assert charged == pytest.approx(2 + 2 * int(direction.num_products) + losses / 3, rel=1e-5)


def test_pairs_are_counted_as_they_are_offered_and_rejected():
    def saddle(p):
        return p @ jnp.diag(jnp.asarray([-1.0, 1.0, 2.0])) @ p / 2 + jnp.sum(p**4)

    optimizer = metering.metered(
        optax_igr.multibatch_lbfgs(0.1),
        lambda before, after: curvature_techniques.MULTIBATCH_METER(before, after, 10),
    )
    params = jnp.asarray([0.01, 0.01, 0.01])
    state = optimizer.init(params)
    update = jax.jit(lambda g, s, p: optimizer.update(g, s, p, overlap_value_fn=saddle))
    for _ in range(12):
        updates, state = update(jax.grad(saddle)(params), state, params)
        params = optax.apply_updates(params, updates)
    memory = state.inner[0].memory
    assert state.spent.rejected == memory.rejected_count
    assert state.spent.pairs == memory.pair_count + memory.rejected_count == 11
    assert state.spent.passes == pytest.approx(12 * 1.5 / 10)
