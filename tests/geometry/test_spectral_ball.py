"""The spectral ball against singular value decompositions and the definition of a projection."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from tests.operators.test_operators import dense

project = optax_igr.projection_spectral_ball
DIAGONAL = jnp.diag(jnp.array([3.0, 2.0, 0.5], jnp.float64))


def test_clips_the_singular_values_and_is_nearer_than_the_division():
    clipped = project(DIAGONAL, 1.0)
    np.testing.assert_allclose(clipped, jnp.diag(jnp.array([1.0, 1.0, 0.5])), atol=1e-15)
    assert np.linalg.norm(clipped - DIAGONAL) == pytest.approx(5**0.5)
    assert np.linalg.norm(DIAGONAL / 3 - DIAGONAL) == pytest.approx(2.427, abs=1e-3)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_is_the_nearest_point_of_the_ball(shape):
    """By the obtuse angle at the projection, against random points of the ball."""
    rng = np.random.default_rng(0)
    w = jnp.array(rng.normal(size=shape))
    projected = project(w, 1.2)
    np.testing.assert_allclose(project(projected, 1.2), projected, atol=1e-14)
    for _ in range(50):
        other = rng.normal(size=shape)
        other *= 1.2 * rng.uniform() / np.linalg.norm(other, 2)
        assert np.sum((w - projected) * (other - projected)) <= 1e-12


@pytest.mark.parametrize(("groups", "is_complex"), [(1, False), (2, False), (1, True)])
def test_a_circular_convolution_as_large_as_its_input_is_projected_exactly(groups, is_complex):
    operator = optax_igr.conv_operator((3, 4), padding="CIRCULAR", feature_group_count=groups)
    kernel = jax.random.normal(jax.random.key(0), (3, 4, 2 // groups, 4), jnp.float64)
    if is_complex:
        kernel = kernel * jnp.exp(1j * kernel)
    left, values, right = np.linalg.svd(dense(operator, kernel), full_matrices=False)
    radius = float(np.median(values))
    expected = (left * np.minimum(values, radius)) @ right
    np.testing.assert_allclose(
        dense(operator, project(kernel, radius, operator=operator)), expected, atol=1e-12
    )


def test_each_matrix_of_a_stack_is_projected_and_biases_stay():
    tree = {"w": jnp.stack([DIAGONAL, DIAGONAL / 4]), "b": jnp.full([3], 9.0)}
    found = project(tree, 1.0, operator=optax_igr.matrix_operator())
    np.testing.assert_allclose(found["w"][0], project(DIAGONAL, 1.0), atol=1e-15)
    np.testing.assert_allclose(found["w"][1], DIAGONAL / 4, atol=1e-15)
    np.testing.assert_array_equal(found["b"], 9)


def test_keeps_training_in_the_ball():
    ball = functools.partial(project, radius=1.0)
    optimizer = optax.chain(optax.sgd(0.3), optax_igr.keep_params_in(ball))
    params = jnp.zeros([3, 3], jnp.float64)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(params - DIAGONAL, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(60):
        params, state = step(params, state)
        assert np.linalg.norm(params, 2) <= 1 + 1e-12
    np.testing.assert_allclose(params, project(DIAGONAL, 1.0), atol=1e-8)


@pytest.mark.parametrize(
    ("tree", "arguments", "message"),
    [
        (DIAGONAL, {"radius": 0.0}, "`radius`"),
        (DIAGONAL, {"radius": lambda t: 1.0}, "`radius` must be a constant"),
        ({"k": jnp.ones([3, 3, 1, 1])}, {"radius": 1.0}, r"leaf \['k'\].*more than two axes"),
        (
            {"k": jnp.ones([3, 3, 1, 1])},
            {"radius": 1.0, "operator": optax_igr.conv_operator((8, 8), padding="CIRCULAR")},
            r"leaf \['k'\].*no closed form",
        ),
        (
            {"k": jnp.ones([8, 8, 1, 1])},
            {"radius": 1.0, "operator": optax_igr.conv_operator((8, 8))},
            r"leaf \['k'\].*no closed form",
        ),
    ],
)
def test_what_has_no_projection_is_named(tree, arguments, message):
    with pytest.raises(ValueError, match=f"projection_spectral_ball: {message}"):
        project(tree, **arguments)
