"""The modified flow: rational series, orders of convergence, closed forms, and what it costs."""

import fractions
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_igr import flows
from optax_igr.flows.modified_flow import step_size_derivatives
from tests.problems import tanh_network, two_weights

SMALL_NETWORK = tanh_network((2, 3, 1), num_samples=4, dtype=jnp.float64)


def predator_and_prey(z):
    """Not a gradient: its Jacobian is not symmetric."""
    x, y = z["x"], z["y"]
    return {"x": x * (1 - y), "y": -y * (1.5 - x + jnp.sin(y))}


# A field, a start, and two step sizes at which the next order is already small.
SMOOTH = {
    "quartic": (flows.gradient_flow(two_weights().value_fn), jnp.array([1.4, 1.1]), (0.02, 0.01)),
    "not_a_gradient": (
        predator_and_prey,
        {"x": jnp.array(0.7), "y": jnp.array(1.3)},
        (0.02, 0.01),
    ),
    "network": (flows.gradient_flow(SMALL_NETWORK.value_fn), SMALL_NETWORK.params, (0.1, 0.05)),
}


def euler(field):
    return lambda params, h: jax.tree.map(lambda p, f: p + h * f, params, field(params))


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("problem", SMOOTH)
def test_local_error_has_slope_order_plus_two(problem, order):
    field, params, step_sizes = SMOOTH[problem]
    result = flows.convergence_order(
        euler(field), lambda h: flows.modified_flow(field, h, order), params, step_sizes
    )
    assert abs(result.slope - (order + 2)) < 0.16


def test_global_error_has_slope_order_plus_one():
    field, params, _ = SMOOTH["not_a_gradient"]
    result = flows.convergence_order(
        euler(field),
        lambda h: flows.modified_flow(field, h, 2),
        params,
        (0.05, 0.025),
        duration=1.0,
    )
    assert abs(result.slope - 3) < 0.15


@pytest.mark.parametrize("order", [0, 1, 3])
def test_relu_has_no_order(order):
    """A step across a kink of the loss ends h/2 from every flow: the derivatives do not see it."""
    field = flows.gradient_flow(lambda x: x + jax.nn.relu(x))
    errors = []
    for step_count in (5, 9, 17):
        # Each of these step sizes crosses x = 0 in the middle of a step.
        h = 1 / step_count
        end = jnp.array(1.0)
        for _ in range(step_count):
            end = end + h * field(end)
        flow = flows.modified_flow(field, h, order)
        errors.append(end - flows.integrate(flow, jnp.array(1.0), 1.0, rtol=1e-6))
    np.testing.assert_allclose(errors, [-1 / 10, -1 / 18, -1 / 34], atol=1e-4)


class Series:
    """A polynomial in h with rational coefficients, truncated."""

    length = 7

    def __init__(self, coefficients):
        padded = [fractions.Fraction(c) for c in coefficients] + [
            fractions.Fraction(0)
        ] * self.length
        self.coefficients = padded[: self.length]

    def __add__(self, other):
        return Series(a + b for a, b in zip(self.coefficients, other.coefficients, strict=True))

    def __mul__(self, other):
        product = [fractions.Fraction(0)] * self.length
        for i, j in itertools.product(range(self.length), repeat=2):
            if i + j < self.length:
                product[i + j] += self.coefficients[i] * other.coefficients[j]
        return Series(product)


def random_polynomials(degree, rng):
    """Two polynomials in two variables, each with two monomials of every degree: {(a, b): factor}."""
    return [
        {
            (int(a), n - int(a)): fractions.Fraction(int(rng.integers(1, 10)), 8)
            for n in range(degree + 1)
            for a in rng.permutation(n + 1)[:2]
        }
        for _ in range(2)
    ]


def exact_series(polynomials, start, order):
    """The coefficients of f̃ in h, from h f̃ = log(1 + Δ) z on the series of Euler's iterates in h."""
    h, one = Series([0, 1]), Series([1])

    def power(x, n):
        return math.prod([x] * n, start=one)

    def field(z):
        return [
            sum(
                (Series([c]) * power(z[0], a) * power(z[1], b) for (a, b), c in p.items()),
                Series([0]),
            )
            for p in polynomials
        ]

    iterates = [[Series([x]) for x in start]]
    for _ in range(order + 1):
        z = iterates[-1]
        iterates.append([x + h * f for x, f in zip(z, field(z), strict=True)])
    coefficients = []
    for i in range(2):
        differences = [z[i] for z in iterates]
        total = Series([0])
        for k in range(1, order + 2):
            differences = [b + Series([-1]) * a for a, b in itertools.pairwise(differences)]
            total = total + Series([fractions.Fraction((-1) ** (k - 1), k)]) * differences[0]
        coefficients.append(total.coefficients[1 : order + 2])
    return np.array(coefficients, dtype=float).T


def test_every_coefficient_of_a_random_field_equals_its_rational_series():
    """The field has all derivatives to the fifth, and no symmetry: each term of each order counts."""
    rng = np.random.default_rng(0)
    polynomials = random_polynomials(5, rng)
    start = [fractions.Fraction(3, 4), fractions.Fraction(-5, 8)]

    def field(z):
        return jnp.stack(
            [sum(float(c) * z[0] ** a * z[1] ** b for (a, b), c in p.items()) for p in polynomials]
        )

    params = jnp.array([float(x) for x in start])
    derivatives = jax.jit(lambda p: step_size_derivatives(field, p, 5))(params)
    ours = [d / math.factorial(j) for j, d in enumerate(derivatives)]
    np.testing.assert_allclose(ours, exact_series(polynomials, start, 5), rtol=1e-12)


def test_cubic_loss_has_the_series_of_hairer_lubich_and_wanner():
    """E = -θ³/3, so f = θ²."""
    flow = [flows.modified_flow(lambda x: x**2, 1.0, order)(1.0) for order in range(7)]
    np.testing.assert_allclose(
        np.diff(flow), [-1, 3 / 2, -8 / 3, 31 / 6, -157 / 15, 649 / 30], rtol=1e-13
    )


def test_quadratic_loss_has_the_logarithmic_series():
    """θ(1) for λ = 1 and h = 0.1: gradient flow, orders 1 to 3; gradient descent is .3486784401."""
    ends = [jnp.exp(flows.modified_flow(lambda x: -x, 0.1, order)(1.0)) for order in range(4)]
    np.testing.assert_allclose(
        ends, [0.3678794412, 0.3499377491, 0.3487732319, 0.3486860495], rtol=1e-9
    )


def test_second_order_on_the_two_weight_model():
    """-g - h/2 Hg - h²(H²g/3 + T(g,g)/12), from published values of g, Hg, H²g and T."""
    h = 0.025
    g, hg = np.array([32.2, 25.76]), np.array([883.89, 813.7584])
    hhg, third = np.array([26289.0621, 23173.775856]), np.array([15328.64256, 16547.9664])
    expected = -g - h / 2 * hg - h**2 * (hhg / 3 + third / 12)
    problem = two_weights()
    flow = flows.modified_flow(flows.gradient_flow(problem.value_fn), h, 2)
    np.testing.assert_allclose(flow(problem.params), expected, rtol=1e-12)


def test_conserved_quantity_of_the_two_weight_model_decays_as_gradient_descent_shrinks_it():
    """a² - b² is constant along gradient flow; the first-order flow has d/dt = -h r² x² (a² - b²)."""
    problem, h = two_weights(), 0.025
    a, b = problem.params
    velocity = flows.modified_flow(flows.gradient_flow(problem.value_fn), h, 1)(problem.params)
    rate = 2 * a * velocity[0] - 2 * b * velocity[1]
    np.testing.assert_allclose(rate, -h * (a * b - 0.6) ** 2 * (a**2 - b**2), rtol=1e-10)


def test_scale_invariant_loss_grows_its_norm():
    """For E(w/‖w‖): g·w = 0, and the first-order flow has d‖w‖²/dt = h‖g‖²."""
    field = flows.gradient_flow(lambda w: jnp.sin(w[0] * w[1] ** 2 / jnp.linalg.norm(w) ** 3))
    w = jnp.array([0.8, -1.1, 0.4])
    velocity = flows.modified_flow(field, 0.1, 1)(w)
    np.testing.assert_allclose(2 * jnp.sum(w * velocity), 0.1 * jnp.sum(field(w) ** 2), rtol=1e-10)


def test_order_zero_and_step_size_zero_are_the_field_itself():
    field, params, _ = SMOOTH["not_a_gradient"]
    for flow in (flows.modified_flow(field, 0.3, 0), flows.modified_flow(field, 0.0, 2)):
        assert flow(params) == field(params)


def test_any_tree_of_parameters():
    """Integer leaves stand still, None and masked leaves stay, each leaf keeps its dtype."""
    params = {
        "weights": (jnp.ones((2, 3), jnp.bfloat16), jnp.float32(0.5)),
        "count": jnp.int32(3),
        "nothing": None,
        "masked": optax.MaskedNode(),
        "complex": jnp.array([1.0 + 2.0j]),
    }

    def value_fn(p):
        matrix, scalar = p["weights"]
        size = jnp.sum(jnp.abs(p["complex"]) ** 2)
        return p["count"] * jnp.sum(matrix.astype(jnp.float32) ** 2) * scalar**2 + size

    flow = flows.modified_flow(flows.gradient_flow(value_fn), 0.01, 2)
    velocity = jax.jit(flow)(params)
    assert jax.tree.structure(velocity) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(lambda v, p: v.dtype == p.dtype, velocity, params))
    assert velocity["count"] == 0
    # |z|² has rate λ = 2: its direction of steepest descent is -2z.
    expected = -(2 + 0.01 / 2 * 2**2 + 0.01**2 / 3 * 2**3) * params["complex"]
    np.testing.assert_allclose(velocity["complex"], expected, rtol=1e-12)


def test_no_leaves():
    assert flows.modified_flow(lambda p: p, 0.1, 3)({}) == {}


def test_batched_and_differentiated():
    flow = flows.modified_flow(lambda x: x**2, 0.1, 2)
    points = jnp.array([0.5, -0.3])
    values, slopes = jax.vmap(jax.value_and_grad(flow))(points)
    expected = np.polynomial.Polynomial([0, 0, 1, -0.1, 0.015])
    np.testing.assert_allclose(values, expected(points), rtol=1e-12)
    np.testing.assert_allclose(slopes, expected.deriv()(points), rtol=1e-12)


def test_step_size_may_be_traced():
    flow = jax.jit(lambda h: flows.modified_flow(lambda x: x**2, h, 1)(1.0))
    np.testing.assert_allclose(flow(0.25), 0.75)


@pytest.mark.parametrize(("order", "most"), [(1, 2.85), (2, 5.5), (3, 10.7), (4, 24.5), (5, 43.0)])
def test_cost_in_gradients(order, most):
    """Each derivative is computed once, behind `log_softmax` too, where XLA does not see that."""
    rng = np.random.default_rng(0)
    widths = (64, 128, 128, 10)
    params = [
        jnp.array(rng.normal(size=shape), jnp.float32) for shape in itertools.pairwise(widths)
    ]
    inputs = jnp.array(rng.normal(size=(128, 64)), jnp.float32)
    labels = jax.nn.one_hot(jnp.arange(128) % 10, 10)

    def value_fn(params):
        x = inputs
        for kernel in params[:-1]:
            x = jnp.tanh(x @ kernel)
        return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(x @ params[-1]), axis=1))

    def operations(fn):
        return jax.jit(fn).lower(params).compile().cost_analysis()["flops"]

    field = flows.gradient_flow(value_fn)
    assert operations(flows.modified_flow(field, 0.1, order)) < most * operations(field)


@pytest.mark.parametrize(
    ("step_size", "order", "message"),
    [
        ("fast", 1, "modified_flow: `step_size` must be a real number, got 'fast'"),
        (lambda count: 0.1, 1, "modified_flow: `step_size` must be a real number"),
        (0.1, -1, "modified_flow: `order` must be an integer >= 0, got -1"),
        (0.1, 1.5, "modified_flow: `order` must be an integer >= 0, got 1.5"),
    ],
)
def test_bad_arguments(step_size, order, message):
    with pytest.raises(ValueError, match=message.replace("`", ".")):
        flows.modified_flow(lambda x: x, step_size, order)


def test_a_field_of_another_shape():
    flow = flows.modified_flow(lambda p: {"w": p["w"][None]}, 0.1, 1)
    with pytest.raises(ValueError, match=r"modified_flow: .field.*'w'"):
        flow({"w": jnp.ones(2)})
