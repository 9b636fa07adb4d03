"""The five lines of a training step with an Equinox model, as the how-to page for Equinox has them."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr

COEFFICIENT = 0.3


class Network(eqx.Module):
    """Two layers, dropout, BatchNorm, and leaves that are no arrays."""

    body: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.body = eqx.nn.Linear(3, 4, key=keys[0], dtype=jnp.float64)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch", dtype=jnp.float64)
        self.dropout = eqx.nn.Dropout(0.3)
        self.head = eqx.nn.Linear(4, 2, key=keys[1], dtype=jnp.float64)

    def __call__(self, x, statistics, key):
        x, statistics = self.norm(self.body(x), statistics)
        return self.head(self.dropout(jnp.tanh(x), key=key)), statistics


def loss_fn(model, statistics, x, y, key):
    keys = jax.random.split(key, x.shape[0])
    outputs, statistics = jax.vmap(
        model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None)
    )(x, statistics, keys)
    return jnp.mean((outputs - y) ** 2), statistics


def step_of(optimizer):
    @eqx.filter_jit
    def step(model, state, statistics, x, y, key):
        params, static = eqx.partition(model, eqx.is_inexact_array)

        def with_aux(params):
            return loss_fn(eqx.combine(params, static), statistics, x, y, key)

        (value, new_statistics), grad = jax.value_and_grad(with_aux, has_aux=True)(params)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=lambda p: with_aux(p)[0]
        )
        return eqx.apply_updates(model, updates), state, new_statistics, value

    return step


@pytest.fixture
def setting():
    keys = jax.random.split(jax.random.key(1), 3)
    model, statistics = eqx.nn.make_with_state(Network)(jax.random.key(0))
    x, y = jax.random.normal(keys[0], (5, 3)), jax.random.normal(keys[1], (5, 2))
    return model, statistics, x, y, keys[2]


def params_of(model):
    return eqx.filter(model, eqx.is_inexact_array)


def test_step_of_a_gradient_penalty_is_that_of_the_dense_hessian(setting):
    model, statistics, x, y, key = setting
    optimizer = optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT), optax.sgd(0.1))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def flat_value(theta):
        return loss_fn(eqx.combine(unravel(theta), static), statistics, x, y, key)[0]

    gradient, hessian = jax.grad(flat_value)(flat), jax.hessian(flat_value)(flat)
    expected = flat - 0.1 * (gradient + 2 * COEFFICIENT * hessian @ gradient)
    model, _, _, value = step_of(optimizer)(model, optimizer.init(params), statistics, x, y, key)
    found, _ = jax.flatten_util.ravel_pytree(params_of(model))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(value, flat_value(flat))


def test_evaluation_parameters_of_a_model(setting):
    model, statistics, x, y, key = setting
    plain = optax.sgd(0.1)
    extrapolating = optax_igr.extrapolated_gradient_penalty(plain, 0.02)
    expected, *_ = step_of(optax.with_extra_args_support(plain))(
        model, plain.init(params_of(model)), statistics, x, y, key
    )
    stepped, state, *_ = step_of(extrapolating)(
        model, extrapolating.init(params_of(model)), statistics, x, y, key
    )
    # The whole model may be given: what is no parameter stays.
    found = optax_igr.extrapolation_eval_params(state, stepped)
    assert found.dropout.p == 0.3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
        params_of(found),
        params_of(expected),
    )
    assert jnp.abs(stepped.head.weight - expected.head.weight).max() > 1e-4
