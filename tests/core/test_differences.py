"""Differences where they are hard: at kinks, in narrow formats, and at a radius that is none."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import optax_igr
from optax_igr._core import derivatives, differences, precision, trees
from tests.problems import tanh_network

DIFFERENCES = derivatives.DIFFERENCE_MODES


@pytest.fixture(autouse=True)
def nothing_announced(monkeypatch):
    monkeypatch.setattr(differences, "_announced", set())


def quietly(function):
    """Runs what warns of kinks or of rounding where that is not what is tested."""

    @functools.wraps(function)
    def wrapped(*arguments, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments, **options)

    return wrapped


def relative_error(x, y):
    return float(jnp.sqrt(trees.squared_norm(trees.subtract(x, y)) / trees.squared_norm(y)))


def digits_network(activation, *, convolutional, compute_dtype=jnp.float32):
    """A fresh network with zero biases on digits, whose pixels are zero around them."""
    digits = load_digits()
    images = np.pad(digits.images[:64] / 16, [(0, 0), (4, 4), (4, 4)]).astype(np.float32)
    labels = jnp.asarray(digits.target[:64])
    rng = np.random.default_rng(0)

    def kernel(*shape):
        return jnp.asarray(rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1])), jnp.float32)

    shapes = [(3, 3, 1, 8), (3, 3, 8, 8)] if convolutional else [(256, 48), (48, 48)]
    features = 256 // 16 * 8 if convolutional else 48
    params = [
        {"kernel": kernel(*shape), "bias": jnp.zeros(shape[-1], jnp.float32)}
        for shape in [*shapes, (features, 10)]
    ]

    def value_fn(params):
        params = jax.tree.map(lambda x: x.astype(compute_dtype), params)
        x = jnp.asarray(images, compute_dtype)
        x = x[..., None] if convolutional else x.reshape(64, -1)
        for layer in params[:-1]:
            if convolutional:
                numbers = ("NHWC", "HWIO", "NHWC")
                x = jax.lax.conv_general_dilated(
                    x, layer["kernel"], (1, 1), "SAME", dimension_numbers=numbers
                )
                bias = layer["bias"][None, None, None]
                x = activation(x + bias)
                x = x.reshape(64, x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))
            else:
                x = activation(x @ layer["kernel"] + layer["bias"][None])
        logits = x.reshape(64, -1) @ params[-1]["kernel"] + params[-1]["bias"][None]
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), labels
        )
        return jnp.mean(losses)

    return value_fn, params


def trained(value_fn, params, num_steps=30):
    optimizer = optax.adam(3e-3)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(value_fn)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=num_steps)[0][0])(
        params
    )


@quietly
def errors_of_penalty_gradient(value_fn, params):
    """The relative error of each difference against the exact product, with the known gradient as its base."""

    @jax.jit
    def products(params):
        gradient = jax.grad(value_fn)(params)
        return {
            mode: derivatives.hessian_vector_product(
                value_fn, params, gradient, mode=mode, gradient_at_params=gradient
            )
            for mode in ("forward_over_reverse", *DIFFERENCES)
        }

    found = products(params)
    exact = found.pop("forward_over_reverse")
    return {mode: relative_error(product, exact) for mode, product in found.items()}


@pytest.mark.parametrize("when", ["fresh", "trained"])
@pytest.mark.parametrize("convolutional", [False, True], ids=["dense", "convolutional"])
@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.gelu], ids=["relu", "gelu"])
def test_the_default_radius_is_right_on_networks_with_zero_biases_and_zero_pixels(
    activation, convolutional, when
):
    value_fn, params = digits_network(activation, convolutional=convolutional)
    if when == "trained":
        params = trained(value_fn, params)
    errors = errors_of_penalty_gradient(value_fn, params)
    if activation is jax.nn.relu and convolutional and when == "fresh":
        # Here one unit turns on within the radius, which only a central difference can notice.
        assert errors.pop("backward_difference") > 1
    assert max(errors.values()) < 0.1, errors


def test_a_zero_bias_at_the_kink_takes_the_derivative_that_jax_takes_there():
    # Two units at their kink, pushed to either side: L = Σ relu(b)² + 3 relu(b) + b w. With relu'(0) = 0, H = d²(b w).
    def value_fn(params):
        return jnp.sum(
            jax.nn.relu(params["b"]) ** 2 + 3 * jax.nn.relu(params["b"]) + params["b"] * params["w"]
        )

    params = {"b": jnp.zeros(2, jnp.float32), "w": jnp.array([1.0, 2.0], jnp.float32)}
    vector = {"b": jnp.array([1.0, -2.0], jnp.float32), "w": jnp.array([0.5, 1.0], jnp.float32)}
    for mode in DIFFERENCES:
        product = quietly(derivatives.hessian_vector_product)(value_fn, params, vector, mode=mode)
        np.testing.assert_allclose(product["b"], vector["w"], rtol=0.01)
        np.testing.assert_allclose(product["w"], vector["b"], rtol=0.01)


@pytest.mark.parametrize("kink", [1e-5, -1e-5])
def test_a_central_difference_takes_the_half_without_the_kink(kink):
    def value_fn(x):
        return x**2 / 2 + 5 * jax.nn.relu(x - 1 - kink)

    x = jnp.float32(1.0)
    # The radius of one parameter reaches over the kink on either side.
    assert differences.default_radius("central_difference", 1, precision.of(value_fn, x)) > abs(
        kink
    )
    product = derivatives.hessian_vector_product(value_fn, x, x, mode="central_difference")
    assert float(product) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.gelu], ids=["tanh", "gelu"])
@pytest.mark.parametrize("num_steps", [0, 130])
def test_a_smooth_network_is_right_fresh_and_trained(activation, num_steps):
    # The smaller the gradient the more its own rounding counts: at a loss of 0.01 the radius of kinks gives 0.3.
    value_fn, params = digits_network(activation, convolutional=False)
    params = trained(value_fn, params, num_steps)
    assert num_steps == 0 or value_fn(params) < 0.02
    errors = errors_of_penalty_gradient(value_fn, params)
    assert errors.pop("central_difference") < 0.002
    assert max(errors.values()) < 0.02, errors


def test_a_central_difference_rounds_little_on_a_trained_network_of_relus():
    value_fn, params = digits_network(jax.nn.relu, convolutional=False)
    params = trained(value_fn, params, 150)
    assert value_fn(params) < 0.005
    # The near radius alone leaves 0.13.
    assert errors_of_penalty_gradient(value_fn, params)["central_difference"] < 0.08


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("mode", "count"), [("forward_difference", 2), ("central_difference", 2)])
def test_a_smooth_loss_costs_two_gradients_in_the_compiled_program(mode, count, known):
    value_fn, params = digits_network(jnp.tanh, convolutional=False)

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    def product(params, gradient):
        return derivatives.hessian_vector_product(
            value_fn,
            params,
            gradient,
            mode=mode,
            gradient_at_params=gradient if known else None,
        )

    one = flops(jax.grad(value_fn), params)
    expected = count - 1 if known and mode == "forward_difference" else count
    assert flops(product, params, params) / one == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("mode", ["forward_difference", "backward_difference"])
def test_a_one_sided_difference_warns_of_kinks_once(mode):
    def value_fn(x):
        return jnp.sum(jax.nn.relu(x) ** 2)

    x = jnp.ones(2, jnp.float32)
    penalty = optax_igr.add_gradient_penalty(0.1, hvp=mode)
    with pytest.warns(UserWarning, match=rf"^add_gradient_penalty: hvp='{mode}'.*central"):
        penalty.update(x, penalty.init(x), x, value_fn=value_fn)
    # Once, and not at all where the radius is the caller's.
    penalty.update(x, penalty.init(x), x, value_fn=value_fn)
    derivatives.hessian_vector_product(value_fn, x, x, mode=mode, radius=1e-3)


@pytest.mark.parametrize("mode", DIFFERENCES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_the_radius_follows_the_format_in_which_the_loss_is_computed(dtype, mode):
    value_fn, params = digits_network(jnp.tanh, convolutional=False, compute_dtype=dtype)
    params = trained(value_fn, params, num_steps=10)
    exact_fn, _ = digits_network(jnp.tanh, convolutional=False)
    gradient = jax.jit(jax.grad(value_fn))(params)
    with pytest.warns(UserWarning, match=f"computes in {jnp.dtype(dtype).name}"):
        product = jax.jit(
            functools.partial(derivatives.hessian_vector_product, value_fn, mode=mode)
        )(params, gradient)
    exact = jax.jit(
        functools.partial(derivatives.hessian_vector_product, exact_fn, mode="forward_over_reverse")
    )(params, gradient)
    assert relative_error(product, exact) < (0.1 if mode == "central_difference" else 0.2)


def test_a_radius_that_drowns_in_rounding_is_noticed():
    problem = tanh_network(dtype=jnp.float32)
    with pytest.warns(UserWarning, match="rounding alone is about 119%"):
        derivatives.hessian_vector_product(
            problem.value_fn, problem.params, problem.params, mode="central_difference", radius=1e-7
        )


def test_precision_follows_the_parameters_and_not_the_data():
    data = jnp.ones(3, jnp.bfloat16)

    def value_fn(w):
        scale = jnp.sum(jnp.sin(data)).astype(jnp.float32)
        return jnp.sum(w * data.astype(jnp.float32)) * scale

    w = jnp.ones(3, jnp.float32)
    assert precision.of(value_fn, w) == ("float32", 2.0**-23, False)
    assert precision.of(lambda w: value_fn(w.astype(jnp.bfloat16)), w).name == "bfloat16"

    @jax.jit
    def inside(w):
        def body(c, _):
            return jnp.maximum(c, 0.5).astype(jnp.float16).astype(jnp.float32), None

        return jnp.sum(jax.lax.scan(body, w, length=2)[0])

    assert precision.of(inside, w) == ("float16", 2.0**-10, True)


@pytest.mark.parametrize("norm", ["squared", "plain"])
@pytest.mark.parametrize("radius", [0.0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("mode", DIFFERENCES)
def test_a_schedule_of_the_radius_that_is_none_takes_the_default(mode, radius, norm):
    # L = Σ (1, 3) p² at (3, 1): g = (6, 6), H g = (12, 36), ‖g‖ = 6 √2.
    def value_fn(p):
        return jnp.sum(jnp.array([1, 3], p.dtype) * p**2)

    p = jnp.array([3.0, 1.0], jnp.float32)
    penalty = optax_igr.add_gradient_penalty(
        0.01, norm=norm, hvp=mode, radius=lambda count: jnp.asarray(radius, jnp.float32)
    )
    updates, _ = jax.jit(functools.partial(penalty.update, value_fn=value_fn))(
        jax.grad(value_fn)(p), penalty.init(p), p
    )
    expected = {
        "squared": [6.24, 6.72],
        "plain": 6 + 0.01 * np.array([12, 36]) / np.sqrt(72),
    }[norm]
    np.testing.assert_allclose(updates, expected, rtol=2e-4)
    # The penalty itself, beside the gradient of which it is a small part.
    np.testing.assert_allclose(updates - 6, np.asarray(expected) - 6, rtol=0.01)


@pytest.mark.parametrize("mode", DIFFERENCES)
def test_the_gradient_that_is_known_serves_where_no_parameter_is_zero(mode):
    calls = []

    def value_fn(x):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(jnp.sin(x)) + jnp.sum(jax.nn.relu(x - 3))

    @quietly
    def product(x, v):
        return derivatives.hessian_vector_product(
            value_fn, x, v, mode=mode, gradient_at_params=jnp.cos(x)
        )

    for x, evaluations in [(jnp.array([0.3, 1.0]), 1), (jnp.array([0.0, 1.0]), 2)]:
        calls.clear()
        found = jax.jit(product)(x, jnp.ones(2))
        jax.effects_barrier()
        np.testing.assert_allclose(found, -jnp.sin(x), atol=2e-5)
        assert len(calls) == (2 if mode == "central_difference" else evaluations)
