"""Losses that JAX differentiates in some modes only: each mode, in and out of jit, against sin(x)² by hand."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas

import optax_igr
from optax_igr._core import derivatives, differentiability


def on_host(function, x):
    return jax.pure_callback(
        lambda a: np.asarray(function(np.asarray(a)), a.dtype),
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        x,
        vmap_method="sequential",
    )


@jax.custom_vjp
def with_jax_rule(x):
    return jnp.sin(x)


with_jax_rule.defvjp(lambda x: (jnp.sin(x), x), lambda x, cotangent: (jnp.cos(x) * cotangent,))


@jax.custom_vjp
def with_recursive_rule(x):
    return jnp.sin(x)


# As most kernels are written: the forward rule calls the function itself.
with_recursive_rule.defvjp(
    lambda x: (with_recursive_rule(x), x), lambda x, cotangent: (jnp.cos(x) * cotangent,)
)


@jax.custom_vjp
def with_rule_in_reverse_mode_only(x):
    return jnp.sin(x)


@jax.custom_vjp
def cosine(x):
    return jnp.cos(x)


cosine.defvjp(lambda x: (cosine(x), x), lambda x, cotangent: (-jnp.sin(x) * cotangent,))
with_rule_in_reverse_mode_only.defvjp(
    lambda x: (with_rule_in_reverse_mode_only(x), x), lambda x, cotangent: (cosine(x) * cotangent,)
)


@jax.custom_vjp
def with_opaque_rule(x):
    return jnp.sin(x)


with_opaque_rule.defvjp(
    lambda x: (jnp.sin(x), x), lambda x, cotangent: (on_host(np.cos, x) * cotangent,)
)


@jax.custom_jvp
def callback(x):
    return on_host(np.sin, x)


callback.defjvp(lambda x, dx: (callback(x[0]), on_host(np.cos, x[0]) * dx[0]))


def loop(step, start, num_steps):
    """A loop whose number of steps JAX does not know, as in the solvers of diffrax."""
    return jax.lax.while_loop(
        lambda carry: carry[0] < num_steps, lambda c: (c[0] + 1, step(c[1])), (0, start)
    )[1]


@jax.custom_vjp
def solve(x):
    return jnp.sin(x) * loop(lambda y: y / 2, jnp.float64(8.0), 3)


solve.defvjp(
    lambda x: (solve(x), x),
    lambda x, cotangent: (loop(lambda y: y + jnp.cos(x) * cotangent / 4, jnp.zeros_like(x), 4),),
)


def kernel(function):
    def body(*references):
        *inputs, output = references
        output[...] = function(*(reference[...] for reference in inputs))

    return lambda x, *others: pallas.pallas_call(
        body, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True
    )(x, *others)


@jax.custom_vjp
def pallas_sine(x):
    return kernel(jnp.sin)(x)


pallas_sine.defvjp(
    lambda x: (kernel(jnp.sin)(x), x),
    lambda x, cotangent: (kernel(lambda a, b: jnp.cos(a) * b)(x, cotangent),),
)

FORWARD, MIXED, REVERSE = derivatives.EXACT_MODES
# Each function is the sine; the modes that JAX differentiates its square by.
FUNCTIONS = {
    jnp.sin: {FORWARD, MIXED, REVERSE},
    with_jax_rule: {FORWARD, REVERSE},
    with_recursive_rule: {REVERSE},
    with_rule_in_reverse_mode_only: {REVERSE},
    with_opaque_rule: set(),
    callback: set(),
    solve: set(),
    pallas_sine: {FORWARD},
}
X, V = jnp.array([0.3, 1.0, 2.0]), jnp.array([1.0, -2.0, 0.5])
EXPECTED = 2 * np.cos(2 * X) * V

functions = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
in_and_out_of_jit = pytest.mark.parametrize(
    "transform", [lambda f: f, jax.jit], ids=["eager", "jit"]
)


def square_of(function):
    return lambda x: jnp.sum(function(x) ** 2)


@pytest.fixture(autouse=True)
def nothing_announced(monkeypatch):
    monkeypatch.setattr(differentiability, "_announced", set())


def both_products(value_fn, mode):
    """The product at once, and by an operator inside a loop."""

    def by_operator(x, v):
        product = derivatives.hessian_operator(value_fn, x, mode=mode, name="by_operator")
        return jax.lax.scan(lambda _, v: (None, product(v)), None, v[None])[1][0]

    return (
        lambda x, v: derivatives.hessian_vector_product(value_fn, x, v, mode=mode, name="at_once"),
        by_operator,
    )


@in_and_out_of_jit
@pytest.mark.parametrize("mode", [*derivatives.EXACT_MODES, *derivatives.DIFFERENCE_MODES])
@functions
def test_a_mode_is_right_or_says_what_to_use(function, mode, transform):
    for product in both_products(square_of(function), mode):
        if mode in derivatives.DIFFERENCE_MODES or mode in FUNCTIONS[function]:
            tolerance = 1e-12 if mode in derivatives.EXACT_MODES else 1e-6
            np.testing.assert_allclose(transform(product)(X, V), EXPECTED, rtol=tolerance)
        else:
            with pytest.raises(ValueError, match=rf"^(at_once|by_operator): hvp='{mode}'.*'auto'"):
                transform(product)(X, V)


@in_and_out_of_jit
@functions
def test_auto_takes_an_exact_mode_where_there_is_one_and_says_once_what_it_takes_else(
    function, transform
):
    allowed = FUNCTIONS[function]
    for product in both_products(square_of(function), "auto"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                found = transform(lambda *arguments, product=product: product(*arguments))(X, V)
        np.testing.assert_allclose(found, EXPECTED, rtol=1e-12 if allowed else 1e-8)
        texts = [str(warning.message) for warning in caught]
        if FORWARD in allowed or MIXED in allowed:
            assert not texts
        else:
            taken = REVERSE if allowed else derivatives.LAST_RESORT
            assert len(texts) == 1
            assert f"`auto` takes '{taken}'" in texts[0]
            assert texts[0].startswith(("at_once: ", "by_operator: "))
            assert FORWARD in texts[0]


def test_auto_passes_its_radius_on_to_the_last_resort():
    with pytest.warns(UserWarning, match="central_difference"):
        product = derivatives.hessian_vector_product(
            square_of(with_opaque_rule), X, V, radius=0.5, mode="auto"
        )
    expected = derivatives.hessian_vector_product(
        square_of(jnp.sin), X, V, radius=0.5, mode="central_difference"
    )
    np.testing.assert_allclose(product, expected, rtol=1e-12)


def test_a_warning_that_is_an_error_is_one_every_time():
    for _ in range(2):
        with pytest.raises(UserWarning, match="auto"):
            derivatives.hessian_vector_product(square_of(callback), X, V)


@in_and_out_of_jit
def test_a_forward_derivative_that_nothing_uses_is_no_obstacle(transform):
    # The tangent of the loss itself: a fused loss function is mostly such a `jax.custom_vjp`.
    product = functools.partial(
        derivatives.hessian_vector_product, lambda x: jnp.sum(with_recursive_rule(x)), mode=FORWARD
    )
    np.testing.assert_allclose(transform(product)(X, V), -jnp.sin(X) * V, rtol=1e-12)


@pytest.mark.parametrize("mode", derivatives.MODES)
def test_a_loss_without_a_gradient_raises_its_own_error(mode):
    def value_fn(x):
        return jnp.sum(x @ jnp.ones((7, 7)))

    with pytest.raises(TypeError, match="dot_general"):
        derivatives.hessian_vector_product(value_fn, X, V, mode=mode)


def test_python_that_looks_at_numbers_runs_out_of_jit():
    def value_fn(x):
        return jnp.sum(x**3) if x[0] > 0 else jnp.sum(x)

    for product in both_products(value_fn, "auto")[:1]:
        np.testing.assert_allclose(product(X, V), 6 * X * V, rtol=1e-12)


@in_and_out_of_jit
@pytest.mark.parametrize(
    "function", [jnp.sin, with_jax_rule, with_recursive_rule], ids=["plain", "rule", "recursive"]
)
def test_gauss_newton_product_of_a_model_without_a_forward_derivative(function, transform):
    def product(x, v):
        return derivatives.gauss_newton_vector_product(
            function, lambda outputs: jnp.sum(outputs**4), x, v
        )

    # With y = sin x: yᵀ' 12 y² y' v.
    expected = np.cos(X) ** 2 * 12 * np.sin(X) ** 2 * V
    np.testing.assert_allclose(transform(product)(X, V), expected, rtol=1e-12)


def test_gauss_newton_product_without_either_derivative_is_refused():
    @jax.custom_vjp
    def model(x):
        return jnp.sin(x)

    def rule(x, cotangent):
        return (on_host(np.negative, cotangent),)

    model.defvjp(lambda x: (model(x), x), rule)
    with pytest.raises(ValueError, match=r"^somebody: a Gauss-Newton product takes J v"):
        derivatives.gauss_newton_operator(model, jnp.sum, X, name="somebody")


@pytest.mark.parametrize("name", ["add_gradient_penalty", "add_igr", "cancel_igr"])
def test_the_message_names_the_transform(name):
    value_fn = square_of(with_opaque_rule)
    transform = getattr(optax_igr, name)(0.1)
    gradient = jax.grad(value_fn)(X)
    with pytest.warns(UserWarning, match=f"^{name}: `auto` takes 'central_difference'"):
        transform.update(gradient, transform.init(X), X, value_fn=value_fn)
    transform = getattr(optax_igr, name)(0.1, hvp="reverse_over_reverse")
    with pytest.raises(ValueError, match=f"^{name}: hvp='reverse_over_reverse'"):
        jax.jit(functools.partial(transform.update, value_fn=value_fn))(
            gradient, transform.init(X), X
        )


@in_and_out_of_jit
def test_auto_takes_every_narrow_leaf_in_float32_where_it_takes_a_difference(transform):
    params = {"a": jnp.array([0.3, 1.0], jnp.bfloat16), "held": jnp.array(0.5, jnp.bfloat16)}

    def value_fn(params):
        # A scan refuses a carry whose dtype changes.
        last, _ = jax.lax.scan(
            lambda y, _: (with_opaque_rule(y) * params["held"], None), params["a"], length=2
        )
        return jnp.sum(last.astype(jnp.float32) ** 2)

    penalty = optax_igr.add_gradient_penalty(0.1, mask={"a": True, "held": False})
    gradient = jax.grad(value_fn)(params)
    with pytest.warns(UserWarning, match="central_difference"):
        updates, _ = transform(functools.partial(penalty.update, value_fn=value_fn))(
            gradient, penalty.init(params), params
        )

    def smooth(a):
        return jnp.sum((jnp.sin(jnp.sin(a) / 2) / 2) ** 2)

    g, a = (jnp.asarray(x["a"], jnp.float64) for x in (gradient, params))
    expected = g + 0.2 * jax.hessian(smooth)(a) @ g
    np.testing.assert_allclose(jnp.asarray(updates["a"], jnp.float64), expected, rtol=1e-2)
    assert updates["held"] == gradient["held"]
