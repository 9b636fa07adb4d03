"""Operators from Flax modules, against the Jacobian of each module."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import optax_igr.diagnostics
import optax_igr.flax
from optax_igr.operators import leaves


def resolved(operator, params):
    return {
        jax.tree_util.keystr(path): choice
        for path, choice in jax.tree_util.tree_leaves_with_path(
            leaves.resolve("name", params, operator)
        )
    }


class Network(nnx.Module):
    """Every kind of kernel there is, and a normalisation with statistics that move."""

    def __init__(self, rngs):
        self.convolutions = nnx.List(
            [
                nnx.Conv(2, 4, (3, 3), strides=2, padding="CIRCULAR", rngs=rngs),
                nnx.Conv(4, 4, (3, 3), feature_group_count=2, padding=1, rngs=rngs),
            ]
        )
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.causal = nnx.Conv(4, 6, (3,), kernel_dilation=2, padding="CAUSAL", rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.embedding = nnx.Embed(5, 6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        for convolution in self.convolutions:
            x = convolution(x)
        x = self.norm(x).reshape(len(x), -1, 4)
        return self.head(self.attention(self.causal(x)) + self.embedding(jnp.array([[1]])))


def test_nnx_modules():
    model = Network(nnx.Rngs(0))
    mean = jnp.array(model.norm.mean[...])
    operator = optax_igr.flax.operators(model, jax.ShapeDtypeStruct((1, 8, 6, 2), jnp.float32))
    np.testing.assert_array_equal(model.norm.mean[...], mean)
    attention = dict.fromkeys(("key", "query", "value"), optax_igr.matrix_operator(-3, (-2, -1)))
    attention["out"] = optax_igr.matrix_operator((-3, -2), -1)
    expected = {
        "['convolutions'][0]": optax_igr.conv_operator((8, 6), strides=2, padding="CIRCULAR"),
        "['convolutions'][1]": optax_igr.conv_operator(
            (4, 3), padding=((1, 1), (1, 1)), feature_group_count=2
        ),
        "['causal']": optax_igr.conv_operator(12, kernel_dilation=2, padding=((4, 0),)),
        "['head']": optax_igr.matrix_operator(),
        **{f"['attention']['{name}']": choice for name, choice in attention.items()},
    }
    expected = {f"{path}['kernel']": choice for path, choice in expected.items()}
    expected["['embedding']['embedding']"] = optax_igr.matrix_operator()
    state = nnx.state(model, nnx.Param)
    assert resolved(operator, nnx.as_pure(state)) == expected
    variables = resolved(operator, state)
    assert {path.removesuffix(".value"): choice for path, choice in variables.items()} == expected


def jacobian_norm(function, shape):
    jacobian = jax.jacobian(lambda x: function(x[None])[0])(jnp.zeros(shape))
    return np.linalg.norm(np.reshape(jacobian, (-1, int(np.prod(shape)))), 2)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda r: nnx.Conv(2, 3, (3, 2), strides=(2, 1), rngs=r), (6, 5, 2)),
        (lambda r: nnx.Conv(2, 2, (3,), padding="CAUSAL", kernel_dilation=2, rngs=r), (6, 2)),
        (lambda r: nnx.Conv(2, 4, (3,), padding=((2, 1),), feature_group_count=2, rngs=r), (6, 2)),
        (lambda r: nnx.LinearGeneral((2, 3), (4, 2), axis=(-2, -1), rngs=r), (2, 3)),
    ],
)
def test_the_norm_is_that_of_the_modules_jacobian(layer, shape):
    module = layer(nnx.Rngs(0))
    operator = optax_igr.flax.operators(module, jnp.zeros([1, *shape]))
    kernel = nnx.as_pure(nnx.state(module, nnx.Param))["kernel"]
    path = (jax.tree_util.DictKey("kernel"),)
    norm = optax_igr.diagnostics.spectral_norm(
        kernel, operator=operator(path, kernel), tolerance=1e-5, max_steps=3000
    )
    assert float(norm) == pytest.approx(jacobian_norm(module, shape), rel=1e-4)


def test_linen_modules():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(4, (3, 3), strides=(2, 1), padding="CIRCULAR", name="conv")(x)
            x = x.reshape(*x.shape[:-3], -1, 4)
            x = linen.MultiHeadDotProductAttention(2, name="attention")(x)
            return linen.Dense(3, name="head")(x)

    model, inputs = Model(), jnp.ones([1, 4, 6, 2])
    params = model.init(jax.random.key(0), inputs)
    operator = optax_igr.flax.operators(model, inputs)
    found = resolved(operator, params["params"])
    assert found["['conv']['kernel']"] == optax_igr.conv_operator(
        (4, 6), strides=(2, 1), padding="CIRCULAR"
    )
    assert found["['attention']['query']['kernel']"] == optax_igr.matrix_operator(-3, (-2, -1))
    assert found["['attention']['out']['kernel']"] == optax_igr.matrix_operator((-3, -2), -1)
    assert found["['head']['kernel']"] == optax_igr.matrix_operator()
    assert len(found) == 6
    whole = resolved(operator, params)
    assert {path.removeprefix("['params']"): choice for path, choice in whole.items()} == found


def test_bounds_and_decay_through_a_sequential_model():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Conv(1, 3, (3, 3), rngs=rngs), nnx.relu, nnx.Conv(3, 2, (3, 3), strides=2, rngs=rngs)
    )
    inputs = jax.random.normal(jax.random.key(0), (2, 6, 6, 1))
    operator = optax_igr.flax.operators(model, inputs)
    graphdef, state = nnx.split(model)
    params = nnx.as_pure(state)

    def upper_and_lower(params):
        bounds = optax_igr.diagnostics.lipschitz_bounds(
            lambda p, x: nnx.merge(graphdef, p)(x), params, inputs, operator=operator, num_steps=10
        )
        return float(bounds.upper), float(bounds.lower)

    upper, lower = upper_and_lower(params)
    assert 0 < lower < upper
    decay = optax_igr.add_schatten_decay(0.01, gram_steps=3, operator=operator)
    optimizer = nnx.Optimizer(model, optax.chain(decay, optax.sgd(1.0)), wrt=nnx.Param)
    for _ in range(5):
        optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    assert upper_and_lower(nnx.as_pure(nnx.state(model)))[0] < 0.95 * upper


def test_what_is_unknown_is_named():
    rngs = nnx.Rngs(0)
    conv = nnx.Sequential(nnx.Conv(1, 1, (3,), rngs=rngs))
    with pytest.raises(ValueError, match=r"'layers', 0.*not reached by the inputs"):
        optax_igr.flax.operators(conv)
    shared = nnx.Conv(1, 1, (3,), strides=2, rngs=rngs)
    with pytest.raises(ValueError, match="inputs of two shapes"):
        optax_igr.flax.operators(nnx.Sequential(shared, shared), jnp.ones([1, 8, 1]))
    reflecting = nnx.Conv(1, 1, (3,), padding="REFLECT", rngs=rngs)
    with pytest.raises(ValueError, match="reflecting padding"):
        optax_igr.flax.operators(reflecting, jnp.ones([1, 8, 1]))
    transposed = nnx.ConvTranspose(1, 1, (3,), rngs=rngs)
    with pytest.raises(ValueError, match="not reached by the inputs"):
        optax_igr.flax.operators(transposed)
