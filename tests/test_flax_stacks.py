"""Operators of Flax's own modules, alone and in stacks, against the Jacobian of the module applied to a basis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import optax_igr.flax
from optax_igr import operators


def jacobian_norm(function, shape):
    """Of a function of one example, without batch."""
    jacobian = jax.jacobian(function)(jnp.zeros(shape))
    return np.linalg.norm(np.reshape(jacobian, (-1, int(np.prod(shape)))), 2)


def norms_of(tree, operator):
    """The norm of every parameter that has an operator, by its path."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        choice = operator(path, leaf)
        if choice is not None and leaf.ndim > 1:
            name = "/".join(str(getattr(entry, "key", entry)) for entry in path)
            found[name.removeprefix("params/")] = np.asarray(
                operators.spectral_norm(leaf, operator=choice, tolerance=1e-5, max_steps=3000)
            )
    return found


def linen_norms(model, *inputs, **kwargs):
    variables = model.init(jax.random.key(0), *inputs, **kwargs)
    operator = optax_igr.flax.operators(model, *inputs, **kwargs)
    return linen.unbox(variables)["params"], norms_of(linen.unbox(variables), operator)


LINEN_LAYERS = {
    "Dense": (linen.Dense(3), (4,)),
    "DenseGeneral": (linen.DenseGeneral((2, 3), axis=(-2, -1)), (4, 2)),
    "Einsum": (linen.Einsum((4, 2, 3), "...d,dnh->...nh"), (5, 4)),
    "Einsum back": (linen.Einsum((2, 3, 4), "btnh,nhd->btd"), (5, 2, 3)),
    "Conv": (linen.Conv(3, (3,), strides=2), (6, 2)),
    "ConvTranspose": (linen.ConvTranspose(3, (3, 2), strides=(2, 1)), (4, 5, 2)),
    "ConvTranspose VALID": (
        linen.ConvTranspose(3, (4,), strides=(2,), padding="VALID", transpose_kernel=True),
        (5, 2),
    ),
    "ConvTranspose CIRCULAR": (
        linen.ConvTranspose(3, (3,), padding="CIRCULAR", strides=(2,)),
        (5, 2),
    ),
}


@pytest.mark.parametrize("name", LINEN_LAYERS)
def test_a_linen_layer(name):
    layer, shape = LINEN_LAYERS[name]
    params, found = linen_norms(layer, jnp.ones([1, *shape]))
    expected = jacobian_norm(lambda x: layer.apply({"params": params}, x[None])[0], shape)
    assert found.keys() == {"kernel"}
    if name.startswith("Einsum"):
        # The batch axis of the equation repeats the matrix.
        assert found["kernel"].shape == ()
    assert float(found["kernel"]) == pytest.approx(expected, rel=1e-4)


class Block(linen.Module):
    """Layers of square kernels, so that no size tells one axis from another."""

    @linen.compact
    def __call__(self, x, _=None):
        x = linen.Dense(4, name="dense")(x)
        x = linen.Conv(4, (3,), name="conv")(x)
        x = linen.LayerNorm(name="norm")(x)
        x = linen.ConvTranspose(4, (3,), name="transposed")(x)
        x = x * self.param("offset", linen.initializers.ones, (4,))[None, None]
        return x @ self.param("w", linen.initializers.lecun_normal(), (4, 4)), None


def block_norms(params):
    """The norms of a block's layers, each from its Jacobian."""
    layers = {
        "dense": linen.Dense(4),
        "conv": linen.Conv(4, (3,)),
        "transposed": linen.ConvTranspose(4, (3,)),
    }
    found = {
        f"{name}/kernel": jacobian_norm(
            lambda x, layer=layer, name=name: layer.apply({"params": params[name]}, x[None])[0],
            (4, 4),
        )
        for name, layer in layers.items()
    }
    return {**found, "w": np.linalg.norm(params["w"], 2)}


def assert_stack(params, found, prefix, axes):
    """Every member of a stack along `axes`, in the order in which the operator counts them."""
    positions = sorted(axis % 3 for axis in axes) if len(axes) > 1 else list(axes)
    sizes = [jnp.shape(params["w"])[axis] for axis in positions]
    names = [
        f"{prefix}{name}" for name in ("dense/kernel", "conv/kernel", "transposed/kernel", "w")
    ]
    assert found.keys() == set(names)
    for index in np.ndindex(*sizes):
        member = params
        for axis, i in reversed(list(zip(positions, index, strict=True))):
            member = jax.tree.map(lambda x, axis=axis, i=i: jnp.take(x, i, axis), member)
        for name, expected in block_norms(member).items():
            assert float(found[prefix + name][index]) == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("transformation", ["scan", "vmap"])
def test_a_linen_stack_is_a_stack_wherever_its_axis_is(transformation, axis):
    """Four layers of four features: the shapes alone do not say which axis counts the layers."""
    options = {"variable_axes": {"params": axis}, "split_rngs": {"params": True}}
    if transformation == "scan":
        stack, inputs = linen.scan(Block, length=4, **options)(), jnp.ones([1, 4, 4])
    else:
        stack, inputs = linen.vmap(Block, **options)(), jnp.ones([4, 1, 4, 4])
    params, found = linen_norms(stack, inputs)
    assert_stack(params, found, "", [axis])


def test_a_stack_of_stacks_and_boxed_parameters_of_linen():
    class Partitioned(linen.Module):
        @linen.compact
        def __call__(self, x, _=None):
            kernel = linen.with_partitioning(linen.initializers.lecun_normal(), ("in", "out"))
            return linen.Dense(4, kernel_init=kernel, name="dense")(x), None

    named = {"metadata_params": {linen.PARTITION_NAME: "layers"}, "split_rngs": {"params": True}}
    scanned = linen.scan(Partitioned, length=3, variable_axes={"params": 1}, **named)
    both = linen.vmap(scanned, variable_axes={"params": 0}, in_axes=(0, None), **named)()
    params, found = linen_norms(both, jnp.ones([2, 1, 4]), None)
    kernel = params["dense"]["kernel"]
    assert kernel.shape == (2, 4, 3, 4)
    expected = [[np.linalg.norm(kernel[i, :, j], 2) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(found["dense/kernel"], expected, rtol=1e-5)


def test_layers_of_a_scan_that_share_their_parameters_are_one():
    shared = linen.scan(
        Block, length=3, variable_broadcast="params", split_rngs={"params": False}
    )()
    params, found = linen_norms(shared, jnp.ones([1, 4, 4]))
    for name, expected in block_norms(params).items():
        assert float(found[name]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "cell",
    [
        linen.LSTMCell(3),
        linen.OptimizedLSTMCell(3),
        linen.GRUCell(3),
        linen.SimpleCell(3),
    ],
    ids=lambda cell: type(cell).__name__,
)
def test_recurrent_cells_of_linen_are_matrices(cell):
    params, found = linen_norms(linen.RNN(cell), jnp.ones([1, 5, 2], jnp.float32))
    kernels = {
        "/".join(str(entry.key) for entry in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.ndim == 2
    }
    assert found.keys() == kernels.keys()
    assert len(found) >= 2
    for name, kernel in kernels.items():
        assert float(found[name]) == pytest.approx(np.linalg.norm(kernel, 2), rel=1e-5)


def test_what_else_is_in_linen():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, tokens, *, train):
            x = linen.Embed(7, 8, name="embed")(tokens)
            x = linen.BatchNorm(use_running_average=not train)(x)
            x = linen.GroupNorm(2)(linen.LayerNorm()(linen.RMSNorm()(x)))
            x = linen.MultiHeadDotProductAttention(2, normalize_qk=True, name="attention")(x)
            x = linen.DenseGeneral(3, batch_dims=(0,), axis=-1, name="per_place")(x[0])[None]
            x = linen.remat(linen.Dense)(4, name="remat")(x)
            return linen.ConvLSTMCell(2, (3,), name="cell")(
                (jnp.zeros([1, 5, 2]), jnp.zeros([1, 5, 2])), x
            )[1]

    params, found = linen_norms(Model(), jnp.ones([1, 5], int), train=False)
    expected = {
        "embed/embedding": params["embed"]["embedding"],
        "remat/kernel": params["remat"]["kernel"],
        "attention/query/kernel": params["attention"]["query"]["kernel"].reshape(8, 8),
        "attention/out/kernel": params["attention"]["out"]["kernel"].reshape(8, 8),
    }
    for name, matrix in expected.items():
        assert float(found[name]) == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-5)
    np.testing.assert_allclose(
        found["per_place/kernel"],
        np.linalg.norm(params["per_place"]["kernel"], 2, axis=(1, 2)),
        rtol=1e-5,
    )
    assert {"cell/hh/kernel", "cell/ih/kernel"} <= found.keys()
    assert not any(name.rsplit("/")[-1] in ("bias", "scale") for name in found)


NNX_LAYERS = {
    "Linear": (lambda r: nnx.Linear(4, 3, rngs=r), (4,)),
    "LinearGeneral": (lambda r: nnx.LinearGeneral((4, 2), (2, 3), axis=(-2, -1), rngs=r), (4, 2)),
    "Einsum": (lambda r: nnx.Einsum("...d,dnh->...nh", (4, 2, 3), rngs=r), (5, 4)),
    "Einsum of gemma": (lambda r: nnx.Einsum("BTNH,NHD->BTD", (2, 3, 4), rngs=r), (5, 2, 3)),
    "Conv": (lambda r: nnx.Conv(2, 4, (3,), feature_group_count=2, rngs=r), (6, 2)),
    "ConvTranspose": (lambda r: nnx.ConvTranspose(2, 3, (3, 2), strides=(2, 1), rngs=r), (4, 5, 2)),
    "ConvTranspose CIRCULAR": (
        lambda r: nnx.ConvTranspose(2, 3, (4,), strides=2, padding="CIRCULAR", rngs=r),
        (5, 2),
    ),
}


@pytest.mark.parametrize("name", NNX_LAYERS)
def test_an_nnx_layer(name):
    create, shape = NNX_LAYERS[name]
    layer = create(nnx.Rngs(0))
    operator = optax_igr.flax.operators(layer, jnp.ones([1, *shape]))
    found = norms_of(nnx.as_pure(nnx.state(layer, nnx.Param)), operator)
    expected = jacobian_norm(lambda x: layer(x[None])[0], shape)
    assert float(found["kernel"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", NNX_LAYERS)
@pytest.mark.parametrize("axis", [0, 1])
def test_an_nnx_stack_is_a_stack_of_separate_operators(name, axis):
    create, shape = NNX_LAYERS[name]
    # Seven members: no other size of these kernels is seven.
    make = nnx.split_rngs(splits=7)(
        nnx.vmap(create, in_axes=0, out_axes=nnx.StateAxes({...: axis}))
    )
    layers = make(nnx.Rngs(0))

    class Model(nnx.Module):
        def __init__(self):
            self.layers = layers

        def __call__(self, x):
            apply = nnx.vmap(lambda layer, x: layer(x), in_axes=(nnx.StateAxes({...: axis}), None))
            return apply(self.layers, x)

    if axis == 1 and "bias" in nnx.as_pure(nnx.state(layers, nnx.Param)):
        assert jnp.shape(layers.bias[...])[1] == 7
    operator = optax_igr.flax.operators(Model(), jnp.ones([1, *shape]))
    params = nnx.as_pure(nnx.state(layers, nnx.Param))
    found = norms_of({"layers": params}, operator)
    assert found.keys() == {"layers/kernel"}
    graphdef = nnx.graphdef(create(nnx.Rngs(0)))
    for i in range(7):
        one = jax.tree.map(lambda x, i=i: jnp.take(x, i, axis), params)
        member = nnx.merge(graphdef, nnx.State({k: nnx.Param(v) for k, v in one.items()}))
        expected = jacobian_norm(lambda x, member=member: member(x[None])[0], shape)
        assert float(found["layers/kernel"][i]) == pytest.approx(expected, rel=1e-4)


def test_scanned_layers_of_nnx_with_norms_and_cells():
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
            self.norms = nnx.List(
                [
                    nnx.LayerNorm(4, rngs=rngs),
                    nnx.RMSNorm(4, rngs=rngs),
                    nnx.BatchNorm(4, rngs=rngs),
                ]
            )
            self.conv = nnx.Conv(4, 4, (3,), rngs=rngs)
            self.lora = nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs)
            self.cell = nnx.GRUCell(4, 4, rngs=rngs)

        def __call__(self, x):
            for norm in self.norms:
                x = norm(x)
            x = self.lora(self.conv(self.attention(x)))
            return self.cell(jnp.zeros([*x.shape[:-1], 4], x.dtype), x)[0]

    class Model(nnx.Module):
        def __init__(self, rngs):
            make = nnx.split_rngs(splits=3)(nnx.vmap(Layer, in_axes=0, out_axes=0))
            self.layers = make(rngs)
            self.embed = nnx.Embed(5, 4, rngs=rngs)

        def __call__(self, tokens):
            scan = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return scan(self.embed(tokens), self.layers)

    model = Model(nnx.Rngs(0))
    operator = optax_igr.flax.operators(model, jnp.ones([1, 5], int))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    found = norms_of(params, operator)
    layers = params["layers"]
    expected = {
        "attention/query/kernel": layers["attention"]["query"]["kernel"].reshape(3, 4, 4),
        "attention/out/kernel": layers["attention"]["out"]["kernel"].reshape(3, 4, 4),
        "lora/kernel": layers["lora"]["kernel"],
        "lora/lora/lora_a": layers["lora"]["lora"]["lora_a"],
        "lora/lora/lora_b": layers["lora"]["lora"]["lora_b"],
        "cell/dense_h/kernel": layers["cell"]["dense_h"]["kernel"],
    }
    for name, stack in expected.items():
        np.testing.assert_allclose(
            found[f"layers/{name}"], np.linalg.norm(stack, 2, axis=(1, 2)), rtol=1e-5, err_msg=name
        )
    conv = optax_igr.conv_operator(5)
    for i in range(3):
        kernel = layers["conv"]["kernel"][i]
        norm = operators.spectral_norm(kernel, operator=conv, tolerance=1e-5, max_steps=3000)
        assert float(found["layers/conv/kernel"][i]) == pytest.approx(float(norm), rel=1e-5)
    assert found["embed/embedding"].shape == ()
    assert not any(name.rsplit("/")[-1] in ("bias", "scale") for name in found)
    # And every penalty takes them.
    for decay in (
        optax_igr.add_schatten_decay(0.1, gram_steps=2, operator=operator),
        optax_igr.add_spectral_decay(0.1, operator=operator),
    ):
        updates, _ = decay.update(params, decay.init(params), params)
        assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.all(jnp.isfinite(x))), updates))


@pytest.mark.parametrize("equation", ["bd,dh->h", "bd,dhh->bh", "bd,...dh->b...h", "bd,edh->bh"])
def test_an_equation_that_is_no_plain_product_is_named(equation):
    kernel = {"bd,dh->h": (4, 3), "bd,dhh->bh": (4, 3, 3)}.get(equation, (2, 4, 3))
    layer = nnx.Einsum(equation, kernel, rngs=nnx.Rngs(0))
    operator = optax_igr.flax.operators(layer)
    with pytest.raises(
        ValueError, match=r"\['kernel'\].*no plain product.*Wrap this function.*`mask`"
    ):
        norms_of(nnx.as_pure(nnx.state(layer, nnx.Param)), operator)


def test_an_equation_in_the_call_and_an_equation_that_only_scales():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.product = nnx.Einsum("bd,dnh->bnh", (4, 2, 3), rngs=rngs)
            self.product.einsum_str = None
            self.scale = nnx.Einsum("bnh,nh->bnh", (2, 3), rngs=rngs)

        def __call__(self, x):
            return self.scale(self.product(x, "bd,dnh->bnh"))

    model = Model(nnx.Rngs(0))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    found = norms_of(params, optax_igr.flax.operators(model, jnp.ones([1, 4])))
    expected = np.linalg.norm(params["product"]["kernel"].reshape(4, 6), 2)
    assert found.keys() == {"product/kernel"}
    assert float(found["product/kernel"]) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="do not show its equation"):
        norms_of(params, optax_igr.flax.operators(model))


def test_a_module_of_ones_own_is_a_matrix_or_named():
    class Own(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jax.random.normal(rngs.params(), (3, 4)))
            self.linear = nnx.Linear(4, 4, rngs=rngs)

    own = Own(nnx.Rngs(0))
    params = nnx.as_pure(nnx.state(own, nnx.Param))
    found = norms_of(params, optax_igr.flax.operators(own))
    assert float(found["w"]) == pytest.approx(np.linalg.norm(params["w"], 2), rel=1e-5)
    make = nnx.split_rngs(splits=2)(nnx.vmap(Own, in_axes=0, out_axes=0))
    stack = make(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"parameter \['w'\].*\[2, 3, 4\]"):
        norms_of(nnx.as_pure(nnx.state(stack, nnx.Param)), optax_igr.flax.operators(stack))

    class Three(linen.Module):
        @linen.compact
        def __call__(self, x):
            return jnp.einsum("bd,edh->bh", x, self.param("w", linen.initializers.ones, (2, 4, 3)))

    with pytest.raises(ValueError, match=r"parameter .*\['w'\].*its module is not known"):
        linen_norms(Three(), jnp.ones([1, 4]))
    local = linen.ConvLocal(2, (3,))
    with pytest.raises(ValueError, match="another kernel at every place"):
        linen_norms(local, jnp.ones([1, 5, 2]))


def test_a_stack_of_convolutions_is_its_members_for_every_norm():
    conv = optax_igr.conv_operator((4, 3), padding="CIRCULAR", strides=(2, 1))
    kernels = jax.random.normal(jax.random.key(0), (3, 2, 3, 3, 2, 4))
    stack = operators.stacked_operator(conv, (0, 1))
    norms = (
        operators.spectral_norm,
        operators.frobenius_norm,
        functools.partial(operators.schatten_norm, gram_steps=2),
    )
    for norm in norms:
        found = norm(kernels, operator=stack)
        expected = [[norm(k, operator=conv) for k in row] for row in kernels]
        np.testing.assert_allclose(found, np.array(expected), rtol=1e-6)
    with pytest.raises(ValueError, match="one axis twice"):
        operators.spectral_norm(kernels, operator=operators.stacked_operator(conv, (0, -6)))
    with pytest.raises(ValueError, match="stacked_operator: `operator` must be one of"):
        operators.stacked_operator(stack)
