"""What the optimizers of the room have in common: their learning rate, and parameters that are weakly typed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr

ALIASES = {
    "newton_cg": optax_igr.newton_cg,
    "sqn": partial(optax_igr.sqn, pair_interval=1),
    "slbfgs": partial(optax_igr.slbfgs, anchor_interval=2, pair_interval=1),
    "multibatch_lbfgs": optax_igr.multibatch_lbfgs,
}
FUNCTIONS = ("value_fn", "full_value_fn", "curvature_value_fn", "overlap_value_fn")

every_alias = pytest.mark.parametrize("name", ALIASES)


def training_step(optimizer):
    def value_fn(params):
        return sum(jnp.sum(jnp.cosh(x)) for x in jax.tree.leaves(params))

    def step(params, state):
        functions = dict.fromkeys(FUNCTIONS, value_fn)
        updates, state = optimizer.update(jax.grad(value_fn)(params), state, params, **functions)
        return optax.apply_updates(params, updates), state

    return step


@every_alias
@pytest.mark.parametrize("rate", [None, float("nan"), float("inf"), 1j, True, "0.1", np.ones(2)])
def test_a_learning_rate_that_is_no_number_is_named(name, rate):
    with pytest.raises(ValueError, match=rf"^{name}: `learning_rate`"):
        ALIASES[name](rate)


@every_alias
def test_a_step_is_left_out_where_a_schedule_has_no_finite_rate(name):
    """1/t has none at 0."""
    optimizer = ALIASES[name](lambda t: 0.1 / t)
    step = jax.jit(training_step(optimizer))
    params = {"a": jnp.linspace(-1, 1, 4, dtype=jnp.float32)}
    after_one, state = step(params, optimizer.init(params))
    np.testing.assert_array_equal(after_one["a"], params["a"])
    after_two, state = step(after_one, state)
    assert jnp.abs(after_two["a"]).max() < 1
    for leaf in jax.tree.leaves(state):
        assert jnp.isfinite(leaf).all()


@every_alias
def test_weakly_typed_parameters_compile_as_often_as_with_gradient_descent(name):
    params = {"a": jnp.asarray(0.5), "b": jax.lax.full_like(jnp.asarray(0.25), 0.25, shape=(3,))}
    assert all(x.weak_type for x in jax.tree.leaves(params))
    compilations = []
    for optimizer in (ALIASES[name](0.1), optax.with_extra_args_support(optax.sgd(0.1))):
        step, found, state = jax.jit(training_step(optimizer)), params, optimizer.init(params)
        assert not any(x.weak_type for x in jax.tree.leaves(state))
        for _ in range(4):
            found, state = step(found, state)
        compilations.append(step._cache_size())
    assert compilations[0] == compilations[1]
