"""What the experiment on few relevant inputs claims, without the runner."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from benchmarks.problems.online import sparse_regression
from benchmarks.techniques import geometry


def _best_incurred(num_inputs, make, rates):
    problem = sparse_regression(num_inputs)

    def play(rate):
        optimizer = make(rate)
        params = problem.init(jax.random.key(0))

        def step(carry, example):
            params, state = carry
            batch = jax.tree.map(lambda x: x[None], example)
            loss, gradient = jax.value_and_grad(problem.loss)(params, batch)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, optimizer.init(params)), problem.train)[1].sum()

    incurred = np.asarray(jax.jit(lambda rates: jax.lax.map(play, rates))(jnp.asarray(rates)))
    best = np.nanargmin(np.where(np.isfinite(incurred), incurred, np.nan))
    # At an end of the grid the best rate may lie outside of it.
    assert 0 < best < len(rates) - 1
    return incurred[best]


@pytest.fixture(scope="module")
def incurred():
    rates = [0.025 * 2.0**k for k in range(9)]
    return {
        (name, n): _best_incurred(n, make, rates)
        for n in (30, 1000)
        for name, make in {
            "gradient descent": optax.sgd,
            "EG±": lambda rate: optax_igr.eg_plus_minus(rate, total=geometry.TOTAL),
        }.items()
    }


def test_eg_plus_minus_incurs_a_tenth_of_the_loss_of_gradient_descent_where_few_inputs_matter(
    incurred,
):
    assert incurred["gradient descent", 1000] > 10 * incurred["EG±", 1000]


def test_its_loss_grows_like_the_logarithm_of_the_number_of_inputs(incurred):
    growth = {name: incurred[name, 1000] / incurred[name, 30] for name, _ in incurred}
    assert growth["EG±"] < 1.5 * np.log(1000) / np.log(30)
    assert growth["gradient descent"] > 8
