"""Hessian-vector products against dense Hessians in float64, and differences against their own formulas."""

import functools
import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr._core import derivatives, differences, precision, trees
from tests.problems import tanh_network, two_weights

NETWORK = tanh_network(dtype=jnp.float64)

hessian_vector_product = jax.jit(
    derivatives.hessian_vector_product, static_argnames=("value_fn", "mode")
)
gauss_newton_vector_product = jax.jit(
    derivatives.gauss_newton_vector_product, static_argnames=("outputs_fn", "output_loss_fn")
)


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


def dense_hessian_product(value_fn, params, vector):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda x: value_fn(unravel(x))))(flat)
    return unravel(hessian @ jax.flatten_util.ravel_pytree(vector)[0])


def assert_trees_close(x, y, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14), x, y)


@jax.jit
def relative_error(x, y):
    return jnp.sqrt(trees.squared_norm(trees.subtract(x, y)) / trees.squared_norm(y))


@pytest.mark.parametrize("mode", derivatives.EXACT_MODES)
def test_exact_mode_equals_dense_hessian(mode):
    vector = random_like(NETWORK.params)
    product = hessian_vector_product(NETWORK.value_fn, NETWORK.params, vector, mode=mode)
    expected = dense_hessian_product(NETWORK.value_fn, NETWORK.params, vector)
    assert_trees_close(product, expected, rtol=1e-11)


@pytest.mark.parametrize("mode", derivatives.DIFFERENCE_MODES)
def test_difference_equals_its_own_formula(mode):
    vector, radius = random_like(NETWORK.params), 0.01
    product = hessian_vector_product(
        NETWORK.value_fn, NETWORK.params, vector, mode=mode, radius=radius
    )
    epsilon = radius / np.sqrt(sum(np.sum(v**2) for v in jax.tree.leaves(vector)))

    @jax.jit
    def gradient_at(sign):
        return jax.grad(NETWORK.value_fn)(
            jax.tree.map(lambda p, v: p + sign * epsilon * v, NETWORK.params, vector)
        )

    low, high = {
        "forward_difference": (0, 1),
        "backward_difference": (-1, 0),
        "central_difference": (-1, 1),
    }[mode]
    expected = jax.tree.map(
        lambda a, b: (b - a) / ((high - low) * epsilon), gradient_at(low), gradient_at(high)
    )
    assert relative_error(product, expected) < 1e-9


@pytest.mark.parametrize(
    ("mode", "order", "leading"),
    [
        ("forward_difference", 1, 1.0),
        ("backward_difference", 1, -1.0),
        ("central_difference", 2, 0.0),
    ],
)
def test_difference_has_its_order(mode, order, leading):
    # E = θ⁴/4: ∇E(θ + d) = (θ + d)³, whose difference is 3θ² ± 3θd + d².
    def value_fn(theta):
        return theta**4 / 4

    theta, radii = jnp.float64(0.7), np.array([0.1, 0.05])
    errors = [
        hessian_vector_product(value_fn, theta, jnp.float64(1.0), mode=mode, radius=r)
        - 3 * theta**2
        for r in radii
    ]
    np.testing.assert_allclose(errors, leading * 3 * theta * radii + radii**2, rtol=1e-10)
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_differences_of_a_cubic_have_closed_forms():
    # E = θ³/3 at ½: g = ¼, Hg = ¼; with ε = 0.1 the one-sided errors are ±εθ⁴.
    theta = jnp.float64(0.5)
    expected = {
        "forward_difference": 0.25625,
        "backward_difference": 0.24375,
        "central_difference": 0.25,
    }
    for mode, value in expected.items():
        product = hessian_vector_product(
            lambda t: t**3 / 3, theta, theta**2, mode=mode, radius=0.1 * theta**2
        )
        assert float(product) == pytest.approx(value, abs=1e-14)


def mean_squared_error_network(widths, num_samples, dtype=jnp.float32):
    """A fresh tanh network with a linear output, as in the table of `default_radius`."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(num_samples, widths[0])), jnp.float32)
    targets = jnp.asarray(rng.normal(size=(num_samples, widths[-1])), jnp.float32)
    shapes = list(itertools.pairwise(widths))
    params = [jnp.asarray(rng.normal(size=s) / np.sqrt(s[0]), jnp.float32) for s in shapes]

    def value_fn(params):
        x = inputs
        for kernel in params[:-1]:
            x = jnp.tanh(x @ kernel)
        return jnp.mean(jnp.sum((x @ params[-1] - targets) ** 2, axis=-1)) / 2

    return value_fn, params


@pytest.mark.parametrize(
    ("widths", "num_samples"), [((20, 32, 16, 1), 64), ((64, 64, 10), 128), ((200, 50, 1), 64)]
)
def test_float32_accuracy_at_the_best_and_at_the_default_radius(widths, num_samples):
    value_fn, params = mean_squared_error_network(widths, num_samples)
    gradient = jax.jit(jax.grad(value_fn))(params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), (params, gradient))
    exact = hessian_vector_product(value_fn, *wide)
    num_parameters = sum(x.size for x in params)
    for mode, at_best, at_default in [
        ("forward_difference", 1e-3, 5e-3),
        ("central_difference", 1e-4, 5e-4),
    ]:

        @jax.jit
        def error(radius, mode=mode):
            product = hessian_vector_product(value_fn, params, gradient, mode=mode, radius=radius)
            difference = trees.squared_norm(trees.subtract(product, exact))
            return jnp.sqrt(difference / trees.squared_norm(exact))

        radii = np.array(
            [
                differences.default_radius(mode, num_parameters, precision.of(value_fn, params)),
                *np.geomspace(1e-4, 3e-2, 11),
            ]
        )
        errors = [float(error(np.float32(radius))) for radius in radii]
        assert errors[0] < at_default
        assert min(errors) < at_best


@pytest.mark.parametrize("mode", derivatives.DIFFERENCE_MODES)
def test_difference_takes_both_gradients_in_float32_for_bfloat16_parameters(mode):
    problem = tanh_network((20, 32, 16, 1), 64, dtype=jnp.bfloat16)
    seen = set()

    def value_fn(params):
        seen.update(x.dtype for x in jax.tree.leaves(params))
        return problem.value_fn(params)

    vector = random_like(problem.params)
    product = hessian_vector_product(
        value_fn,
        problem.params,
        vector,
        mode=mode,
        # A bfloat16 gradient is no base for a difference and must be ignored.
        gradient_at_params=jax.tree.map(jnp.ones_like, problem.params),
    )
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (problem.params, vector))
    exact = hessian_vector_product(problem.value_fn, *wide)
    assert seen == {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in jax.tree.leaves(product)} == {jnp.dtype(jnp.float32)}
    assert relative_error(product, exact) < 5e-2


@pytest.mark.parametrize("mode", derivatives.MODES)
def test_complex_parameters_are_pairs_of_real_ones(mode):
    def value_fn(z):
        return jnp.sum(jnp.abs(z**2 + jnp.sin(z)) ** 2) / 2

    def of_pair(pair):
        return value_fn(pair[0] + 1j * pair[1])

    z = jnp.array([0.3 + 0.8j, -0.5 + 0.2j])
    v = jnp.array([0.1 - 0.7j, 0.9 + 0.4j])
    product = hessian_vector_product(value_fn, z, v, mode=mode)
    expected = dense_hessian_product(
        of_pair, jnp.stack([z.real, z.imag]), jnp.stack([v.real, v.imag])
    )
    tolerance = 1e-11 if mode in derivatives.EXACT_MODES else 1e-5
    np.testing.assert_allclose(product, expected[0] + 1j * expected[1], rtol=tolerance)
    np.testing.assert_allclose(
        jax.jit(functools.partial(derivatives.gradient, value_fn))(z),
        jax.jit(jax.grad(of_pair))(jnp.stack([z.real, z.imag])).T @ jnp.array([1, 1j]),
        rtol=1e-12,
    )


def test_gauss_newton_product_equals_dense_jacobian():
    problem = NETWORK

    def output_loss_fn(outputs):
        return jnp.sum(jnp.cosh(outputs))

    vector = random_like(problem.params)
    product = gauss_newton_vector_product(
        problem.outputs_fn, output_loss_fn, problem.params, vector
    )
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    jacobian = jax.jit(jax.jacobian(lambda x: jnp.ravel(problem.outputs_fn(unravel(x)))))(flat)
    outputs = jnp.ravel(problem.outputs_fn(problem.params))
    curvature = jnp.diag(jnp.cosh(outputs))
    expected = jacobian.T @ curvature @ jacobian @ jax.flatten_util.ravel_pytree(vector)[0]
    assert_trees_close(product, unravel(expected), rtol=1e-11)


def test_gauss_newton_product_is_the_hessian_of_a_linear_model():
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(7, 3)))

    def outputs_fn(w):
        return inputs @ w

    def output_loss_fn(outputs):
        return jnp.sum(jnp.exp(outputs))

    w, v = jnp.array([0.1, -0.2, 0.3]), jnp.array([1.0, 2.0, -1.0])
    np.testing.assert_allclose(
        gauss_newton_vector_product(outputs_fn, output_loss_fn, w, v),
        hessian_vector_product(lambda w: output_loss_fn(outputs_fn(w)), w, v),
        rtol=1e-13,
    )


def test_value_function_with_auxiliary_output_is_refused():
    with pytest.raises(ValueError, match="one real number"):
        derivatives.gradient(lambda x: (x**2, x), jnp.float64(1.0))


def test_two_weights_have_the_published_derivatives():
    # The numbers of the 2-D model of Barrett and Dherin at (2.8, 3.5).
    problem = two_weights()
    gradient = jax.grad(problem.value_fn)(problem.params)
    np.testing.assert_allclose(gradient, [32.2, 25.76], rtol=1e-14)
    product = hessian_vector_product(problem.value_fn, problem.params, gradient)
    np.testing.assert_allclose(product, [883.89, 813.7584], rtol=1e-14)


@pytest.mark.parametrize("gradient", [None, "given"])
@pytest.mark.parametrize("mode", derivatives.MODES)
def test_operator_equals_dense_hessian(mode, gradient):
    if gradient is not None:
        gradient = jax.grad(NETWORK.value_fn)(NETWORK.params)
    product = derivatives.hessian_operator(
        NETWORK.value_fn, NETWORK.params, mode=mode, gradient=gradient
    )
    is_exact = mode not in derivatives.DIFFERENCE_MODES
    for seed in range(2):
        vector = random_like(NETWORK.params, seed)
        expected = dense_hessian_product(NETWORK.value_fn, NETWORK.params, vector)
        assert relative_error(jax.jit(product)(vector), expected) < (1e-13 if is_exact else 1e-6)


@pytest.mark.parametrize("mode", derivatives.MODES)
def test_operator_of_complex_parameters_equals_the_product(mode):
    def value_fn(z):
        return jnp.sum(jnp.abs(z**2 + jnp.sin(z)) ** 2) / 2

    z = jnp.array([0.3 + 0.8j, -0.5 + 0.2j])
    v = jnp.array([0.1 - 0.7j, 0.9 + 0.4j])
    product = derivatives.hessian_operator(value_fn, z, mode=mode)(v)
    expected = derivatives.hessian_vector_product(value_fn, z, v, mode=mode)
    np.testing.assert_allclose(product, expected, rtol=1e-12)


@pytest.mark.parametrize("mode", derivatives.DIFFERENCE_MODES)
def test_difference_operator_of_bfloat16_parameters_ignores_their_gradient(mode):
    problem = tanh_network((20, 32, 16, 1), 64, dtype=jnp.bfloat16)
    vector = random_like(problem.params)
    product = derivatives.hessian_operator(
        problem.value_fn,
        problem.params,
        mode=mode,
        gradient=jax.tree.map(jnp.ones_like, problem.params),
    )(vector)
    expected = hessian_vector_product(problem.value_fn, problem.params, vector, mode=mode)
    assert {x.dtype for x in jax.tree.leaves(product)} == {jnp.dtype(jnp.float32)}
    assert relative_error(product, expected) < 1e-3
