"""A rule on paths sees the same paths in `init`, `update` and tables, whatever framework the parameters are from."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import optax_igr

KERNEL = np.array([[0.5, -0.3], [0.2, 0.9], [-0.4, 0.1]])
BIAS = np.array([0.3, -0.7])
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["kernel", "bias"], meta_fields=[])
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array


def from_dict():
    params = {"layer": {"kernel": jnp.asarray(KERNEL), "bias": jnp.asarray(BIAS)}}
    return params, params


def from_dataclass():
    params = {"layer": Layer(jnp.asarray(KERNEL), jnp.asarray(BIAS))}
    return params, params


def from_nnx():
    """An optimizer of NNX hands variables to `init` and their values to `update`."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(3, 2, rngs=rngs)

    model = Model(nnx.Rngs(0))
    nnx.update(model, from_dict()[0])
    state = nnx.state(model, nnx.Param)
    return state, nnx.as_pure(state)


class Dense(linen.Module):
    boxes: bool

    @linen.compact
    def __call__(self, x):
        initializer = linen.initializers.ones_init()
        if self.boxes:
            initializer = linen.with_partitioning(initializer, ("in", "out"))
        return linen.Dense(2, name="layer", kernel_init=initializer)(x)


def from_linen(boxes):
    params = Dense(boxes).init(jax.random.key(0), X)["params"]
    values = from_dict()[0]
    params = jax.tree.map(
        lambda box, x: box.replace_boxed(x) if boxes and isinstance(box, linen.Partitioned) else x,
        params,
        values,
        is_leaf=lambda x: isinstance(x, linen.Partitioned),
    )
    return params, params


class Model(eqx.Module):
    layer: eqx.nn.Linear


def from_equinox():
    layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    leaves = (jnp.asarray(KERNEL).T, jnp.asarray(BIAS))
    layer = eqx.tree_at(lambda m: (m.weight, m.bias), layer, leaves)
    params = eqx.filter(Model(layer), eqx.is_inexact_array)
    return params, params


FRAMEWORKS = {
    "dict": from_dict,
    "dataclass": from_dataclass,
    "NNX": from_nnx,
    "Linen": lambda: from_linen(boxes=False),
    "Linen boxed": lambda: from_linen(boxes=True),
    "Equinox": from_equinox,
}
every_framework = pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS.keys())


def values_of(params):
    """Returns kernel and bias; the kernel of Equinox lies the other way."""
    bias, kernel = sorted(jax.tree.leaves(params), key=lambda x: x.ndim)
    return (kernel.T if kernel.shape == (2, 3) else kernel), bias


def value_fn(params):
    kernel, bias = values_of(params)
    return jnp.mean(jnp.sum(jnp.tanh(X @ kernel + bias[None]) ** 2, axis=-1))


def spelled(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_bias(path):
    return spelled(path) == "layer/bias"


def kernels_alone(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_bias(path), params)


def by_name(path, leaf):
    del leaf
    return 0.25 if is_bias(path) else 2.0


def operator_of(path, leaf):
    """Says nothing of a bias, and of a kernel which way it maps."""
    if is_bias(path):
        return None
    return (
        optax_igr.matrix_operator() if leaf.shape == (3, 2) else optax_igr.matrix_operator(-1, -2)
    )


TRANSFORMS = {
    "scale_by_path": lambda: optax_igr.scale_by_path(by_name),
    "layerwise_decay": lambda: optax_igr.layerwise_decay(0.5, lambda p: 0 if is_bias(p) else 1, 3),
    "spectral, mask": lambda: optax_igr.add_spectral_decay(0.1, power_steps=50, mask=kernels_alone),
    "spectral, operator": lambda: optax_igr.add_spectral_decay(
        0.1, power_steps=50, operator=operator_of
    ),
    "schatten, mask": lambda: optax_igr.add_schatten_decay(0.1, mask=kernels_alone),
    "schatten, operator": lambda: optax_igr.add_schatten_decay(
        0.1, gram_steps=2, operator=operator_of
    ),
    "gradient penalty, mask": lambda: optax_igr.add_gradient_penalty(0.1, mask=kernels_alone),
    "optax.masked": lambda: optax.masked(optax.scale(3.0), kernels_alone),
}


def updates_of(transform, framework):
    at_init, at_update = framework()
    # As `nnx.Optimizer` does before it calls `update`.
    state = nnx.as_pure(transform.init(at_init))
    grads = jax.grad(value_fn)(at_update)
    for _ in range(2):
        updates, state = jax.jit(
            lambda grads, state, params: transform.update(grads, state, params, value_fn=value_fn)
        )(grads, state, at_update)
    return values_of(updates)


@every_framework
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_a_rule_acts_as_on_a_dict(framework, transform):
    for found, expected in zip(
        updates_of(transform(), framework), updates_of(transform(), from_dict), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    kernel, bias = values_of(jax.grad(value_fn)(from_dict()[1]))
    found_kernel, found_bias = updates_of(transform(), framework)
    assert jnp.abs(found_kernel - kernel).max() > 1e-3
    is_scaled = transform in (TRANSFORMS["scale_by_path"], TRANSFORMS["layerwise_decay"])
    assert np.allclose(found_bias, bias) != is_scaled


@every_framework
def test_a_rule_sees_the_same_paths_in_init_update_and_table(framework):
    seen = []

    def factor_fn(path, leaf):
        seen.append((spelled(path), leaf.shape))
        return by_name(path, leaf)

    transform = optax_igr.scale_by_path(factor_fn)
    at_init, at_update = framework()
    state = transform.init(at_init)
    in_init = sorted(seen)
    seen.clear()
    transform.update(at_update, state, at_update)
    assert sorted(seen) == in_init
    weight = "weight" if framework is from_equinox else "kernel"
    assert [path for path, _ in in_init] == ["layer/bias", f"layer/{weight}"]
    table = [line.split() for line in optax_igr.factor_table(transform, at_init).splitlines()[1:]]
    factors = {line[0]: line[-1] for line in table}
    assert factors == {"layer/bias": "0.25", f"layer/{weight}": "2"}


def test_a_rule_acts_on_the_parameters_of_an_nnx_optimizer():
    """The step of the framework itself, and a mask in each of the ways to write one."""

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=rngs)

    def loss_fn(model):
        return jnp.mean(jnp.tanh(model.layer(X)) ** 2)

    for transform in TRANSFORMS.values():
        model = Network(nnx.Rngs(0))
        before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        optimizer = nnx.Optimizer(model, optax.chain(transform(), optax.sgd(0.1)), wrt=nnx.Param)
        optax_igr.flax.train_step(model, optimizer, loss_fn)
        plain = optax.chain(transform(), optax.sgd(0.1))

        def value_fn(params):
            return jnp.mean(
                jnp.tanh(X @ params["layer"]["kernel"] + params["layer"]["bias"][None]) ** 2
            )

        updates, _ = plain.update(
            jax.grad(value_fn)(before), plain.init(before), before, value_fn=value_fn
        )
        expected = optax.apply_updates(before, updates)
        found = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
