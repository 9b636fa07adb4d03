"""What runs are said to cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.problems.counted import with_counts
from benchmarks.techniques import TECHNIQUES, Plan
from benchmarks.techniques.counting import SPENT, counting_losses, counting_passes
from tests.benchmarks.helpers import bowl

SCALES = jnp.asarray([1.0, 3.0, 10.0])


def value_fn(p):
    return jnp.sum(jnp.cosh(SCALES * (p - 1)))


def run(technique, plan, value_fn=value_fn, start=(0.0, 0.0, 0.0)):
    counting = counting_passes(technique, technique.spent)
    optimizer = counting.transform({"learning_rate": 1.0}, plan)
    params = jnp.asarray(start)
    states = [optimizer.init(params)]

    def update(state, params):
        value, grad = jax.value_and_grad(value_fn)(params)
        offered = {"value": value, "grad": grad} | dict.fromkeys(
            ("value_fn", "full_value_fn", "overlap_value_fn"), value_fn
        )
        return optimizer.update(grad, state, params, **offered)

    update = jax.jit(update)
    for _ in range(plan.num_steps):
        updates, state = update(states[-1], params)
        params = optax.apply_updates(params, updates)
        states.append(state)
    return states


def test_newton_is_charged_for_its_products_when_it_steps():
    states = run(TECHNIQUES["full_newton_cg"], Plan(30, steps_per_epoch=2))
    passes = np.diff([float(s.counts["passes"]) for s in states])
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

    plan = Plan(12, steps_per_epoch=10)
    state = run(TECHNIQUES["multibatch"], plan, saddle, (0.01, 0.01, 0.01))[-1]
    memory = state.inner[0].memory
    assert state.counts["rejected"] == memory.rejected_count
    assert state.counts["pairs"] == memory.pair_count + memory.rejected_count == 11
    assert state.counts["passes"] == pytest.approx(12 * 1.5 / 10)


def test_losses_are_summed_whatever_the_technique_asks_for():
    """Sophia refuses `value`, which the sum needs: it receives what it asked for alone."""
    technique = counting_losses(TECHNIQUES["sophia"])
    assert set(technique.extra_arguments) == {"obj_fn", "value"}
    optimizer = technique.transform({"learning_rate": 0.1}, Plan(2))
    params = jnp.ones(3)
    state = optimizer.init(params)
    for value in (2.0, 3.0):
        _, state = optimizer.update(params, state, params, value=value, obj_fn=value_fn)
    point = technique.eval_params(state, params)
    problem = with_counts(bowl(), ("incurred",))
    assert problem.measures["incurred"](point, None, None) == 5
    assert problem.final_measures["train_loss"](point, None, None) == 3
    assert SPENT == ("passes", "pairs", "rejected")
