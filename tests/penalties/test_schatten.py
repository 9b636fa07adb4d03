"""Schatten decay against singular value decompositions in float64."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr

W = jax.random.normal(jax.random.key(1), (5, 7), jnp.float64)


def decay_of(params, **options):
    """What one update adds to nothing, and the state after it."""
    transform = optax_igr.add_schatten_decay(1.0, **options)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.jit(transform.update)(zeros, transform.init(params), params)


def schatten_gradient(w, p):
    """∇½‖W‖² in the Schatten norm, from the singular values."""
    left, values, right = np.linalg.svd(w, full_matrices=False)
    relative = values / values[0]
    norm = np.sum(relative**p) ** (1 / p)
    return (left * (values[0] * norm ** (2 - p) * relative ** (p - 1))) @ right, values[0] * norm


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6)])
@pytest.mark.parametrize("gram_steps", [0, 1, 2, 4])
def test_is_the_gradient_of_half_the_squared_norm(gram_steps, shape):
    w = jnp.resize(W, shape)
    gradient, norm = schatten_gradient(w, 2 ** (gram_steps + 1))
    updates, state = decay_of(w, gram_steps=gram_steps)
    np.testing.assert_allclose(updates, gradient, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(state.schatten_norms, norm, rtol=1e-13)


def test_without_gram_steps_it_is_the_weight_itself():
    updates, _ = decay_of({"w": W, "b": jnp.ones(3)})
    np.testing.assert_array_equal(updates["w"], W)
    np.testing.assert_array_equal(updates["b"], 0)


def test_eight_gram_steps_are_the_spectral_norm():
    left, values, right = np.linalg.svd(W)
    updates, state = decay_of(W, gram_steps=8)
    expected = values[0] * np.outer(left[:, 0], right[0])
    np.testing.assert_allclose(updates, expected, atol=1e-12)
    assert float(state.schatten_norms) == pytest.approx(values[0], rel=1e-13)


def test_every_member_bounds_the_spectral_norm_and_decreases_to_it():
    norms = [float(decay_of(W, gram_steps=t)[1].schatten_norms) for t in (0, 1, 2, 4, 8)]
    assert np.all(np.diff(norms) <= 1e-14)
    assert norms[-1] >= np.linalg.norm(W, 2) * (1 - 1e-15)


@pytest.mark.parametrize("gram_steps", [0, 3])
def test_every_member_pulls_equally_hard_for_its_norm(gram_steps):
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4), jnp.float64)
    for weight, operator in ((W, None), (kernel, optax_igr.conv_operator((5, 6), strides=2))):
        updates, state = decay_of(weight, gram_steps=gram_steps, operator=operator)
        assert float(jnp.sum(weight * updates)) == pytest.approx(
            float(state.schatten_norms) ** 2, rel=1e-12
        )


def test_each_matrix_of_a_stack_has_its_own_norm():
    stack = jnp.stack([W, 3 * W[:, ::-1]])
    updates, state = decay_of(stack, gram_steps=2, operator=optax_igr.matrix_operator())
    for index in range(2):
        gradient, norm = schatten_gradient(stack[index], 8)
        np.testing.assert_allclose(updates[index], gradient, rtol=1e-11, atol=1e-13)
        assert float(state.schatten_norms[index]) == pytest.approx(norm, rel=1e-13)


def test_a_circular_convolution_without_gram_steps_decays_once_for_every_place():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4), jnp.float64)
    operator = optax_igr.conv_operator((5, 6), padding="CIRCULAR")
    np.testing.assert_allclose(decay_of(kernel, operator=operator)[0], 30 * kernel, rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("scale", [1e-34, 1.0, 1e37])
@pytest.mark.parametrize("gram_steps", [0, 3, 12])
def test_no_power_overflows_or_underflows(scale, dtype, gram_steps):
    w = (scale * W).astype(dtype)
    gradient, norm = schatten_gradient(np.float64(w), 2 ** (gram_steps + 1))
    updates, state = decay_of(w, gram_steps=gram_steps)
    assert updates.dtype == dtype
    assert float(state.schatten_norms) == pytest.approx(norm, rel=1e-5)
    error = np.linalg.norm(np.float64(updates) - gradient) / np.linalg.norm(gradient)
    assert error < 4 * float(jnp.finfo(dtype).eps) + 1e-5


def test_equal_singular_values_and_a_rank_of_one_survive_many_gram_steps():
    """All powers of the identity are flat, those of ones grow with every product."""
    for w, gradient in ((jnp.eye(64), jnp.eye(64) / 64), (jnp.ones([64, 64]), jnp.ones([64, 64]))):
        updates, _ = decay_of(w.astype(jnp.float32), gram_steps=20)
        np.testing.assert_allclose(updates, gradient, rtol=1e-3)


def test_a_zero_weight_is_left_where_it_is():
    updates, state = decay_of(jnp.zeros([3, 4]), gram_steps=3)
    np.testing.assert_array_equal(updates, 0)
    assert float(state.schatten_norms) == 0


@pytest.mark.parametrize("gram_steps", [0, 2])
def test_the_gradient_is_kept_between_refreshes(gram_steps):
    transform = optax_igr.add_schatten_decay(
        lambda t: 1.0 + t, gram_steps=gram_steps, refresh_interval=3
    )
    params = {"w": W, "b": jnp.ones([2], jnp.float64)}
    state = transform.init(params)
    update = jax.jit(transform.update)
    zeros = jax.tree.map(jnp.zeros_like, params)
    found = []
    for _ in range(4):
        updates, state = update(zeros, state, params)
        found.append(updates["w"])
        params = {"w": params["w"] * 2 + 1, "b": params["b"]}
    first, last = (schatten_gradient(w, 2 ** (gram_steps + 1))[0] for w in (W, 8 * W + 7))
    expected = [first, 2 * first, 3 * first, 4 * last]
    for updates, gradient in zip(found, expected, strict=True):
        np.testing.assert_allclose(updates, gradient, rtol=1e-10, atol=1e-12)


def test_coupled_and_decoupled_differ_with_adam_and_not_with_descent():
    """The published contrast of L2 regularisation and weight decay; t = 0 is both."""
    decay = optax_igr.add_schatten_decay(0.1)
    w = jnp.array([[1.0, -2.0]])

    def trained(optimizer):
        params, state = w, optimizer.init(w)
        for _ in range(5):
            updates, state = optimizer.update(params * 0.1 + 0.3, state, params)
            params = optax.apply_updates(params, updates)
        return params

    rate = optax.scale_by_learning_rate(0.1)
    coupled = trained(optax.chain(decay, optax.scale_by_adam(), rate))
    decoupled = trained(optax.chain(optax.scale_by_adam(), decay, rate))
    adam_w = trained(optax.adamw(0.1, weight_decay=0.1))
    np.testing.assert_allclose(decoupled, adam_w, rtol=1e-6)
    assert jnp.max(jnp.abs(coupled - decoupled)) > 0.01
    np.testing.assert_allclose(
        trained(optax.chain(decay, rate)),
        trained(optax.chain(rate, optax_igr.add_schatten_decay(-0.01))),
        rtol=1e-6,
    )


def test_costs_two_matrix_products_a_gram_step():
    params = jnp.ones([192, 128], jnp.float32)

    def flops(gram_steps):
        transform = optax_igr.add_schatten_decay(1.0, gram_steps=gram_steps)
        state = transform.init(params)
        compiled = jax.jit(transform.update).lower(params, state, params).compile()
        return compiled.cost_analysis()["flops"]

    one_product = 2 * 192 * 128**2
    for gram_steps in (1, 2, 4):
        assert flops(gram_steps) <= 1.05 * 2 * gram_steps * one_product


def test_an_eager_update_compiles_one_branch_for_all_leaves_of_a_shape():
    """It was one for each leaf at each update: 105 seconds for 500 leaves."""
    params = {str(index): jnp.ones([3, 5]) for index in range(20)}
    transform = optax_igr.add_schatten_decay(1.0, gram_steps=1, refresh_interval=2)
    state = transform.init(params)
    schatten_module = sys.modules["optax_igr.penalties.schatten"]
    before = schatten_module._refresh_if._cache_size()
    for _ in range(2):
        _, state = transform.update(params, state, params)
    assert schatten_module._refresh_if._cache_size() <= before + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coefficient": "big"}, "coefficient"),
        ({"coefficient": 1.0, "gram_steps": -1}, "gram_steps"),
        ({"coefficient": 1.0, "gram_steps": 1.5}, "gram_steps"),
        ({"coefficient": 1.0, "refresh_interval": 0}, "refresh_interval"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"add_schatten_decay: `{message}`"):
        optax_igr.add_schatten_decay(**arguments)
