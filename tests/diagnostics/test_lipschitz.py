"""Lipschitz bounds against models whose constant is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_igr
from optax_igr.diagnostics import lipschitz_bounds


def linear(params, x):
    for w in params:
        x = x @ w
    return x


def true_norm(params):
    """In float64, of the very numbers that the model holds."""
    product = np.eye(len(params[0]))
    for w in params:
        product = product @ np.float64(w)
    return np.linalg.norm(product, 2)


def normal(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("step_size", [1e-12, 1e-7, None, 1e3])
@pytest.mark.parametrize("sizes", [(6, 4), (64, 32, 64, 10)], ids=str)
def test_the_bounds_of_a_linear_map_enclose_its_norm_in_float32(sizes, step_size):
    """A difference quotient gave 6.412496 for 6.41248, above `upper`, and 8.24 at a step of 1e-7."""
    bound = jax.jit(lambda p, x: lipschitz_bounds(linear, p, x, num_steps=30, step_size=step_size))
    for seed in range(8):
        params = [normal(shape, 10 * seed + i) for i, shape in enumerate(itertools.pairwise(sizes))]
        bounds = bound(params, normal((4, sizes[0]), seed + 100))
        true = true_norm(params)
        assert true * (1 - 1e-3) < float(bounds.lower) < true
        product = np.prod([np.linalg.norm(np.float64(w), 2) for w in params])
        assert product < float(bounds.upper) < product * (1 + 1e-5)


def test_the_lower_bound_stays_below_where_two_layers_cancel():
    """W and a matrix near its inverse: the rounding of the product is that of a norm of thousands."""
    bound = jax.jit(lambda p, x: lipschitz_bounds(linear, p, x, num_steps=30))
    for seed in range(8):
        left = np.linalg.svd(normal((16, 16), seed, np.float64))[0]
        right = np.linalg.svd(normal((16, 16), seed + 50, np.float64))[0]
        values = np.geomspace(1, 3e3, 16)
        params = [np.float32(left * values @ right), np.float32(right.T / values @ left.T)]
        lower = float(bound(params, normal((3, 16), seed)).lower)
        assert 0.9 < lower / true_norm(params) < 1


def test_a_model_that_computes_in_bfloat16_has_the_rounding_of_bfloat16():
    def model(params, x):
        narrow = linear([w.astype(jnp.bfloat16) for w in params], x.astype(jnp.bfloat16))
        return narrow.astype(jnp.float32)

    bound = jax.jit(lambda p, x: lipschitz_bounds(model, p, x, num_steps=20))
    for seed in range(8):
        params = [normal((12, 20), seed), normal((20, 8), seed + 50)]
        lower = float(bound(params, normal((3, 12), seed)).lower)
        assert 0.97 < lower / true_norm(params) < 1


def test_the_derivative_at_a_kink_is_that_of_no_point_nearby():
    """f(x) = lrelu(x) - lrelu(-x) has the slope 1.01; at 0, JAX takes 1 for both slopes, and their sum is 2."""
    params = [jnp.array([[1.0, -1.0]]), jnp.array([[1.0], [-1.0]])]

    def model(params, x):
        return jax.nn.leaky_relu(x @ params[0]) @ params[1]

    assert float(jax.jacobian(lambda x: model(params, x[None])[0])(jnp.zeros(1))[0, 0]) == 2
    bounds = lipschitz_bounds(model, params, jnp.zeros([2, 1]), num_steps=5)
    assert 1.01 * (1 - 1e-5) < float(bounds.lower) <= 1.01


@pytest.mark.parametrize("seed", range(4))
def test_a_relu_network_is_enclosed_by_the_norms_of_its_regions(seed):
    """The constant is the largest norm of W₂ D W₁ over the patterns D that occur; over all, it is no less."""
    first, second, bias = normal((3, 6), seed), normal((6, 2), seed + 10), normal((6,), seed + 20)
    patterns = np.array(np.meshgrid(*[[0, 1]] * 6)).reshape(6, -1).T
    norms = [np.linalg.norm(np.float64(first) * d @ np.float64(second), 2) for d in patterns]
    bounds = jax.jit(
        lambda p, x: lipschitz_bounds(lambda p, x: jax.nn.relu(x @ p[0] + bias[None]) @ p[1], p, x)
    )([first, second], normal((8, 3), seed + 30))
    assert float(bounds.lower) < max(norms) < float(bounds.upper)
    # What was found is the norm of a region.
    assert np.min(np.abs(np.array(norms) / float(bounds.lower) - 1)) < 1e-4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
def test_runs_with_every_check_of_jax_switched_on(dtype):
    params = [jnp.asarray(normal((4, 5), 0), dtype), jnp.zeros([5, 2], dtype)]
    conv = {"w": jnp.asarray(normal((3, 2, 2), 0), dtype)}
    operator = optax_igr.conv_operator(4)

    def convolution(p, x):
        return jax.vmap(lambda x: operator.apply(p["w"].astype(x.dtype), x))(x)

    def dense(p, x):
        return linear([w.astype(x.dtype) for w in p], x)

    with (
        jax.debug_nans(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        for inputs in (jnp.asarray(normal((2, 4), 0), dtype), jnp.zeros([2, 4], dtype)):
            # Eagerly and compiled.
            for bound in (lipschitz_bounds, jax.jit(lipschitz_bounds, static_argnums=0)):
                bounds = bound(dense, params, inputs)
                assert (float(bounds.lower), float(bounds.upper)) == (0, 0)
        bounds = lipschitz_bounds(convolution, conv, jnp.ones([2, 4, 2]), operator=operator)
        assert 0 < float(bounds.lower) < float(bounds.upper)


def test_both_bounds_of_a_linear_layer_are_its_norm():
    w = jax.random.normal(jax.random.key(0), (6, 4), jnp.float64)
    inputs = jax.random.normal(jax.random.key(1), (3, 6), jnp.float64)
    bounds = jax.jit(lambda p: lipschitz_bounds(linear, p, inputs))([w])
    assert float(bounds.lower) == pytest.approx(np.linalg.norm(w, 2), rel=1e-10)
    assert bounds.lower < bounds.upper
    assert float(bounds.upper) == pytest.approx(np.linalg.norm(w, 2), rel=1e-12)


def test_the_product_may_be_loose_without_limit():
    params = [jnp.diag(jnp.array([10.0, 0.1])), jnp.diag(jnp.array([0.1, 10.0]))]
    bounds = lipschitz_bounds(linear, params, jnp.eye(2))
    assert float(bounds.upper) == pytest.approx(100, rel=1e-6)
    assert float(bounds.lower) == pytest.approx(1, rel=1e-5)


def test_the_search_climbs_to_where_the_jacobian_is_largest():
    """The slope of tanh(4 x) is 4 at the origin, and 0.005 where the search starts."""
    bounds = lipschitz_bounds(
        lambda w, x: jnp.tanh(x @ w), jnp.array([[4.0]]), jnp.array([[1.0]]), num_steps=200
    )
    assert float(bounds.lower) == pytest.approx(4, rel=1e-3)
    assert float(bounds.lower) <= 4 <= float(bounds.upper) * (1 + 1e-6)
    assert abs(float(bounds.input_at_lower[0])) < 0.05


def test_the_search_climbs_over_the_kinks_of_relu():
    """Its gradient is 1 where the search starts and 5 beyond -0.3, where a Jacobian alone has no slope to see."""

    def model(params, x):
        first, second = params
        return jax.nn.relu(x @ first + jnp.array([[0.0, -1.5]])) @ second

    params = [jnp.array([[1.0, 5.0]]), jnp.array([[1.0], [0.8]])]
    bounds = lipschitz_bounds(model, params, jnp.array([[0.29]]), num_steps=20, step_size=0.02)
    assert float(bounds.lower) == pytest.approx(5, rel=1e-5)
    assert float(bounds.lower) <= float(bounds.upper)


def test_a_convolution_counts_with_its_own_norm():
    operator = {"conv": optax_igr.conv_operator((6, 6), padding="CIRCULAR"), "bias": None}
    params = {"conv": jnp.ones([3, 3, 1, 1], jnp.float64), "bias": jnp.ones([1])}

    def model(params, x):
        wrapped = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
        return jax.lax.conv_general_dilated(
            wrapped, params["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    inputs = jax.random.normal(jax.random.key(0), (2, 6, 6, 1), jnp.float64)
    bounds = lipschitz_bounds(model, params, inputs, operator=operator, activation_constant=1.5)
    assert float(bounds.upper) == pytest.approx(13.5, rel=1e-10)
    assert float(bounds.lower) == pytest.approx(9, rel=1e-8)


def test_progress_counts_the_steps():
    seen = []
    lipschitz_bounds(
        linear, [jnp.eye(2)], jnp.eye(2), num_steps=3, progress=lambda *done: seen.append(done)
    )
    jax.effects_barrier()
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("params", "operator", "message"),
    [
        ({"norm": {"scale": jnp.ones([3])}}, None, r"\['norm'\]\['scale'\].*normalisation"),
        ({"w": jnp.ones([2, 3, 3])}, None, "more than two axes"),
        ({"w": jnp.ones([2, 3, 3])}, optax_igr.matrix_operator(), "stack of matrices"),
    ],
)
def test_what_has_no_known_norm_is_named(params, operator, message):
    with pytest.raises(ValueError, match=f"lipschitz_bounds: .*{message}"):
        lipschitz_bounds(lambda p, x: x, params, jnp.ones([1, 3]), operator=operator)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "`num_steps`"),
        ({"step_size": 0.0}, "`step_size`"),
        ({"step_size": -1e-2}, "`step_size`"),
        ({"step_size": np.nan}, "`step_size`"),
        ({"activation_constant": -1.0}, "`activation_constant`"),
        ({"activation_constant": np.nan}, "`activation_constant`"),
        ({"inputs": jnp.array([[1.0, np.nan]])}, "`inputs` must be finite"),
        ({"inputs": jnp.ones([0, 2])}, "`inputs` must be real numbers of shape"),
        ({"inputs": jnp.array(1.0)}, "`inputs` must be real numbers of shape"),
        ({"inputs": jnp.ones([1, 2]) * 1j}, "`inputs` must be real numbers"),
        ({"apply_fn": lambda p, x: x @ (p[0] * 1j)}, "`apply_fn` must return real outputs"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"lipschitz_bounds: {message}"):
        lipschitz_bounds(
            **{"apply_fn": linear, "params": [jnp.eye(2)], "inputs": jnp.eye(2), **arguments}
        )
