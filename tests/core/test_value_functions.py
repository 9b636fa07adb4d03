"""The makers of value functions: the mask filled, the micro-batches equal to the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from optax_igr._core import derivatives


def test_filled_value_function_serves_both_sides_of_a_partition():
    def value_fn(p):
        return jnp.sum(jnp.sin(p["a"] * p["b"]["c"]) + p["a"] ** 2 * p["b"]["c"])

    params = {"a": jnp.array([0.3, 0.7]), "b": {"c": jnp.array([1.1, -0.4])}}
    gradient = jax.grad(value_fn)(params)
    optimizer = optax.partition(
        {"one": optax_igr.add_gradient_penalty(0.1), "two": optax_igr.add_gradient_penalty(0.2)},
        {"a": "one", "b": "two"},
    )
    updates, _ = optimizer.update(
        gradient,
        optimizer.init(params),
        params,
        value_fn=optax_igr.fill_masked(value_fn, params),
        grad=gradient,
    )
    # Each side penalises its own part of the gradient with the other side held constant: ∇_a ‖∇_a E‖².
    for name, coefficient in (("a", 0.1), ("b", 0.2)):

        def own(part, name=name):
            return value_fn({**params, name: part})

        penalty = jax.grad(
            lambda part, own=own: sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(own)(part)))
        )(params[name])
        jax.tree.map(
            lambda u, g, p, c=coefficient: np.testing.assert_allclose(u, g + c * p, rtol=1e-12),
            updates[name],
            gradient[name],
            penalty,
        )


@pytest.fixture
def regression():
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.normal(size=(12, 3))), "y": jnp.asarray(rng.normal(size=12))}

    def loss_fn(w, samples):
        return jnp.mean(jnp.cosh(samples["x"] @ w - samples["y"]))

    return loss_fn, batch, jnp.array([0.1, -0.2, 0.3])


def test_microbatches_recombine_to_the_batch(regression):
    loss_fn, batch, w = regression
    value_fn, microbatch_value_fn = optax_igr.microbatched(loss_fn, batch, 4)
    assert float(value_fn(w)) == pytest.approx(float(loss_fn(w, batch)), rel=1e-14)
    parts = [microbatch_value_fn(w, b) for b in range(4)]
    assert float(sum(parts)) / 4 == pytest.approx(float(loss_fn(w, batch)), rel=1e-14)
    second = {"x": batch["x"][3:6], "y": batch["y"][3:6]}
    assert float(parts[1]) == pytest.approx(float(loss_fn(w, second)), rel=1e-14)
    v = jnp.array([1.0, 2.0, -1.0])
    for mode in derivatives.EXACT_MODES:
        np.testing.assert_allclose(
            derivatives.hessian_vector_product(value_fn, w, v, mode=mode),
            derivatives.hessian_vector_product(lambda w: loss_fn(w, batch), w, v),
            rtol=1e-12,
        )


def test_memory_is_that_of_one_microbatch():
    def loss_fn(w, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ w) ** 2)

    w, batch = jnp.ones((64, 64)), jnp.ones((4096, 64))
    whole = jax.jit(jax.grad(lambda w: loss_fn(w, batch))).lower(w).compile()
    value_fn, _ = optax_igr.microbatched(loss_fn, batch, 16)
    parts = jax.jit(jax.grad(value_fn)).lower(w).compile()
    temporary = [c.memory_analysis().temp_size_in_bytes for c in (parts, whole)]
    assert temporary[0] < temporary[1] / 4


def test_batch_that_does_not_divide_is_named(regression):
    loss_fn, batch, _ = regression
    with pytest.raises(ValueError, match=r"multiple of num_microbatches=5; leaf \['x'\]"):
        optax_igr.microbatched(loss_fn, batch, 5)
