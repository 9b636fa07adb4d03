"""The Cauchy step against dense quadratics; the two meanings of the factor 2."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from optax_igr.step_size import cauchy
from tests.problems import tanh_network

RNG = np.random.default_rng(0)
EIGENVALUES = np.linspace(0.3, 7.0, 12)
BASIS = np.linalg.qr(RNG.normal(size=(12, 12)))[0]
HESSIAN = jnp.asarray(BASIS @ np.diag(EIGENVALUES) @ BASIS.T)
START = jnp.asarray(RNG.normal(size=12))
NETWORK = tanh_network(dtype=jnp.float64)


def quadratic(p):
    return p @ HESSIAN @ p / 2


def one_update(transform, params=START, value_fn=quadratic, **extra):
    updates = extra.pop("updates", None)
    gradient = jax.grad(value_fn)(params)
    updates = gradient if updates is None else updates
    update = jax.jit(
        lambda u: transform.update(u, transform.init(params), params, value_fn=value_fn, **extra)
    )
    return update(updates)


@pytest.mark.parametrize("along", ["gradient", "another direction"])
def test_the_step_ends_at_the_minimum_along_the_line(along):
    gradient = HESSIAN @ START
    direction = gradient if along == "gradient" else gradient * jnp.linspace(0.2, 2.0, 12)
    updates, _ = one_update(optax_igr.scale_by_cauchy_step(), updates=direction, grad=gradient)
    end = START - updates
    assert abs(float(direction @ (HESSIAN @ end))) < 1e-12
    fall = float(quadratic(end) - quadratic(START))
    np.testing.assert_allclose(fall, -0.5 * updates @ gradient, rtol=1e-12)


def test_the_descent_bound_is_twice_the_minimizer():
    gradient = HESSIAN @ START
    step, _ = one_update(optax_igr.scale_by_cauchy_step())

    def model(multiple):
        return float(quadratic(START - multiple * step) - quadratic(START))

    assert model(1.5) < 0
    assert abs(model(2.0)) < 1e-12 * float(quadratic(START))
    assert model(2.01) > 0
    length = float(step @ gradient / (gradient @ gradient))
    assert 1 / EIGENVALUES.max() <= length <= 1 / EIGENVALUES.min()


@pytest.mark.parametrize(("multiple", "converges"), [(1.99, True), (2.01, False)])
def test_gradient_descent_on_a_quadratic_converges_up_to_two_over_the_largest_eigenvalue(
    multiple, converges
):
    rate = multiple / EIGENVALUES.max()
    power = jnp.linalg.matrix_power(jnp.eye(12) - rate * HESSIAN, 3000)
    end = float(jnp.linalg.norm(power @ START))
    assert (end < 1e-6) == converges
    assert (end > 1e6) != converges


@pytest.mark.parametrize("rule", cauchy.RULES)
def test_the_rules_against_their_definitions_on_a_network(rule):
    flat, unravel = jax.flatten_util.ravel_pytree(NETWORK.params)

    def value_fn(x):
        return NETWORK.value_fn(unravel(x))

    g, hessian = jax.grad(value_fn)(flat), jax.hessian(value_fn)(flat)
    hg = hessian @ g
    expected = {
        "cauchy": (g @ g) / (g @ hg),
        "minimal_residual": (g @ hg) / (hg @ hg),
        "geometric_mean": jnp.linalg.norm(g) / jnp.linalg.norm(hg),
    }
    assert expected["minimal_residual"] < expected["geometric_mean"] < expected["cauchy"]
    transform = optax_igr.scale_by_cauchy_step(rule=rule)
    updates, state = one_update(transform, NETWORK.params, NETWORK.value_fn)
    found, _ = jax.flatten_util.ravel_pytree(updates)
    np.testing.assert_allclose(found, expected[rule] * g, rtol=1e-9)
    np.testing.assert_allclose(state.average_length, expected[rule], rtol=1e-6)


def test_the_minimal_residual_minimises_the_gradient_at_the_end():
    gradient = HESSIAN @ START
    direction = gradient * jnp.linspace(0.2, 2.0, 12)
    updates, _ = one_update(
        optax_igr.scale_by_cauchy_step(rule="minimal_residual"), updates=direction, grad=gradient
    )
    residual = gradient - HESSIAN @ updates
    assert abs(float(residual @ (HESSIAN @ direction))) < 1e-10


def test_curvature_of_its_own_batch():
    def doubled(p):
        return 2 * quadratic(p)

    alone, _ = one_update(optax_igr.scale_by_cauchy_step())
    halved, _ = one_update(optax_igr.scale_by_cauchy_step(), curvature_value_fn=doubled)
    np.testing.assert_allclose(halved, alone / 2, rtol=1e-12)


def test_without_positive_curvature_the_accepted_lengths_are_used_again():
    transform = optax_igr.scale_by_cauchy_step(fallback=0.125, ema=0.75)
    params = jnp.array([2.0])
    state = transform.init(params)
    lengths = []
    for curvature, gradient in (
        (-1.0, 1.0),
        (4.0, 1.0),
        (-3.0, 1.0),
        (2.0, 1.0),
        (1.0, 0.0),
        (1.0, jnp.nan),
    ):
        updates, state = transform.update(
            jnp.array([gradient]), state, params, value_fn=lambda p, c=curvature: c * p[0] ** 2 / 2
        )
        lengths.append(float(updates[0] / gradient) if gradient == 1 else None)
    # 1/4 alone, then the mean of 1/4 and 1/2 with the weights 0.75 and 1.
    mean = (0.75 * 0.25 + 0.5) / 1.75
    np.testing.assert_allclose(lengths[:4], [0.125, 0.25, 0.25, mean], rtol=1e-6)
    assert int(state.rejected_count) == 4
    np.testing.assert_allclose(state.average_length, mean, rtol=1e-6)


def test_a_direction_of_ascent_is_not_turned_round():
    transform = optax_igr.scale_by_cauchy_step(fallback=0.5)
    gradient = HESSIAN @ START
    updates, state = one_update(transform, updates=-gradient, grad=gradient)
    np.testing.assert_allclose(updates, -0.5 * gradient, rtol=1e-12)
    assert int(state.rejected_count) == 1


@pytest.mark.parametrize(
    ("curvatures", "gradient"),
    [((1.0, 100.0), (1.0, -0.05)), ((1.0, 100.0), (-1.0, 0.05)), ((1.0, -2.0), (3.0, -1.0))],
    ids=["gᵀHu < 0", "uᵀg < 0", "uᵀHu < 0"],
)
@pytest.mark.parametrize("rule", ["minimal_residual", "geometric_mean"])
def test_every_rule_needs_a_slope_and_a_curvature_that_are_positive(rule, curvatures, gradient):
    # In each case the two other products are positive.
    transform = optax_igr.scale_by_cauchy_step(rule=rule, fallback=0.5)
    updates, state = one_update(
        transform,
        jnp.ones(2),
        lambda p: jnp.sum(jnp.array(curvatures) * p**2) / 2,
        updates=jnp.ones(2),
        grad=jnp.array(gradient),
    )
    np.testing.assert_allclose(updates, 0.5, rtol=1e-12)
    assert int(state.rejected_count) == 1


def test_a_length_that_overflows_is_rejected():
    transform = optax_igr.scale_by_cauchy_step(fallback=0.5)
    params = jnp.ones(1, jnp.float32)
    updates, state = one_update(
        transform,
        params,
        lambda p: 5e-32 * jnp.sum(p**2),
        updates=1e-3 * params,
        grad=1e5 * params,
    )
    np.testing.assert_allclose(updates, 0.5e-3, rtol=1e-6)
    assert (int(state.rejected_count), float(state.average_length)) == (1, 0)


@pytest.mark.parametrize(("bounds", "length"), [((1e-3, 0.01), 0.01), ((3.0, 5.0), 3.0)])
def test_bounds_hold(bounds, length):
    updates, _ = one_update(optax_igr.scale_by_cauchy_step(bounds=bounds))
    np.testing.assert_allclose(updates, length * (HESSIAN @ START), rtol=1e-9)


def test_a_difference_approaches_the_exact_length():
    exact, _ = one_update(optax_igr.scale_by_cauchy_step(), NETWORK.params, NETWORK.value_fn)
    errors = []
    for radius in (0.02, 0.01):
        transform = optax_igr.scale_by_cauchy_step(hvp="central_difference", radius=radius)
        found, _ = one_update(transform, NETWORK.params, NETWORK.value_fn)
        errors.append(float(optax.tree.norm(optax.tree.sub(found, exact))))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.05)


def test_schedules_are_evaluated_at_the_number_of_updates_so_far():
    def factors(value_fn, **arguments):
        transform = optax_igr.scale_by_cauchy_step(**arguments)
        params = jnp.array([1.5])
        update = jax.jit(
            lambda s: transform.update(jnp.ones(1), s, params, grad=params, value_fn=value_fn)
        )
        state = transform.init(params)
        for _ in range(2):
            updates, state = update(state)
            yield float(updates[0])

    # A linear loss has no curvature, and the fallback is in force.
    np.testing.assert_allclose(list(factors(jnp.sum, fallback=lambda t: 3.0 + t)), [3, 4])
    # A forward difference of 4 p³ over r is 12 p² + 12 p r + 4 r².
    found = factors(
        lambda p: jnp.sum(p**4), hvp="forward_difference", radius=lambda t: 0.1 / (1 + t)
    )
    expected = [1.5 / (27 + 18 * r + 4 * r**2) for r in (0.1, 0.05)]
    np.testing.assert_allclose(list(found), expected, rtol=1e-6)


def test_integer_parameters_are_constants():
    params = {"w": jnp.array([3.0]), "n": jnp.array([2])}
    transform = optax_igr.scale_by_cauchy_step()
    updates, _ = transform.update(
        {"w": jnp.array([5.0]), "n": jnp.array([0])},
        transform.init(params),
        params,
        value_fn=lambda p: jnp.sum(p["n"] * p["w"] ** 2),
    )
    # The curvature is 4 in w, and the minimizer of the model along it at a step of 5/4.
    np.testing.assert_allclose(updates["w"], 5 / 4)
    np.testing.assert_array_equal(updates["n"], 0)


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15, 1e30])
@pytest.mark.parametrize("rule", cauchy.RULES)
def test_no_size_of_the_direction_overflows(rule, size):
    """The step does not depend on the length of the direction, down to where a float32 has its limits."""
    curvatures = jnp.array([1.0, 4.0, 9.0], jnp.float32)
    params = jnp.array([1.0, -2.0, 0.5], jnp.float32)
    transform = optax_igr.scale_by_cauchy_step(rule=rule)

    def step(factor):
        updates, state = transform.update(
            jnp.float32(factor) * params,
            transform.init(params),
            params,
            value_fn=lambda p: jnp.sum(curvatures * p**2) / 2,
            grad=curvatures * params,
        )
        assert int(state.rejected_count) == 0
        return updates

    np.testing.assert_allclose(step(size), step(1.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "newton"}, "rule.*'cauchy'"),
        ({"ema": 1.0}, "ema.*< 1"),
        ({"fallback": -1.0}, "fallback.*>= 0"),
        ({"radius": 0.1, "hvp": "reverse_over_reverse"}, "radius.*exact"),
        ({"hvp": "dense"}, "hvp"),
        ({"bounds": (2, 1)}, "bounds"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=f"scale_by_cauchy_step.*{message}"):
        optax_igr.scale_by_cauchy_step(**arguments)


BOUNDARIES = {"zero": 0.0, "one": 1.0, "above": 7.0, "below": -1.0, "nan": np.nan, "inf": np.inf}


@pytest.mark.parametrize("boundary", BOUNDARIES.values(), ids=BOUNDARIES)
@pytest.mark.parametrize("name", ["ema", "fallback", "radius"])
def test_a_schedule_at_its_boundary_leaves_all_finite(name, boundary):
    good = {"ema": 0.5, "fallback": 0.1, "radius": 1e-2}
    arguments = {**good, name: lambda t: jnp.where(t == 1, boundary, good[name])}
    transform = optax_igr.scale_by_cauchy_step(**arguments, hvp="central_difference")
    curvatures = jnp.array([1.0, 4.0])

    def value_fn(p):
        return jnp.sum(curvatures * p**2) / 2

    params = jnp.array([1.0, -2.0])
    state = transform.init(params)
    # The first gradient is zero, so that the fallback is in force.
    for factor in (0.0, 0.0, 1.0, 1.0):
        updates, state = transform.update(
            factor * curvatures * params, state, params, value_fn=value_fn
        )
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((updates, state)))
    gradient = curvatures * params
    length = gradient @ gradient / (gradient @ (curvatures * gradient))
    np.testing.assert_allclose(updates, length * gradient, rtol=1e-5)


def test_it_stands_behind_the_pairs_of_lbfgs_not_before_them():
    """Scaled updates are no gradients: pairs made from them have another curvature than the loss."""
    curvatures = jnp.geomspace(1.0, 100.0, 8)

    def value_fn(p):
        return jnp.sum(curvatures * p**2) / 2

    def losses(*links):
        optimizer = optax.chain(*links, optax.scale(-1.0))

        @jax.jit
        def step(params, state):
            value, grad = jax.value_and_grad(value_fn)(params)
            updates, state = optimizer.update(grad, state, params, value_fn=value_fn, grad=grad)
            return optax.apply_updates(params, updates), state, value

        params, state, values = jnp.ones(8), None, []
        state = optimizer.init(params)
        for _ in range(30):
            params, state, value = step(params, state)
            values.append(float(value))
        return np.array(values)

    cauchy_step, lbfgs = optax_igr.scale_by_cauchy_step(), optax.scale_by_lbfgs()
    behind = losses(lbfgs, cauchy_step)
    assert np.all(np.diff(behind) <= 0)
    assert behind[-1] < 1e-12
    before = losses(cauchy_step, lbfgs)
    assert not before[-1] < 1e-12
