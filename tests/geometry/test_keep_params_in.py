import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr as igr


def project_on_box(tree):
    return jax.tree.map(lambda x: jnp.clip(x, -0.5, 2.0), tree)


def apply(optimizer, params, updates):
    stepped, _ = jax.jit(optimizer.update)(updates, optimizer.init(params), params)
    return optax.apply_updates(params, stepped)


def test_the_stepped_parameters_are_projected():
    params = {"a": jnp.array([1.0, -0.3]), "b": (jnp.array([[0.1]]), None)}
    updates = {"a": jnp.array([5.0, -0.1]), "b": (jnp.array([[-9.0]]), None)}
    stepped = apply(igr.keep_params_in(project_on_box), params, updates)
    np.testing.assert_allclose(stepped["a"], [2.0, -0.4], rtol=1e-14)
    np.testing.assert_allclose(stepped["b"][0], [[-0.5]], rtol=1e-14)


def test_non_negativity_is_that_of_optax():
    keys = jax.random.split(jax.random.key(0))
    params = jnp.abs(jax.random.normal(keys[0], (50,)))
    updates = jax.random.normal(keys[1], (50,))
    np.testing.assert_allclose(
        apply(igr.keep_params_in(optax.projections.projection_non_negative), params, updates),
        apply(optax.keep_params_nonnegative(), params, updates),
        atol=1e-15,
    )


def test_projected_gradient_descent_finds_the_nearest_point_of_the_ball():
    target = jnp.array([3.0, 4.0])
    ball = functools.partial(optax.projections.projection_l2_ball, scale=1.0)
    optimizer = optax.chain(optax.sgd(0.3), igr.keep_params_in(ball))
    params, state = jnp.zeros(2), optimizer.init(jnp.zeros(2))
    for _ in range(60):
        updates, state = optimizer.update(params - target, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, [0.6, 0.8], rtol=1e-6)


def test_the_projection_sees_float32_and_the_update_is_narrow():
    seen = []

    def projection(tree):
        seen.append(tree.dtype)
        return jnp.clip(tree, 0.0, 1.0)

    params = jnp.array([0.5, 0.25], jnp.bfloat16)
    stepped = apply(igr.keep_params_in(projection), params, jnp.array([1e-3, 4.0], jnp.float32))
    assert stepped.dtype == jnp.bfloat16
    assert seen[0] == jnp.float32
    np.testing.assert_array_equal(stepped.astype(jnp.float32), [0.5, 1.0])


def test_only_the_leaves_of_a_mask_are_projected():
    optimizer = optax.masked(igr.keep_params_in(project_on_box), {"a": True, "b": False})
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    stepped = apply(optimizer, params, {"a": jnp.full(2, 9.0), "b": jnp.full(2, 9.0)})
    np.testing.assert_allclose(stepped["a"], 2.0)
    np.testing.assert_allclose(stepped["b"], 10.0)


def test_errors_name_the_transform():
    with pytest.raises(ValueError, match="keep_params_in: `projection` must be a function"):
        igr.keep_params_in(1.0)
    optimizer = igr.keep_params_in(lambda tree: tree[:1])
    with pytest.raises(ValueError, match=r"keep_params_in: `projection\(params\)` must agree"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))
    with pytest.raises(ValueError, match="keep_params_in needs the current parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
