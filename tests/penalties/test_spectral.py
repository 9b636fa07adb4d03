"""Spectral decay against singular value decompositions, closed forms and the dense operator."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from tests.operators.test_operators import dense

LAPLACIAN = jnp.array([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[:, :, None, None]


def with_gap(shape=(6, 4), ratio=0.5, seed=0):
    """A matrix whose second singular value is `ratio` of the first, 2."""
    left, _, right = np.linalg.svd(np.random.default_rng(seed).normal(size=shape))
    size = min(shape)
    return jnp.array((left[:, :size] * 2 * ratio ** np.arange(size)) @ right[:size])


def repeated(transform, params, num_steps):
    state = transform.init(params)
    update = jax.jit(transform.update)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for _ in range(num_steps):
        updates, state = update(zeros, state, params)
    return updates, state


def test_becomes_the_top_singular_triple():
    w = with_gap()
    left, values, right = np.linalg.svd(w)
    updates, state = repeated(optax_igr.add_spectral_decay(1.0), w, num_steps=30)
    np.testing.assert_allclose(
        updates, values[0] * np.outer(left[:, 0], right[0]), rtol=1e-12, atol=1e-13
    )
    assert float(optax.tree.get(state, "spectral_norms")) == pytest.approx(2, rel=1e-14)


def test_converges_by_the_square_of_the_gap_in_every_power_step():
    w = with_gap(ratio=0.7)
    errors = [
        2 - float(repeated(optax_igr.add_spectral_decay(1.0), w, steps)[1].spectral_norms)
        for steps in (8, 12)
    ]
    # The norm is a Rayleigh quotient: its error falls by the ratio to the fourth power.
    assert errors[1] > 0
    assert (errors[1] / errors[0]) ** (1 / 4) == pytest.approx(0.7**4, rel=0.02)


def test_more_power_steps_in_one_update_are_more_updates():
    w = with_gap()
    once, _ = repeated(optax_igr.add_spectral_decay(1.0, power_steps=4), w, 1)
    often, _ = repeated(optax_igr.add_spectral_decay(1.0), w, 4)
    np.testing.assert_allclose(once, often, rtol=1e-12)


def test_shrinks_the_top_singular_value_until_it_meets_the_second():
    optimizer = optax.chain(optax_igr.add_spectral_decay(1.0, power_steps=200), optax.sgd(0.1))
    params = jnp.diag(jnp.array([3.0, 2.0, 1.0], jnp.float64))
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    tops = []
    for _ in range(4):
        updates, state = update(jnp.zeros_like(params), state, params)
        params = optax.apply_updates(params, updates)
        tops.append(float(params[0, 0]))
        np.testing.assert_allclose(params[1:, 1:], jnp.diag(jnp.array([2.0, 1.0])), atol=1e-9)
    np.testing.assert_allclose(tops, [2.7, 2.43, 2.187, 1.9683], rtol=1e-9)
    for _ in range(40):
        updates, state = update(jnp.zeros_like(params), state, params)
        params = optax.apply_updates(params, updates)
    assert 0.8 < params[0, 0] / params[1, 1] < 1.25, "then the two fall together"


def test_the_gradient_is_half_the_derivative_of_the_squared_norm():
    w, direction = with_gap(), with_gap(seed=3)
    updates, _ = repeated(optax_igr.add_spectral_decay(1.0), w, 40)
    norms = [np.linalg.norm(w + h * direction, 2) for h in (1e-5, -1e-5)]
    difference = (norms[0] ** 2 - norms[1] ** 2) / 4e-5
    assert float(jnp.sum(updates * direction)) == pytest.approx(difference, rel=1e-8)


@pytest.mark.parametrize("power_steps", [1, 3])
def test_euler_holds_before_convergence_too(power_steps):
    w = with_gap(ratio=0.95)
    updates, state = repeated(optax_igr.add_spectral_decay(1.0, power_steps=power_steps), w, 1)
    norm = float(state.spectral_norms)
    assert norm < 1.999
    assert float(jnp.sum(w * updates)) == pytest.approx(norm**2, rel=1e-12)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
def test_a_convolution_is_iterated_as_itself(padding):
    kernel = jax.random.normal(jax.random.key(2), (3, 3, 2, 3), jnp.float64)
    kernel = kernel.at[1, 1, 0, 0].add(10)
    operator = optax_igr.conv_operator((5, 4), padding=padding, strides=(1, 2))
    value = np.linalg.svd(dense(operator, kernel), compute_uv=False)[0]
    updates, state = repeated(
        optax_igr.add_spectral_decay(1.0, operator=operator, power_steps=20), kernel, 40
    )
    assert float(state.spectral_norms) == pytest.approx(value, rel=1e-9)
    assert float(jnp.sum(kernel * updates)) == pytest.approx(value**2, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-34, 1e37])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: jnp.dtype(d).name)
def test_any_scale_of_weights(dtype, scale):
    w = (scale * with_gap()).astype(dtype)
    updates, state = repeated(optax_igr.add_spectral_decay(1.0), w, 30)
    assert updates.dtype == dtype
    expected = np.linalg.norm(np.float64(w), 2)
    assert float(state.spectral_norms) == pytest.approx(expected, rel=1e-5)


def test_a_weight_that_was_zero_or_broken_is_followed_again():
    transform = optax_igr.add_spectral_decay(1.0)
    w = with_gap()
    state = transform.init(w)
    update = jax.jit(transform.update)
    for broken in (jnp.zeros_like(w), w * jnp.nan, w * jnp.inf):
        _, state = update(jnp.zeros_like(w), state, broken)
        assert jnp.all(jnp.isfinite(state.singular_vectors))
    for _ in range(30):
        updates, state = update(jnp.zeros_like(w), state, w)
    assert float(jnp.sum(w * updates)) == pytest.approx(4, rel=1e-12)


def test_stacks_keep_a_vector_for_each_matrix():
    stack = jnp.stack([with_gap(), 3 * with_gap(seed=1)])
    transform = optax_igr.add_spectral_decay(1.0, operator=optax_igr.matrix_operator())
    _, state = repeated(transform, stack, 30)
    np.testing.assert_allclose(state.spectral_norms, [2, 6], rtol=1e-12)
    assert state.singular_vectors.shape == (2, 6)


@pytest.mark.parametrize(
    "decay", [optax_igr.add_spectral_decay, optax_igr.add_schatten_decay], ids=lambda f: f.__name__
)
def test_a_rule_on_paths_sees_the_same_paths_in_init_and_update_under_nnx(decay):
    """NNX hands variables to `init` and their values to `update`."""
    from flax import nnx

    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(4, 2, rngs=nnx.Rngs(1))
    )
    seen = set()

    def operator(path, leaf):
        seen.add(jax.tree_util.keystr(path))
        return optax_igr.matrix_operator() if leaf.ndim == 2 else None

    def only_the_first(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: jax.tree_util.keystr(path).endswith("[0]['kernel']"), tree
        )

    before = jax.tree.map(jnp.copy, nnx.as_pure(nnx.state(model, nnx.Param)))
    transforms = decay(1.0, operator=operator), decay(1.0, mask=only_the_first)
    for transform in transforms:
        optimizer = nnx.Optimizer(model, optax.chain(transform, optax.sgd(0.1)), wrt=nnx.Param)
        for _ in range(2):
            optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    layers = ("['layers'][0]", "['layers'][2]")
    assert seen == {f"{layer}['{name}']" for layer in layers for name in ("kernel", "bias")}
    after = nnx.as_pure(nnx.state(model, nnx.Param))["layers"]
    # Four steps shrank the first layer, two the other, by a tenth of the top singular value at most.
    norms = [
        np.linalg.norm(tree[layer]["kernel"])
        for layer in (0, 2)
        for tree in (before["layers"], after)
    ]
    assert norms[1] < norms[0]
    assert norms[3] < norms[2]
    np.testing.assert_array_equal(after[0]["bias"], before["layers"][0]["bias"])
