"""A kink of a loss is a jump of its gradient: what JAX writes with a maximum and is smooth is none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_igr._core import precision

_RNG = np.random.default_rng(0)
X = jnp.asarray(_RNG.normal(size=(8, 6)), jnp.float32)
LABELS = jnp.arange(8) % 4
TARGETS = jax.nn.one_hot(LABELS, 4)
PARAMS = [
    jnp.asarray(_RNG.normal(size=(6, 6)), jnp.float32),
    jnp.asarray(_RNG.normal(size=(6, 4)), jnp.float32),
]


def cross_entropy(logits):
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, LABELS))


def network(activation, loss=cross_entropy):
    return lambda w: loss(activation(X @ w[0]) @ w[1])


def recurrent(activation):
    def loss(w):
        return cross_entropy(
            jax.lax.scan(lambda h, _: (activation(h @ w[0]), None), X, length=3)[0] @ w[1]
        )

    return loss


def attention(w):
    queries = (X @ w[0])[None, :, None]
    return cross_entropy(
        jax.nn.dot_product_attention(queries, queries, X[None, :, None], is_causal=True)[0, :, 0]
        @ w[1]
    )


def layer_norm_of_flax(w):
    linen = pytest.importorskip("flax.linen")
    layer = linen.LayerNorm()
    variables = layer.init(jax.random.key(0), X)
    return cross_entropy(jnp.tanh(layer.apply(variables, X @ w[0])) @ w[1])


def fast_variance(h, mean_of=lambda h: h):
    mean = jnp.mean(mean_of(h), 1, keepdims=True)
    variance = jnp.maximum(0.0, jnp.mean(h**2, 1, keepdims=True) - mean**2)
    return h * jax.lax.rsqrt(variance + 1e-5)


SMOOTH = {
    "tanh": network(jnp.tanh),
    "gelu": network(jax.nn.gelu),
    "exact gelu": network(lambda h: jax.nn.gelu(h, approximate=False)),
    "silu": network(jax.nn.silu),
    "softplus": network(jax.nn.softplus),
    "softmax": network(jax.nn.softmax),
    "mean squared error": network(jnp.tanh, lambda z: jnp.mean((z - TARGETS) ** 2)),
    "soft labels": network(
        jnp.tanh, lambda z: jnp.mean(optax.losses.softmax_cross_entropy(z, TARGETS))
    ),
    "binary": network(
        jnp.tanh, lambda z: jnp.mean(optax.losses.sigmoid_binary_cross_entropy(z, TARGETS))
    ),
    "logsumexp": network(jnp.tanh, jax.nn.logsumexp),
    "standardize": network(lambda h: jax.nn.standardize(jnp.tanh(h))),
    "variance clipped at zero": network(fast_variance),
    "LayerNorm": layer_norm_of_flax,
    "attention": attention,
    "loop": recurrent(jnp.tanh),
    "remat": network(jax.checkpoint(jnp.tanh)),
    "jit": jax.jit(network(jnp.tanh)),
    "clip of a constant": lambda w: network(jnp.tanh)(w) * jnp.clip(jnp.float32(3.0), 0, 1),
    "maximum of data": lambda w: cross_entropy(jnp.tanh(jnp.maximum(X, 0) @ w[0]) @ w[1]),
    "where of data": network(lambda h: jnp.where(X > 0, jnp.tanh(h), 0)),
    "norm": lambda w: network(jnp.tanh)(w) + jnp.sqrt(jnp.sum(w[0] ** 2)),
}
KINKED = {
    "relu": network(jax.nn.relu),
    "leaky_relu": network(jax.nn.leaky_relu),
    "abs": network(jnp.abs),
    "hard_tanh": network(jax.nn.hard_tanh),
    "maximum of parameters": lambda w: jnp.sum(jnp.maximum(w[0], 2 * w[0].T)),
    "clip": network(lambda h: jnp.clip(h, -1, 1)),
    "clamp": network(lambda h: jax.lax.clamp(jnp.float32(-1), h, jnp.float32(1))),
    "where": network(lambda h: jnp.where(h > 0, h, 0)),
    "max pooling": network(
        lambda h: jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2), (1, 1), "SAME")
    ),
    "largest": network(jnp.tanh, lambda z: jnp.mean(jnp.max(z, 1))),
    "sort": lambda w: jnp.sum(jnp.sort((X @ w[0]).ravel())[:5]),
    "absolute error": network(jnp.tanh, lambda z: jnp.mean(jnp.abs(z - TARGETS))),
    "loop": recurrent(jax.nn.relu),
    "remat": network(jax.checkpoint(jax.nn.relu)),
    "branch": lambda w: jax.lax.cond(w[0][0, 0] > 0, network(jnp.tanh), network(jnp.sin), w),
    "straight through": network(lambda h: h + jax.lax.stop_gradient(jnp.round(h) - h)),
    "ranks": network(lambda h: h * jnp.sum(h[:, :, None] > h[:, None, :], 1)),
    "no variance": network(lambda h: fast_variance(h, lambda h: h + 2)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_what_is_smooth_has_no_kinks(name):
    assert not precision.of(SMOOTH[name], PARAMS).has_kinks


@pytest.mark.parametrize("name", KINKED)
def test_kinks_are_found(name):
    # A loss that cannot be traced counts as one with kinks.
    jax.eval_shape(jax.grad(KINKED[name]), PARAMS)
    assert precision.of(KINKED[name], PARAMS).has_kinks
