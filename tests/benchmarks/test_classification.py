import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.problems import classification


@pytest.mark.parametrize(("size", "strides"), [((7, 8), 2), ((5, 5), 1), ((6, 9), (3, 2))])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_convolution_by_slices_is_that_of_flax_with_its_gradients(size, strides, padding):
    images = jax.random.normal(jax.random.key(0), (2, *size, 3))

    def layer(**options):
        return nnx.Conv(3, 4, (3, 3), strides, padding=padding, rngs=nnx.Rngs(1), **options)

    def loss(model, x):
        outputs = model(x)
        return jnp.sum(jnp.sin(outputs)), outputs

    @nnx.jit
    def gradients_and_outputs(model):
        return nnx.grad(loss, argnums=(0, 1), has_aux=True)(model, images)

    ours = gradients_and_outputs(layer(conv_general_dilated=classification.convolution))
    theirs = gradients_and_outputs(layer())
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(theirs[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_accuracy_under_noise_is_that_of_parameters_times_one_plus_s():
    """Of one weight w > 0 with inputs ±1, the accuracy is the chance of 1 + s N(0, 1) being positive."""
    test = {"image": jnp.array([[1.0], [-1.0]]), "label": jnp.array([1, 0])}

    def accuracy(params, batch):
        return jnp.mean((batch["image"] @ params > 0)[:, 0] == batch["label"])

    many = jnp.ones((1, 1))
    found = classification.noise_robustness(accuracy)(many, None, test)
    assert found.shape == (len(classification.NOISE_SCALES),)
    # Without noise all are right. With it a draw turns all signs, or none.
    assert found[0] == 1
    draws = found * classification.NOISE_DRAWS
    np.testing.assert_allclose(draws, np.round(draws), atol=1e-5)
    drawn = [
        jax.random.normal(jax.random.split(key, 1)[0], ())
        for key in jax.random.split(jax.random.key(20), classification.NOISE_DRAWS)
    ]
    expected = [np.mean([1 + s * float(x) > 0 for x in drawn]) for s in classification.NOISE_SCALES]
    np.testing.assert_allclose(found, expected, atol=1e-6)
