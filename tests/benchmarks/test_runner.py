import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import runner, steps
from benchmarks.problems.problem import Problem
from benchmarks.technique import Technique
from benchmarks.techniques import TECHNIQUES

_INPUTS = np.random.default_rng(0).normal(size=(23, 3))
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


def _by_hand(problem, technique, rate, seed):
    """A plain loop over the steps, one run, one batch at a time."""
    key = jax.random.key(seed)
    params = problem.init(jax.random.fold_in(key, 0))
    optimizer = optax.with_extra_args_support(technique.make(rate, problem.num_steps))
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
    found = runner.trajectories(problem, technique, [0.01, 0.03], [0, 5, 6], num_points=4)
    assert [(t.run.learning_rate, t.run.seed) for t in found] == [
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
    together = runner.trajectories(problem, TECHNIQUES["sgd"], [0.01], range(9), num_points=1)
    apart = runner.trajectories(
        problem, TECHNIQUES["sgd"], [0.01], range(9), num_points=1, memory_limit=1
    )
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

    def make(learning_rate, num_steps):
        rarely = optax.GradientTransformationExtraArgs(init, update)
        return optax.chain(rarely, optax.sgd(learning_rate))

    program = runner.Program(problem, Technique("rarely", make, (0.1,), ""), 3, 13)
    state = program.axes.state[0]
    assert state["count"] is None
    assert state["kept"] == {"v": 0, "w": 0}
    text = program.advance.as_text()
    # One conditional draws a new order at each epoch, the other is the technique's.
    assert text.count(" conditional(") == 2


def test_a_run_that_diverges_is_a_result(problem):
    (trajectory,) = runner.trajectories(problem, TECHNIQUES["sgd"], [1e30], [0], num_points=2)
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
    counted = steps.count_gradients(problem, TECHNIQUES[name], 0.01, num_steps=2)
    assert counted == pytest.approx((gradients, products))
