"""Factors by path against `optax.partition`, stacked against unstacked layers, and on Flax models."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import optax_igr

NUM_LAYERS = 4
RNG = np.random.default_rng(0)
PARAMS = {
    f"layer_{i}": {
        "kernel": jnp.asarray(RNG.normal(size=(3, 3))),
        "bias": jnp.asarray(RNG.normal(size=3)),
    }
    for i in range(NUM_LAYERS)
}


def depth_fn(path):
    found = re.search(
        r"layer_(\d+)|layers/(\d+)", jax.tree_util.keystr(path, simple=True, separator="/")
    )
    return int(found[1] or found[2]) if found else None


def forward(params, x):
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return jnp.sum(x**2)


def train(optimizer, params, value_fn, num_steps=4):
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(value_fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(num_steps):
        params, state = step(params, state)
    return params


def value_fn(params):
    return forward(params, jnp.array([0.5, -1.0, 2.0]))


def test_equals_a_partition_with_an_optimizer_for_each_layer():
    decay = 0.65
    one = optax.chain(
        optax.adamw(0.01, weight_decay=0.1), optax_igr.layerwise_decay(decay, depth_fn, NUM_LAYERS)
    )
    many = optax.partition(
        {
            f"layer_{d}": optax.adamw(0.01 * decay ** (NUM_LAYERS - 1 - d), weight_decay=0.1)
            for d in range(NUM_LAYERS)
        },
        {name: name for name in PARAMS},
    )
    chex.assert_trees_all_close(
        train(one, PARAMS, value_fn), train(many, PARAMS, value_fn), rtol=1e-12
    )


def test_the_last_layer_has_the_factor_one_and_each_before_it_decay_times_the_next():
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    transform = optax_igr.layerwise_decay(0.8, depth_fn, NUM_LAYERS)
    updates, _ = transform.update(ones, transform.init(PARAMS))
    for i in range(NUM_LAYERS):
        for factor in jax.tree.leaves(updates[f"layer_{i}"]):
            np.testing.assert_allclose(factor, 0.8 ** (NUM_LAYERS - 1 - i), rtol=1e-6)


def test_stacked_layers_equal_unstacked_ones():
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *PARAMS.values())

    def stacked_value_fn(params):
        def layer(x, p):
            return jnp.tanh(x @ p["kernel"] + p["bias"]), None

        return jnp.sum(jax.lax.scan(layer, jnp.array([0.5, -1.0, 2.0]), params)[0] ** 2)

    def optimizer(depth_fn):
        return optax.chain(optax.adam(0.01), optax_igr.layerwise_decay(0.5, depth_fn, NUM_LAYERS))

    found = train(optimizer(lambda path: np.arange(NUM_LAYERS)), stacked, stacked_value_fn)
    expected = train(optimizer(depth_fn), PARAMS, value_fn)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected.values())
    chex.assert_trees_all_close(found, expected, rtol=1e-9)


def test_schedules_are_evaluated_at_the_number_of_updates_so_far():
    transform = optax_igr.scale_by_path(
        lambda path, leaf: (lambda count: 1.0 + count) if leaf.ndim else 3.0
    )
    params = {"v": jnp.ones(2), "s": jnp.ones([])}
    state = transform.init(params)
    for t in range(3):
        updates, state = transform.update(params, state)
        np.testing.assert_allclose(updates["v"], 1 + t)
        np.testing.assert_allclose(updates["s"], 3)
    decay = optax_igr.layerwise_decay(lambda count: 0.5 / (1 + count), lambda path: 0, 2)
    _, state = decay.update(params, decay.init(params))
    np.testing.assert_allclose(decay.update(params, state)[0]["v"], 0.25)


def test_a_linen_and_an_nnx_model_by_the_same_rule():
    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x):
            for i in range(3):
                x = linen.Dense(4, name=f"layer_{i}")(x)
            return x

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])

    def factors(params):
        transform = optax_igr.layerwise_decay(0.5, depth_fn, 3)
        ones = jax.tree.map(jnp.ones_like, params)
        updates, _ = transform.update(ones, transform.init(ones), ones)
        return sorted(float(u.max()) for u in jax.tree.leaves(updates))

    expected = [0.25, 0.25, 0.5, 0.5, 1, 1]
    assert factors(Linen().init(jax.random.key(0), jnp.ones([1, 4]))) == expected
    assert factors(nnx.state(Nnx(nnx.Rngs(0)), nnx.Param)) == expected


def test_a_parameter_that_no_rule_covers_is_named_by_init_and_update():
    params = {**PARAMS, "head": jnp.ones(3)}
    transform = optax_igr.layerwise_decay(0.5, depth_fn, NUM_LAYERS)
    with pytest.raises(ValueError, match="layerwise_decay: no rule covers the parameter head"):
        transform.init(params)
    with pytest.raises(ValueError, match="scale_by_path: no rule covers the parameter head"):
        optax_igr.scale_by_path(lambda path, leaf: depth_fn(path)).init(params)
    with pytest.raises(ValueError, match="no rule covers the parameter head"):
        transform.update(params, transform.init(PARAMS))


@pytest.mark.parametrize("depth", [-1, 3, 1.5, np.arange(4)])
def test_a_depth_out_of_range_names_the_parameter(depth):
    transform = optax_igr.layerwise_decay(0.5, lambda path: depth, 3)
    with pytest.raises(ValueError, match=r"layerwise_decay: `depth_fn`.* 2; for w it returned"):
        transform.init({"w": jnp.ones(4)})


@pytest.mark.parametrize("shape", [(3,), (2, 3, 1), (3, 3)])
def test_a_factor_that_does_not_fit_names_the_parameter(shape):
    transform = optax_igr.scale_by_path(lambda path, leaf: jnp.ones(shape))
    with pytest.raises(ValueError, match="scale_by_path: the factor of w has shape"):
        transform.init({"w": jnp.ones([2, 3])})


def test_the_table_shows_the_factors_in_force():
    transform = optax_igr.scale_by_path(
        lambda path, leaf: np.array([0.5, 1.0, 2.0]) if leaf.ndim == 2 else 3.0
    )
    table = optax_igr.factor_table(transform, PARAMS["layer_0"])
    assert table.splitlines() == [
        "parameter  shape   factor",
        "bias       (3,)    3",
        "kernel     (3, 3)  0.5, 1, 2",
    ]


def test_a_table_names_the_range_of_factors_that_differ_within_a_layer():
    factors = np.array([[0.5, 1.0], [1.0, 1.0]])
    transform = optax_igr.scale_by_path(lambda path, leaf: factors)
    table = optax_igr.factor_table(transform, {"w": jnp.ones((2, 2, 3))})
    assert table.splitlines()[1].split() == ["w", "(2,", "2,", "3)", "0.5", "to", "1"]


def test_one_factor_may_stand_for_a_whole_axis():
    transform = optax_igr.scale_by_path(lambda path, leaf: jnp.array([[2.0], [3.0]]))
    updates, _ = transform.update(jnp.ones((2, 4, 2)), transform.init(jnp.ones((2, 4, 2))))
    np.testing.assert_array_equal(updates[:, 0, 0], [2, 3])
    np.testing.assert_array_equal(updates, updates[:, :1, :1] * jnp.ones((2, 4, 2)))


def test_a_half_precision_leaf_keeps_its_dtype_and_its_factor_is_not_rounded():
    transform = optax_igr.scale_by_path(lambda path, leaf: 1 / 3)
    given = jnp.arange(1, 256, dtype=jnp.bfloat16)
    updates, _ = transform.update(given, transform.init(given))
    assert updates.dtype == jnp.bfloat16
    exact = given.astype(jnp.float32) * jnp.float32(1 / 3)
    np.testing.assert_array_equal(updates, exact.astype(jnp.bfloat16))


def test_updates_that_are_not_those_of_the_parameters_are_named():
    transform = optax_igr.layerwise_decay(0.5, depth_fn, NUM_LAYERS)
    updates = {**PARAMS, "layer_1": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}}
    with pytest.raises(ValueError, match=r"layerwise_decay: `updates`.*layer_1.*kernel"):
        transform.update(updates, transform.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: optax_igr.scale_by_path(2.0), "scale_by_path: `factor_fn`"),
        (lambda: optax_igr.layerwise_decay(0.0, depth_fn, 3), "layerwise_decay: `decay`.*> 0"),
        (lambda: optax_igr.layerwise_decay(0.5, depth_fn, 0), "layerwise_decay: `num_layers`"),
        (lambda: optax_igr.layerwise_decay(0.5, [0, 1], 2), "layerwise_decay: `depth_fn`"),
    ],
)
def test_a_bad_argument_is_named(construct, message):
    with pytest.raises(ValueError, match=message):
        construct()


def last_key(path):
    return jax.tree_util.keystr(path[-1:], simple=True)


def bias_alone(path, leaf):
    """A rule on the last key of a path, which a box would hide."""
    del leaf
    return 2.0 if last_key(path) == "bias" else 0.5


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array


class LinenLayer(linen.Module):
    @linen.compact
    def __call__(self, x):
        initial = linen.with_partitioning(linen.initializers.ones, ("in", "out"))
        return linen.Dense(2, kernel_init=initial, name="dense")(x)


def nnx_state():
    return nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)


def linen_boxes():
    return LinenLayer().init(jax.random.key(0), jnp.ones((1, 3)))["params"]["dense"]


TREES = {
    "dict": lambda: {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    "dataclass": lambda: Layer(jnp.ones((3, 2)), jnp.ones(2)),
    "NNX": nnx_state,
    "NNX without boxes": lambda: nnx.to_pure_dict(nnx_state()),
    "Linen": lambda: linen.meta.unbox(linen_boxes()),
    "Linen with boxes": linen_boxes,
}


@pytest.mark.parametrize("make", TREES.values(), ids=TREES)
def test_a_rule_sees_one_path_in_init_in_update_and_in_the_table(make):
    params = make()
    transform = optax_igr.scale_by_path(bias_alone)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = transform.update(ones, transform.init(params), params)
    found = sorted((x.size, float(x.min()), float(x.max())) for x in jax.tree.leaves(updates))
    assert found == [(2, 2.0, 2.0), (6, 0.5, 0.5)]
    table = optax_igr.factor_table(transform, params).splitlines()[1:]
    assert sorted(" ".join(line.split()) for line in table) == [
        "bias (2,) 2",
        "kernel (3, 2) 0.5",
    ]


def test_an_nnx_optimizer_moves_what_the_table_says():
    """Its `init` sees variables, and its `update` their values."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    transform = optax_igr.scale_by_path(bias_alone)
    optimizer = nnx.Optimizer(model, optax.chain(transform, optax.scale(-1.0)), wrt=nnx.Param)
    gradient = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, gradient)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    np.testing.assert_allclose(before["bias"] - after["bias"], 2.0, rtol=1e-6)
    np.testing.assert_allclose(before["kernel"] - after["kernel"], 0.5, rtol=1e-6)


def test_leaves_that_are_no_real_numbers_are_left_alone():
    params = {"w": np.ones(2, np.float32), "step": np.int32(3)}
    transform = optax_igr.layerwise_decay(0.5, lambda path: 0, 2)
    updates, _ = transform.update(
        {"w": jnp.ones(2, jnp.float32), "step": 7}, transform.init(params), params
    )
    np.testing.assert_array_equal(updates["w"], 0.5)
    assert updates["step"] == 7
    assert "step       ()     left alone" in optax_igr.factor_table(transform, params)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_decay_out_of_range_leaves_the_last_layer_alone_to_move(value):
    transform = optax_igr.layerwise_decay(lambda t: value, lambda path: int(last_key(path)), 3)
    params = [jnp.ones(2)] * 3
    updates, _ = transform.update(params, transform.init(params), params)
    np.testing.assert_array_equal([u[0] for u in updates], [0, 0, 1])


def test_a_factor_that_is_not_finite_is_an_error_or_leaves_the_step_out():
    constant = optax_igr.scale_by_path(lambda path, leaf: np.nan)
    with pytest.raises(ValueError, match=r"scale_by_path: the factor of w must be finite"):
        constant.init({"w": jnp.ones(2)})
    schedule = optax_igr.scale_by_path(lambda path, leaf: lambda t: 1.0 / t)
    params = {"w": jnp.ones(2)}
    state = schedule.init(params)
    for expected in (0, 1, 0.5):
        updates, state = schedule.update(params, state)
        np.testing.assert_array_equal(updates["w"], expected)
