"""Newton-CG against dense solves, a plain truncated solver and the ratio in closed form, in float64."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import optax_igr
from optax_igr._core import derivatives
from optax_igr.curvature._conjugate_gradient import truncated_cg
from tests.curvature import dense
from tests.problems import tanh_network

NETWORK = tanh_network(dtype=jnp.float64)
TREE = {"a": jnp.zeros([2, 2]), "b": jnp.zeros([4])}
SIZE = 8
_, unravel = jax.flatten_util.ravel_pytree(TREE)


def ravel(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def quadratic(matrix, minimiser):
    def value_fn(params):
        x = ravel(params) - minimiser
        return x @ matrix @ x / 2 + 3.0

    return value_fn


@functools.cache
def compiled_update(value_fn, arguments, options):
    transform = optax_igr.scale_by_newton_cg(**dict(options))

    @jax.jit
    def update(params, state):
        return transform.update(jax.grad(value_fn)(params), state, params, **dict(arguments))

    return transform, update


def solve(value_fn, params, *, state=None, arguments=None, **options):
    """One update: (u, state)."""
    arguments = {"value_fn": value_fn} if arguments is None else arguments
    transform, update = compiled_update(value_fn, tuple(arguments.items()), tuple(options.items()))
    return update(params, transform.init(params) if state is None else state)


def test_one_step_solves_a_positive_definite_quadratic():
    minimiser = np.random.default_rng(0).normal(size=SIZE)
    value_fn = quadratic(dense.spd(SIZE, 10.0), minimiser)
    params = unravel(jnp.ones(SIZE))
    direction, state = solve(value_fn, params, damping=0.0, tolerance=0.0, max_steps=SIZE)
    np.testing.assert_allclose(ravel(params) - ravel(direction), minimiser, atol=1e-12)
    assert state.num_products <= SIZE + 1
    assert state.damping == 0
    assert not state.met_negative_curvature


def test_a_solve_ends_at_the_first_residual_below_the_tolerance():
    matrix, b = dense.spd(SIZE, 30.0), np.random.default_rng(1).normal(size=SIZE)
    solve_one = jax.jit(
        lambda n, tolerance: truncated_cg(lambda v: matrix @ v, b, max_steps=n, tolerance=tolerance)
    )
    for tolerance in (0.3, 0.1, 0.03):
        residuals = []
        for max_steps in range(1, SIZE + 1):
            solution = solve_one(max_steps, tolerance)
            residual = b - matrix @ np.asarray(solution.x)
            np.testing.assert_allclose(solution.residual, residual, atol=1e-11)
            residuals.append(np.linalg.norm(residual) / np.linalg.norm(b))
        num_steps = int(solution.num_products)
        assert 1 < num_steps < SIZE
        assert residuals[num_steps - 1] <= tolerance < residuals[num_steps - 2]


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_the_direction_solves_the_damped_dense_system(curvature):
    flat, unflatten = jax.flatten_util.ravel_pytree(NETWORK.params)
    if curvature == "hessian":
        matrix = jax.jit(jax.hessian(lambda x: NETWORK.value_fn(unflatten(x))))(flat)
        damping = 1e-2 - float(jnp.linalg.eigvalsh(matrix)[0])
    else:
        jacobian = jax.jit(jax.jacobian(lambda x: ravel(NETWORK.outputs_fn(unflatten(x)))))(flat)
        matrix, damping = 2 * jacobian.T @ jacobian, 1e-2
    damping = float(np.float32(damping))
    gradient = ravel(jax.jit(jax.grad(NETWORK.value_fn))(NETWORK.params))
    expected = jnp.linalg.solve(matrix + damping * jnp.eye(flat.size), gradient)

    arguments = {
        "value_fn": NETWORK.value_fn,
        "outputs_fn": NETWORK.outputs_fn,
        "output_loss_fn": NETWORK.output_loss_fn,
    }
    _, state = solve(
        NETWORK.value_fn,
        NETWORK.params,
        arguments=arguments,
        damping=damping,
        tolerance=1e-12,
        max_steps=400,
        curvature=curvature,
    )
    np.testing.assert_allclose(ravel(state.direction), expected, rtol=1e-8, atol=1e-10)
    assert not state.met_negative_curvature


def steihaug(matrix, b, max_steps, tolerance):
    """Conjugate gradients from zero: (x, whether negative curvature ended them)."""
    x, r, p = np.zeros_like(b), b, b
    for k in range(max_steps):
        if np.linalg.norm(r) <= tolerance * np.linalg.norm(b):
            break
        curvature = p @ matrix @ p
        if curvature <= 0:
            return (b if k == 0 else x), True
        alpha = r @ r / curvature
        x, new = x + alpha * p, r - alpha * matrix @ p
        p, r = new + new @ new / (r @ r) * p, new
    return x, False


def test_at_a_saddle_every_direction_descends_and_is_that_of_steihaug():
    rng = np.random.default_rng(2)
    solve_one = jax.jit(
        lambda a, b: truncated_cg(lambda v: a @ v, b, max_steps=SIZE, tolerance=1e-3)
    )
    ends = set()
    for num_negative in range(SIZE):
        for _ in range(5):
            vectors, _ = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))
            signs = np.where(np.arange(SIZE) < num_negative, -1, 1)
            matrix = vectors @ np.diag(signs * rng.uniform(0.5, 2, SIZE)) @ vectors.T
            b = rng.normal(size=SIZE)
            found = solve_one(matrix, b)
            expected, met_negative = steihaug(matrix, b, SIZE, 1e-3)
            assert bool(found.met_negative_curvature) == met_negative
            np.testing.assert_allclose(found.x, expected, rtol=1e-8, atol=1e-8)
            assert b @ np.asarray(found.x) > 0
            ends.add((met_negative, bool(np.array_equal(expected, b))))
    assert ends == {(False, False), (True, False), (True, True)}


def test_directions_through_a_saddle_descend_with_a_warm_start():
    matrix = np.diag([-1.0, -0.1, *np.geomspace(0.1, 10, SIZE - 2)])
    value_fn = quadratic(jnp.asarray(matrix), jnp.zeros(SIZE))
    params, state = unravel(jnp.linspace(0.1, 1, SIZE)), None
    for _ in range(8):
        direction, state = solve(value_fn, params, state=state, max_steps=4)
        assert ravel(direction) @ ravel(jax.grad(value_fn)(params)) > 0
        params = jax.tree.map(lambda p, d: p - 0.3 * d, params, direction)
    assert value_fn(params) < value_fn(unravel(jnp.linspace(0.1, 1, SIZE)))


def test_the_ratio_is_one_on_a_quadratic_however_damped_and_truncated():
    """The model whose decrease is predicted is the one without the damping."""
    value_fn = quadratic(jnp.asarray(dense.spd(SIZE, 100.0)), jnp.zeros(SIZE))
    state = None
    params = unravel(jnp.linspace(1, 2, SIZE))
    for _ in range(3):
        direction, state = solve(value_fn, params, state=state, damping=0.5, max_steps=3)
        assert float(state.reduction_ratio) == pytest.approx(1, abs=1e-6)
        params = jax.tree.map(lambda p, d: p - d, params, direction)
    assert float(state.damping) == pytest.approx(0.5 * (2 / 3) ** 3)


@pytest.mark.parametrize(
    ("x", "factor"), [(0.3, 2 / 3), (0.75, 2 / 3), (0.8, 1.0), (1.25, 1.0), (1.3, 1.5), (2.0, 1.5)]
)
def test_the_damping_follows_the_ratio(x, factor):
    # log cosh has slope tanh and curvature 1 - tanh²: a Newton step overshoots from far out.
    damping = 0.125
    slope, curvature = np.tanh(x), 1 - np.tanh(x) ** 2
    step = slope / (curvature + damping)
    predicted = slope * step - curvature * step**2 / 2
    ratio = (np.log(np.cosh(x)) - np.log(np.cosh(x - step))) / predicted
    _, state = solve(lambda p: jnp.log(jnp.cosh(p)), jnp.asarray(x), damping=damping)
    assert float(state.reduction_ratio) == pytest.approx(ratio, rel=1e-6)
    assert factor == (1.5 if ratio < 0.25 else 2 / 3 if ratio > 0.75 else 1)
    assert float(state.damping) == pytest.approx(damping * factor)


def test_a_warm_start_begins_at_the_minimiser_along_the_last_direction():
    matrix, b = dense.spd(SIZE, 50.0), np.random.default_rng(3).normal(size=SIZE)
    solution = np.linalg.solve(matrix, b)
    exact = truncated_cg(lambda v: matrix @ v, b, -7 * solution, max_steps=5, tolerance=1e-10)
    assert exact.num_products == 1
    np.testing.assert_allclose(exact.x, solution, rtol=1e-12)

    start = solution + 0.1 * np.random.default_rng(4).normal(size=SIZE)
    warm = truncated_cg(lambda v: matrix @ v, b, start, max_steps=0, tolerance=0.0)
    np.testing.assert_allclose(warm.x, start @ b / (start @ matrix @ start) * start, rtol=1e-12)
    np.testing.assert_allclose(warm.residual, b - matrix @ np.asarray(warm.x), atol=1e-12)

    negative = truncated_cg(lambda v: -matrix @ v, b, start, max_steps=5, tolerance=0.0)
    np.testing.assert_allclose(negative.x, b)
    assert negative.num_products == 2


def test_the_hessian_is_that_of_the_curvature_batch():
    gradient_matrix, curvature_matrix = dense.spd(SIZE, 3.0, seed=5), dense.spd(SIZE, 5.0, seed=6)
    value_fn, curvature_value_fn = (
        quadratic(jnp.asarray(m), jnp.zeros(SIZE)) for m in (gradient_matrix, curvature_matrix)
    )
    params = unravel(jnp.linspace(1, 2, SIZE))
    direction, _ = solve(
        value_fn,
        params,
        arguments={"value_fn": value_fn, "curvature_value_fn": curvature_value_fn},
        damping=0.0,
        tolerance=1e-13,
    )
    gradient = ravel(jax.grad(value_fn)(params))
    np.testing.assert_allclose(
        ravel(direction), np.linalg.solve(curvature_matrix, gradient), rtol=1e-10
    )


def test_every_exact_mode_gives_the_same_direction():
    directions = [
        ravel(solve(NETWORK.value_fn, NETWORK.params, hvp=mode, max_steps=4)[0])
        for mode in derivatives.EXACT_MODES
    ]
    for direction in directions[1:]:
        np.testing.assert_allclose(direction, directions[0], rtol=1e-10)


def test_a_tiny_gradient_is_solved_for_in_float32():
    def value_fn(p):
        return 1e-25 * jnp.sum(jnp.asarray([1.0, 4.0], jnp.float32) * p**2) / 2

    params = jnp.asarray([1.0, 1.0], jnp.float32)
    direction, _ = solve(
        lambda p: 1e-18 * jnp.sum(p), params, arguments={"value_fn": value_fn}, damping=0.0
    )
    np.testing.assert_allclose(direction, [1e7, 0.25e7], rtol=1e-5)


def test_a_broken_curvature_leaves_the_gradient():
    def value_fn(p):
        return jnp.sum(jnp.where(p > 0, jnp.sqrt(p), jnp.nan)) * 1e-3

    params = jnp.asarray([0.0, 1.0])
    gradient = jnp.asarray([1.0, 2.0])
    transform = optax_igr.scale_by_newton_cg()
    update = jax.jit(functools.partial(transform.update, value_fn=value_fn))
    direction, state = update(gradient, transform.init(params), params)
    np.testing.assert_array_equal(direction, gradient)
    assert jnp.isfinite(state.damping)


def shortened(value_fn, params, direction, slope):
    """The first fraction of the step whose loss falls enough, by parabolas through the losses."""
    alpha, value = 1.0, value_fn(params)
    while not value_fn(params - alpha * direction) <= value - 1e-4 * alpha * slope:
        stepped = value_fn(params - alpha * direction)
        minimiser = slope * alpha**2 / (2 * (stepped - value + alpha * slope))
        shorter = minimiser if np.isfinite(stepped) else 0
        alpha = float(np.clip(shorter, alpha / 10, alpha / 2))
    return alpha


@pytest.mark.parametrize(
    ("x", "damping", "is_shortened"),
    [
        (0.5, 0.0, False),
        (1.3, 0.0, True),
        (1.3, 0.125, False),
        (3.0, 0.125, True),
        (5.0, 0.0, True),
    ],
)
def test_a_step_that_raises_the_loss_is_shortened_by_parabolas(x, damping, is_shortened):
    def value_fn(p):
        return np.logaddexp(p, -p)

    direction = np.tanh(x) / (1 - np.tanh(x) ** 2 + damping)
    fraction = shortened(value_fn, x, direction, np.tanh(x) * direction)
    found, state = solve(lambda p: jnp.logaddexp(p, -p), jnp.asarray(x), damping=damping)
    assert float(state.step_fraction) == pytest.approx(fraction, rel=1e-6)
    np.testing.assert_allclose(found, fraction * direction, rtol=1e-9)
    assert (fraction < 1) == is_shortened
    # Without the judgement the step is Newton's own.
    unit, _ = solve(
        lambda p: jnp.logaddexp(p, -p),
        jnp.asarray(x),
        damping=damping,
        max_backtracking_steps=0,
    )
    np.testing.assert_allclose(unit, direction, rtol=1e-9)


def test_a_step_to_where_the_loss_is_not_finite_is_shortened():
    def value_fn(p):
        return p - jnp.log(p)

    # The Newton step from 3 is 6.
    direction, state = solve(value_fn, jnp.asarray(3.0), damping=0.0)
    assert state.step_fraction < 0.5
    assert value_fn(3.0 - direction) < value_fn(3.0)
    assert not jnp.isnan(state.reduction_ratio)


def test_a_step_is_rejected_where_no_fraction_of_it_lowers_the_loss():
    start = jnp.asarray([1.0, 2.0])

    def value_fn(p):
        return jnp.sum(p**2) / 2 + jnp.where(jnp.all(p == start), 0.0, 10.0)

    direction, state = solve(value_fn, start, damping=0.5)
    np.testing.assert_array_equal(direction, jnp.zeros(2))
    assert state.step_fraction == 0
    assert float(state.damping) == pytest.approx(0.75)
    np.testing.assert_allclose(state.direction, start / 1.5, rtol=1e-6)


def test_updates_that_are_more_than_the_gradient_are_judged_by_what_they_descend():
    """As behind a penalty: at the minimum of the loss alone the step must raise it."""
    matrix = jnp.asarray(dense.spd(SIZE, 5.0))
    penalty = jnp.linspace(1, 2, SIZE)

    def value_fn(p):
        return p @ matrix @ p / 2

    transform = optax_igr.scale_by_newton_cg(damping=0.0, tolerance=0.0)
    update = jax.jit(functools.partial(transform.update, value_fn=value_fn))
    params = jnp.zeros(SIZE)
    step, state = update(penalty, transform.init(params), params)
    np.testing.assert_allclose(step, np.linalg.solve(matrix, penalty), rtol=1e-8)
    assert state.step_fraction == 1
    # The rest is a linear function: its slope is what the updates are beyond the gradient.
    params = jnp.full(SIZE, 10.0)
    step, _ = update(-penalty, transform.init(params), params)
    rest = -penalty - matrix @ params
    assert value_fn(params - step) - rest @ step < value_fn(params)


def relu_network(seed, dtype):
    rng = np.random.default_rng(seed)
    inputs = jnp.asarray(rng.normal(size=(64, 6)), dtype)
    labels = jnp.asarray(rng.integers(0, 4, size=64))
    params = [
        jnp.asarray(rng.normal(size=shape) * np.sqrt(2 / shape[0]), dtype)
        for shape in ((6, 12), (12, 12), (12, 4))
    ]

    def outputs_fn(params):
        hidden = jax.nn.relu(inputs @ params[0])
        return jax.nn.relu(hidden @ params[1]) @ params[2]

    def output_loss_fn(logits):
        chosen = jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, 4, dtype=logits.dtype)
        return -jnp.mean(jnp.sum(chosen, axis=-1))

    return params, outputs_fn, output_loss_fn


@pytest.mark.parametrize("damping", [0.0, 1e-3])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_the_loss_of_a_network_never_rises(curvature, damping):
    params, outputs_fn, output_loss_fn = relu_network(0, jnp.float32)

    def losses(**options):
        optimizer = optax_igr.newton_cg(
            1.0, max_steps=3, curvature=curvature, damping=damping, **options
        )

        def value_fn(params):
            return output_loss_fn(outputs_fn(params))

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(value_fn)(params)
            updates, state = optimizer.update(
                grads,
                state,
                params,
                value_fn=value_fn,
                outputs_fn=outputs_fn,
                output_loss_fn=output_loss_fn,
            )
            return (jax.tree.map(jnp.add, params, updates), state), value

        @jax.jit
        def run():
            return jax.lax.scan(step, (params, optimizer.init(params)), length=40)[1]

        return np.asarray(run())

    assert np.diff(losses()).max() <= 0
    assert losses()[-1] < 0.6 * losses()[0]
    # The same steps, not judged, raise it.
    assert np.diff(losses(max_backtracking_steps=0)).max() > 0.01


def test_no_state_is_nan_where_a_run_must_end_at_one():
    with jax.debug_nans(True):
        params = {"w": jnp.ones([3], jnp.float32), "s": jnp.ones([], jnp.bfloat16)}
        transform = optax_igr.scale_by_newton_cg()
        state = transform.init(params)
        for scale in (1.0, 0.0):

            def value_fn(p, scale=scale):
                return scale * (jnp.sum(p["w"] ** 2) + p["s"].astype(jnp.float32) ** 2)

            updates, state = transform.update(
                jax.grad(value_fn)(params), state, params, value_fn=value_fn
            )
    for leaf in jax.tree.leaves((updates, state)):
        assert jnp.isfinite(leaf).all()
