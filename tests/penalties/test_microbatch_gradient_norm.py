"""The penalty on the micro-batches against the dense gradient of its own formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_igr
from optax_igr._core import trees

NUM_MICROBATCHES = 3


def loss_fn(params, samples):
    inputs, targets = samples
    outputs = jnp.tanh(inputs @ params["kernel"] + params["bias"][None])
    return jnp.mean((outputs - targets) ** 2)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(4, 2))),
        "bias": jnp.asarray(rng.normal(size=2)),
    }
    batch = jnp.asarray(rng.normal(size=(9, 4))), jnp.asarray(rng.normal(size=(9, 2)))
    return params, *optax_igr.microbatched(loss_fn, batch, NUM_MICROBATCHES)


@pytest.mark.parametrize(("norm", "power"), [("squared", 2), ("plain", 1)])
@pytest.mark.parametrize("hvp", ["forward_over_reverse", "central_difference"])
def test_equals_the_gradient_of_the_mean_over_microbatches(problem, norm, power, hvp):
    params, value_fn, microbatch_value_fn = problem

    def penalised(params):
        norms = [
            trees.squared_norm(jax.grad(microbatch_value_fn)(params, b)) ** (power / 2)
            for b in range(NUM_MICROBATCHES)
        ]
        return value_fn(params) + 0.2 * sum(norms) / NUM_MICROBATCHES

    transform = optax_igr.add_microbatch_gradient_penalty(0.2, NUM_MICROBATCHES, norm=norm, hvp=hvp)
    updates, _ = transform.update(
        jax.grad(value_fn)(params),
        transform.init(params),
        params,
        microbatch_value_fn=microbatch_value_fn,
    )
    expected = jax.grad(penalised)(params)
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-8), updates, expected)


def test_is_the_full_batch_penalty_plus_that_of_the_variance(problem):
    params, value_fn, microbatch_value_fn = problem
    gradient = jax.grad(value_fn)(params)

    def variance(params):
        mean = jax.grad(value_fn)(params)
        parts = [jax.grad(microbatch_value_fn)(params, b) for b in range(NUM_MICROBATCHES)]
        return sum(trees.squared_norm(trees.subtract(p, mean)) for p in parts) / NUM_MICROBATCHES

    full = optax_igr.add_gradient_penalty(0.2)
    micro = optax_igr.add_microbatch_gradient_penalty(0.2, NUM_MICROBATCHES)
    of_full, _ = full.update(gradient, full.init(params), params, value_fn=value_fn)
    of_micro, _ = micro.update(
        gradient, micro.init(params), params, microbatch_value_fn=microbatch_value_fn
    )
    jax.tree.map(
        lambda m, f, v: np.testing.assert_allclose(m - f, 0.2 * v, rtol=1e-9, atol=1e-13),
        of_micro,
        of_full,
        jax.grad(variance)(params),
    )


def test_one_microbatch_is_the_full_batch_penalty(problem):
    params, value_fn, _ = problem
    gradient = jax.grad(value_fn)(params)
    full = optax_igr.add_gradient_penalty(0.2)
    micro = optax_igr.add_microbatch_gradient_penalty(0.2, 1)
    expected, _ = full.update(gradient, full.init(params), params, value_fn=value_fn)
    updates, _ = micro.update(
        gradient, micro.init(params), params, microbatch_value_fn=lambda p, _: value_fn(p)
    )
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-12), updates, expected)


def test_mask_and_safeguard_hold_here_too():
    # cos t, twice: see the test of the same name for the full batch.
    transform = optax_igr.add_microbatch_gradient_penalty(
        1.0, 2, mask={"t": True, "frozen": False}, safeguard=True
    )
    params = {"t": jnp.float64(0.1), "frozen": jnp.float64(1.0)}
    gradient = {"t": -jnp.sin(params["t"]), "frozen": jnp.float64(0.0)}
    updates, state = transform.update(
        gradient,
        transform.init(params),
        params,
        microbatch_value_fn=lambda p, _: p["frozen"] * jnp.cos(p["t"]),
    )
    assert updates == gradient
    assert int(state.dropped_count) == 1


@pytest.mark.parametrize("num_microbatches", [0, 2.0, True, "two"])
def test_bad_number_of_microbatches_is_named(num_microbatches):
    with pytest.raises(ValueError, match="`num_microbatches` must be a positive integer"):
        optax_igr.add_microbatch_gradient_penalty(0.1, num_microbatches)
