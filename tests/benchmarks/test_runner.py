import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.engine import program, runner
from benchmarks.engine.gradient_counts import count_gradients
from benchmarks.problems.problem import Problem
from benchmarks.techniques import TECHNIQUES, Plan, Technique

_INPUTS = np.random.default_rng(0).normal(size=(23, 3))
_FORCED = "--xla_force_host_platform_device_count=5"
_TARGETS = np.random.default_rng(1).normal(size=23)


def _loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w"])
    return jnp.mean((hidden @ params["v"] - batch["y"]) ** 2)


def _init(key):
    w, v = jax.random.split(key)
    return {"w": jax.random.normal(w, (3, 4)), "v": jax.random.normal(v, (4,))}


@pytest.fixture(scope="module")
def problem():
    train = {"x": jnp.asarray(_INPUTS), "y": jnp.asarray(_TARGETS)}
    return Problem(
        name="regression",
        init=_init,
        loss=_loss,
        train=train,
        test=train,
        batch_size=4,
        num_steps=13,
        measures={"train_loss": lambda p, train, test: _loss(p, train)},
        final_measures={
            "train_loss": lambda p, train, test: _loss(p, train),
            "params": lambda p, train, test: jnp.concatenate([p["w"].ravel(), p["v"]]),
        },
    )


def _runs(technique, rates, seeds):
    return [
        runner.Run(technique, {"learning_rate": rate}, seed) for rate in rates for seed in seeds
    ]


def _by_hand(problem, technique, rate, seed):
    """A plain loop over the steps, one run, one batch at a time."""
    key = jax.random.key(seed)
    params = problem.init(jax.random.fold_in(key, 0))
    optimizer = optax.with_extra_args_support(technique.make(rate, Plan.of(problem)))
    state = optimizer.init(params)
    for step in range(problem.num_steps):
        epoch, position = divmod(step, 23 // 4)
        order = jax.random.permutation(jax.random.fold_in(key, epoch + 1), 23)
        chosen = np.asarray(order)[4 * position : 4 * position + 4]
        batch = {"x": _INPUTS[chosen], "y": _TARGETS[chosen]}

        def value_fn(p, batch=batch):
            return _loss(p, batch)

        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=value_fn
        )
        params = optax.apply_updates(params, updates)
    return technique.eval_params(state, params)


@pytest.mark.parametrize("name", ["sgd_penalty", "sgd_extrapolated", "adam"])
def test_a_run_is_the_plain_loop_of_its_rate_and_seed(problem, name):
    technique = TECHNIQUES[name]
    found = runner.run_all(problem, _runs(technique, [0.01, 0.03], [0, 5, 6]), num_points=4)
    assert [(t.run.settings["learning_rate"], t.run.seed) for t in found] == [
        (rate, seed) for rate in (0.01, 0.03) for seed in (0, 5, 6)
    ]
    trajectory = found[4]
    # The runner's rates are float32, as a user's are unless told otherwise.
    expected = _by_hand(problem, technique, jnp.float32(0.03), 5)
    flat = np.concatenate([expected["w"].ravel(), expected["v"]])
    np.testing.assert_allclose(trajectory.final["params"], flat, rtol=1e-9)
    assert trajectory.curve["step"] == [0, 3, 6, 10, 13]
    assert trajectory.curve["train_loss"][-1] == pytest.approx(trajectory.final["train_loss"])
    assert trajectory.seconds_per_step > 0


def test_chunks_bounded_by_memory_change_no_run(problem):
    runs = _runs(TECHNIQUES["sgd"], [0.01], range(9))
    together = runner.run_all(problem, runs, num_points=1)
    apart = runner.run_all(problem, runs, num_points=1, memory_limit=1)
    assert together[0].runs_in_program == 9
    assert apart[0].runs_in_program < 9
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a.final["params"], b.final["params"], rtol=1e-9)


def test_a_branch_on_the_step_count_stays_a_branch(problem):
    """Under `vmap` a conditional on a batched predicate computes both of its branches at every step."""

    def init(params):
        return {"count": jnp.zeros([], jnp.int32), "kept": jax.tree.map(jnp.zeros_like, params)}

    def update(updates, state, params=None, *, value_fn, **extra):
        kept = jax.lax.cond(
            state["count"] % 5 == 0, lambda: jax.grad(value_fn)(params), lambda: state["kept"]
        )
        return updates, {"count": state["count"] + 1, "kept": kept}

    def make(learning_rate, plan):
        rarely = optax.GradientTransformationExtraArgs(init, update)
        return optax.chain(rarely, optax.sgd(learning_rate))

    compiled = program.Program(problem, Technique("rarely", make, (0.1,), ""), 3, 13)
    state = compiled.axes.state[0]
    assert state["count"] is None
    assert state["kept"] == {"v": 0, "w": 0}
    text = compiled.advance.as_text()
    assert text.count(" conditional(") == 1


def test_a_run_that_diverges_is_a_result(problem):
    (trajectory,) = runner.run_all(problem, _runs(TECHNIQUES["sgd"], [1e30], [0]), num_points=2)
    assert not np.isfinite(trajectory.final["train_loss"])


@pytest.mark.parametrize(
    ("name", "gradients", "products"),
    [
        ("sgd", 1, 0),
        ("sgd_penalty", 1, 1),
        ("sgd_difference_penalty", 2, 0),
        ("sgd_extrapolated", 1, 0),
        ("sgd_microbatch_penalty", 2, 1),
        ("sgd_full_batch_penalty", 1 + 23 / 4, 23 / 4),
        ("sam", 2, 0),
        ("naive_penalty", 1, 1),
    ],
)
def test_gradients_are_counted_in_units_of_one_batch(problem, name, gradients, products):
    counted = count_gradients(problem, TECHNIQUES[name], {"learning_rate": 0.01}, num_steps=2)
    assert counted == pytest.approx((gradients, products))


def test_gradients_are_counted_over_a_declared_period_after_it_has_settled(problem):
    """Every third step takes a second gradient elsewhere, the very first one ten of them."""

    def make(learning_rate, plan):
        del learning_rate, plan

        def update(updates, state, params=None, *, value_fn, **extra):
            def more(times):
                shifted = [jax.tree.map(lambda x, i=i: x + i, params) for i in range(1, times + 1)]
                for point in shifted:
                    jax.grad(value_fn)(point)

            if int(state) == 0:
                more(10)
            elif int(state) % 3 == 2:
                more(1)
            return jax.tree.map(jnp.zeros_like, updates), state + 1

        return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros([], int), update)

    thirds = Technique("thirds", make, (0.1,), "", period=3)
    settings = {"learning_rate": 0.1}
    assert count_gradients(problem, thirds, settings) == pytest.approx((4 / 3, 0))
    of_the_run = Technique("thirds", make, (0.1,), "", period=lambda plan: plan.num_steps // 4)
    assert count_gradients(problem, of_the_run, settings, 12) == pytest.approx((4 / 3, 0))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({}, "cores"), ({"JAX_NUM_CPU_DEVICES": "3"}, 3), ({"XLA_FLAGS": _FORCED}, 5)],
)
def test_each_core_becomes_a_device_unless_the_user_has_chosen(flags, expected):
    code = "from benchmarks.engine import runner; runner.use_every_core(); import jax; print(jax.device_count())"
    environment = {
        k: x for k, x in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    }
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"JAX_PLATFORMS": "cpu"} | flags,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(printed) == (len(os.sched_getaffinity(0)) if expected == "cores" else expected)


def test_chunks_grow_with_the_devices_and_leave_none_idle(problem, monkeypatch):
    devices = jax.device_count()
    each = sum(x.nbytes for x in jax.tree.leaves(problem.init(jax.random.key(0))))
    monkeypatch.setattr(runner, "CACHED_PARAMETERS", 10 * each)
    assert runner._cached_size(problem, 3) == 3
    assert runner._cached_size(problem, 20 * devices) == 10 * devices
    monkeypatch.setattr(runner, "CACHED_PARAMETERS", 1)
    assert runner._cached_size(problem, 20 * devices) == devices
