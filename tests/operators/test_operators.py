"""A weight as an operator, against the dense matrix of that operator and its singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_igr
import optax_igr.diagnostics
from optax_igr.operators import leaves
from optax_igr.operators import schatten as gram

spectral_norm_bound = jax.jit(gram.spectral_norm_bound, static_argnums=0)
schatten_norm = jax.jit(gram.gradient_and_norm, static_argnums=(0, 2))

KERNEL = {"CIRCULAR": (3, 3), "SAME": (3, 3), "VALID": (3, 2), ((1, 0), (2, 1)): (3, 3)}


def random(shape, seed=0, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def dense(operator, weight):
    """The matrix of the operator, column by column."""
    shape = operator.domain_shape(weight.shape)
    basis = np.eye(int(np.prod(shape)), dtype=weight.dtype).reshape(-1, *shape)
    images = jax.jit(jax.vmap(lambda x: operator.apply(weight, x)))(basis)
    return np.asarray(images).reshape(len(basis), -1).T


def schatten(singular_values, gram_steps):
    p = 2 ** (gram_steps + 1)
    largest = singular_values.max()
    return largest * np.sum((singular_values / largest) ** p) ** (1 / p)


def conv(strides, padding, dilation, groups, input_shape=(4, 6)):
    operator = optax_igr.conv_operator(
        input_shape,
        strides=strides,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=groups,
    )
    taps = KERNEL[padding if isinstance(padding, str) else tuple(padding)]
    return operator, random((*taps, 4 // groups, 6))


@pytest.mark.parametrize("padding", KERNEL, ids=str)
@pytest.mark.parametrize(
    ("strides", "dilation", "groups"), [(1, 1, 1), (2, 1, 2), ((2, 1), (1, 2), 1)]
)
def test_blocks_have_the_singular_values_of_the_dense_operator_or_bound_them(
    padding, strides, dilation, groups
):
    operator, kernel = conv(strides, padding, dilation, groups)
    values = np.linalg.svd(dense(operator, kernel), compute_uv=False)
    assert operator.is_exact(kernel.shape) == (padding == "CIRCULAR")
    norms = [schatten(values, t) for t in (0, 2)] + [values[0]]
    found = [float(schatten_norm(operator, kernel, t)[1]) for t in (0, 2)]
    found.append(float(spectral_norm_bound(operator, kernel)))
    if padding == "CIRCULAR":
        np.testing.assert_allclose(found, norms, rtol=1e-12)
    else:
        assert np.all(np.array(found) >= norms)
        assert np.all(np.array(found) < 4 * np.array(norms)), "a bound this loose is of no use"


def test_a_circular_convolution_whose_stride_does_not_divide_the_grid_is_bounded():
    operator, kernel = conv(2, "CIRCULAR", 1, 1, input_shape=(5, 5))
    value = np.linalg.svd(dense(operator, kernel), compute_uv=False)[0]
    assert not operator.is_exact(kernel.shape)
    assert spectral_norm_bound(operator, kernel) >= value


@pytest.mark.parametrize("padding", ["CIRCULAR", "SAME"])
def test_complex_kernels_need_the_whole_grid(padding):
    operator = optax_igr.conv_operator((5, 4), padding=padding)
    kernel = random((3, 3, 2, 3)) + 1j * random((3, 3, 2, 3), seed=1)
    values = np.linalg.svd(dense(operator, kernel), compute_uv=False)
    norm = schatten_norm(operator, kernel, 1)[1]
    if padding == "CIRCULAR":
        np.testing.assert_allclose(norm, schatten(values, 1), rtol=1e-12)
    else:
        assert norm >= schatten(values, 1)


def test_a_kernel_larger_than_the_circular_grid_wraps_round():
    operator = optax_igr.conv_operator((3,), padding="CIRCULAR", kernel_dilation=2)
    kernel = random((3, 2, 2))
    value = np.linalg.svd(dense(operator, kernel), compute_uv=False)[0]
    np.testing.assert_allclose(spectral_norm_bound(operator, kernel), value, rtol=1e-12)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
def test_the_convolution_is_that_of_flax(padding, strides):
    from flax import nnx

    layer = nnx.Conv(
        2, 3, (3, 2), strides=strides, padding=padding, use_bias=False, rngs=nnx.Rngs(0)
    )
    operator = optax_igr.conv_operator((6, 8), strides=strides, padding=padding)
    x = random((6, 8, 2), dtype=jnp.float32)
    np.testing.assert_allclose(
        operator.apply(layer.kernel[...], x), layer(x[None])[0], rtol=1e-5, atol=1e-6
    )


LAPLACIAN = jnp.array([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[:, :, None, None]


@pytest.mark.parametrize(
    ("kernel", "padding", "expected"),
    [
        (LAPLACIAN, "CIRCULAR", 8),
        # Zero padding on n = 8: 4 + 4 cos(π/9).
        (LAPLACIAN, "SAME", 4 + 4 * np.cos(np.pi / 9)),
        (jnp.ones([3, 3, 1, 1]), "CIRCULAR", 9),
        (jnp.zeros([3, 3, 2, 2]).at[1, 1].set(jnp.diag(jnp.array([2, 0.5]))), "SAME", 2),
    ],
    ids=["circular Laplacian", "zero-padded Laplacian", "ones", "centre tap"],
)
def test_norms_in_closed_form(kernel, padding, expected):
    operator = optax_igr.conv_operator((8, 8), padding=padding)
    norm = optax_igr.diagnostics.spectral_norm(
        kernel, operator=operator, tolerance=1e-6, max_steps=3000
    )
    assert float(norm) == pytest.approx(expected, rel=1e-9)
    assert spectral_norm_bound(operator, kernel) >= expected * (1 - 1e-12)


def test_a_matrix_of_several_axes_is_the_matrix_and_a_stack_is_many():
    kernel = random((5, 2, 3))
    whole = optax_igr.matrix_operator(in_axes=0, out_axes=(1, 2))
    per_head = optax_igr.matrix_operator(in_axes=0, out_axes=-1)
    norm = optax_igr.diagnostics.spectral_norm
    np.testing.assert_allclose(
        norm(kernel, operator=whole), np.linalg.norm(kernel.reshape(5, 6), 2), rtol=1e-12
    )
    np.testing.assert_allclose(
        norm(kernel, operator=per_head),
        [np.linalg.norm(kernel[:, head], 2) for head in range(2)],
        rtol=1e-12,
    )


def test_every_operator_is_linear_and_its_gradient_is_that_of_its_norm():
    """In the limit of differences, for a stack and a strided convolution with groups."""
    for operator, weight in (
        (optax_igr.matrix_operator(0, 2), random((4, 2, 3))),
        conv(2, "SAME", 1, 2),
    ):
        direction = random(weight.shape, seed=5)

        @jax.jit
        def half_squared(w, operator=operator):
            return jnp.sum(schatten_norm(operator, w, 2)[1] ** 2) / 2

        gradient = schatten_norm(operator, weight, 2)[0]
        difference = (
            half_squared(weight + 1e-5 * direction) - half_squared(weight - 1e-5 * direction)
        ) / 2e-5
        np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=1e-8)


KERNELS = {"conv": jnp.ones([3, 3, 1, 2]), "dense": jnp.ones([4, 2]), "bias": jnp.ones([2])}
CONV = optax_igr.conv_operator((4, 4))
MATRIX = optax_igr.matrix_operator()


@pytest.mark.parametrize(
    ("operator", "mask", "expected"),
    [
        ({"conv": CONV, "dense": MATRIX, "bias": None}, None, [None, CONV, MATRIX]),
        ({"conv": CONV, "dense": None, "bias": MATRIX}, None, [None, CONV, None]),
        (lambda path, leaf: CONV if leaf.ndim == 4 else None, None, [None, CONV, None]),
        (None, {"conv": False, "dense": True, "bias": True}, [None, None, MATRIX]),
        (MATRIX, lambda tree: {"conv": False, "dense": True, "bias": True}, [None, None, MATRIX]),
    ],
)
def test_operators_by_tree_by_function_and_by_default(operator, mask, expected):
    chosen = leaves.resolve("name", KERNELS, operator, mask)
    assert [chosen["bias"], chosen["conv"], chosen["dense"]] == expected


def test_a_function_sees_jax_key_paths():
    seen = []
    leaves.resolve(
        "name", {"a": [jnp.ones([2, 2])]}, lambda path, leaf: seen.append((path, leaf.shape))
    )
    assert [(jax.tree_util.keystr(path), shape) for path, shape in seen] == [("['a'][0]", (2, 2))]


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (None, r"name: leaf \['conv'\].*more than two axes.*matrix_operator.*conv_operator.*mask"),
        (MATRIX, None),
        (CONV, r"leaf \['dense'\].*no kernel of 2 spatial axes"),
        ({"conv": CONV}, "pytree prefix"),
        ("conv", r"leaf \['conv'\].*must be one of"),
        (
            optax_igr.conv_operator((2, 2), padding="VALID"),
            r"leaf \['conv'\].*larger than the padded input",
        ),
        (optax_igr.matrix_operator(0, 5), r"leaf \['conv'\].*no axes"),
        (optax_igr.matrix_operator(1, -3), r"leaf \['conv'\].*twice"),
    ],
)
def test_what_is_no_operator_is_named(operator, message):
    if message is None:
        # A stack of 3 × 3 matrices is what was asked for, if not what was meant.
        assert leaves.resolve("name", KERNELS, operator)["conv"] == MATRIX
        return
    with pytest.raises(ValueError, match=message):
        leaves.resolve("name", KERNELS, operator)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (0, 4)}, "input_shape"),
        ({"input_shape": (4, 4), "strides": (1, 2, 3)}, "strides"),
        ({"input_shape": (4, 4), "padding": "REFLECT"}, "padding"),
        ({"input_shape": (4, 4), "padding": ((1, 1),)}, "padding"),
        ({"input_shape": (4, 4), "kernel_dilation": 0}, "kernel_dilation"),
        ({"input_shape": 4, "feature_group_count": 0}, "feature_group_count"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"conv_operator: `{message}`"):
        optax_igr.conv_operator(**arguments)


def test_operators_are_equal_by_value_and_hashable():
    assert len({CONV, optax_igr.conv_operator([4, 4], strides=(1, 1))}) == 1
    assert optax_igr.matrix_operator(0, [1, 2]) == optax_igr.matrix_operator((0,), (1, 2))
