import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr as igr
from optax_igr._core import trees

WEIGHTS = np.array([0.3, 1.0, 2.5, 1e-3, 40.0])
GRADIENT = np.array([1.0, -2.0, 0.5, 3.0, -0.1])


def exponentiated(learning_rate, **options):
    return optax.chain(optax.scale_by_learning_rate(learning_rate), igr.exponentiate(**options))


def descend(optimizer, gradient_fn, params, num_steps):
    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(gradient_fn(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    carry, _ = jax.jit(lambda c: jax.lax.scan(step, c, length=num_steps))(
        (params, optimizer.init(params))
    )
    return carry


def bregman_divergence(w, v):
    return jnp.sum(w * jnp.log(w / v) - w + v)


@pytest.mark.parametrize("log_state", [False, True])
def test_the_logarithm_of_a_weight_moves_by_the_update_itself(log_state):
    optimizer = exponentiated(0.1, log_state=log_state)
    params, _ = descend(optimizer, lambda w: jnp.asarray(GRADIENT), jnp.asarray(WEIGHTS), 1)
    # Gradient descent in log w would have moved it by -lr * w * g.
    np.testing.assert_allclose(np.log(params / WEIGHTS), -0.1 * GRADIENT, rtol=1e-13, atol=1e-15)


def test_a_linear_loss_has_its_closed_form():
    params, _ = descend(
        exponentiated(0.01), jax.grad(lambda w: w @ GRADIENT), jnp.asarray(WEIGHTS), 200
    )
    np.testing.assert_allclose(params, WEIGHTS * np.exp(-0.01 * 200 * GRADIENT), rtol=1e-12)


def test_the_step_minimizes_linear_loss_plus_divergence():
    w = jnp.asarray(WEIGHTS)
    params, _ = descend(exponentiated(0.3), lambda w: jnp.asarray(GRADIENT), w, 1)

    def objective(v):
        return 0.3 * v @ GRADIENT + bregman_divergence(v, w)

    np.testing.assert_allclose(jax.grad(objective)(params), 0, atol=1e-13)
    assert objective(params) < objective(params * 1.01)


def test_it_is_gradient_descent_on_the_square_root_to_first_order():
    target = jnp.array([0.2, 1.5, 3.0])

    def loss(w):
        return jnp.sum((w - target) ** 2) / 2

    w = jnp.array([1.0, 1.0, 0.5])

    def distance(learning_rate):
        num_steps = round(1 / learning_rate)
        multiplicative, _ = descend(exponentiated(learning_rate), jax.grad(loss), w, num_steps)
        root, _ = descend(
            optax.sgd(learning_rate),
            jax.grad(lambda v: loss(v**2 / 4)),
            2 * jnp.sqrt(w),
            num_steps,
        )
        return jnp.linalg.norm(multiplicative - root**2 / 4)

    distances = [distance(rate) for rate in (1e-2, 5e-3, 2.5e-3)]
    ratios = np.divide(distances[:-1], distances[1:])
    np.testing.assert_allclose(ratios, 2, rtol=0.02)


def test_a_small_step_keeps_its_digits():
    w = jnp.asarray(WEIGHTS, jnp.float32)
    updates, _ = igr.exponentiate().update(jnp.full(5, 1e-7, jnp.float32), None, w)
    np.testing.assert_allclose(updates, np.float64(w) * np.expm1(1e-7), rtol=1e-6)


def test_a_tiny_weight_may_grow_by_more_than_the_largest_number():
    w = jnp.array([1e-35], jnp.float32)
    updates, _ = igr.exponentiate().update(jnp.array([150.0], jnp.float32), None, w)
    np.testing.assert_allclose(updates, 1e-35 * np.exp(150.0), rtol=1e-4)


@pytest.mark.parametrize("log_state", [False, True])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_no_weight_dies_or_overflows_and_all_come_back(dtype, log_state):
    optimizer = igr.exponentiate(log_state=log_state)
    params = jnp.array([1.0, 0.01, 100.0], dtype)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)

    def run(exponents, params, state):
        for exponent in exponents:
            updates, state = update(jnp.full(3, exponent, trees.widened(dtype)), state, params)
            params = optax.apply_updates(params, updates)
            assert jnp.all((params > 0) & jnp.isfinite(params))
        return params, state

    bottom, state = run([-20.0, -1e30, -1e30, -1e30], params, state)
    top, state = run([1.0, 1e30, 1e30, 1e30], bottom, state)
    down, state = run([-1.0], top, state)
    ratio = down.astype(jnp.float64) / top.astype(jnp.float64)
    # The logarithm at the top, 88 or 709, has that many units in its last place.
    rtol = max(2 * jnp.finfo(dtype).eps, 1000 * jnp.finfo(trees.widened(dtype)).eps)
    np.testing.assert_allclose(ratio, np.exp(-1), rtol=float(rtol))


def test_bfloat16_weights_follow_small_steps_only_with_the_log_state():
    params = jnp.array([1.0, 0.3], jnp.bfloat16)

    def gradient_fn(w):
        return jnp.ones(2, jnp.float32)

    stuck, _ = descend(exponentiated(1e-3), gradient_fn, params, 500)
    moved, state = descend(exponentiated(1e-3, log_state=True), gradient_fn, params, 500)
    np.testing.assert_array_equal(stuck, params)
    np.testing.assert_allclose(np.float64(moved / params), np.exp(-0.5), rtol=2**-7)
    log_weights = state[1].log_weights
    assert log_weights.dtype == jnp.float32
    np.testing.assert_allclose(log_weights, np.log(np.float64(params)) - 0.5, rtol=1e-4)


def test_a_step_to_a_fraction_below_the_rounding_catches_up_with_the_log_state():
    optimizer = igr.exponentiate(log_state=True)
    params = jnp.ones(1, jnp.bfloat16)
    state = optimizer.init(params)
    for exponent in (-30.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0):
        updates, state = optimizer.update(jnp.full(1, exponent, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(np.float64(params), np.exp(-30), rtol=2**-8)


@pytest.mark.parametrize("log_state", [False, True])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_floor_holds_and_revives_a_zero(dtype, log_state):
    optimizer = igr.exponentiate(floor=0.01, log_state=log_state)
    params = jnp.array([1.0, 0.0, 300.0], dtype)
    state = optimizer.init(params)
    for exponent in (-50.0, -50.0, -50.0, -1.0):
        updates, state = optimizer.update(jnp.full(3, exponent, dtype), state, params)
        params = optax.apply_updates(params, updates)
        assert jnp.all(params >= jnp.asarray(0.01, dtype))
    np.testing.assert_allclose(np.float64(params), 0.01, rtol=0.01)
    updates, state = optimizer.update(jnp.full(3, 1.0, dtype), state, params)
    np.testing.assert_allclose(np.float64(params + updates), 0.01 * np.e, rtol=0.02)


@pytest.mark.parametrize("log_state", [False, True])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_an_entry_that_is_not_finite_does_not_move(bad, log_state):
    optimizer = igr.exponentiate(log_state=log_state)
    params = jnp.array([1.0, 2.0], jnp.float32)
    state = optimizer.init(params)
    updates, state = optimizer.update(jnp.array([bad, 0.5], jnp.float32), state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, [1.0, 2 * np.exp(0.5)], rtol=1e-6)
    updates, state = optimizer.update(jnp.array([0.5, 0.5], jnp.float32), state, params)
    assert jnp.all(jnp.isfinite(optax.apply_updates(params, updates)))


def test_any_tree_of_leaves_goes_through():
    params = {"a": jnp.ones([2, 3], jnp.bfloat16), "b": None, "c": jnp.float32(2.0), "d": ()}
    updates = {"a": jnp.ones([2, 3], jnp.float32), "b": None, "c": jnp.float32(0.0), "d": ()}
    for log_state in (False, True):
        optimizer = igr.exponentiate(log_state=log_state)
        stepped, _ = optimizer.update(updates, optimizer.init(params), params, unknown=1)
        assert stepped["a"].dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float64(stepped["a"] + params["a"]), np.e, rtol=2**-8)
        assert stepped["c"].dtype == jnp.float32
        np.testing.assert_allclose(stepped["c"], 0, atol=1e-6)


def test_a_hyperparameter_may_be_injected():
    optimizer = optax.inject_hyperparams(igr.exponentiate)(floor=0.5)
    params = jnp.ones(2, jnp.float32)
    state = optimizer.init(params)
    updates, state = jax.jit(optimizer.update)(jnp.full(2, -5.0, jnp.float32), state, params)
    np.testing.assert_array_equal(params + updates, [0.5, 0.5])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"layer": {"kernel": jnp.array([1.0, -0.25])}},
            r"\['kernel'\] has a negative weight, -0.25",
        ),
        ({"bias": jnp.zeros(3)}, r"\['bias'\] is all zeros"),
        ([jnp.ones(2), jnp.array([1.0, jnp.nan])], r"\[1\] has a weight that is not finite"),
        ({"z": jnp.ones(2, jnp.complex64)}, r"\['z'\] must be of a real floating dtype"),
    ],
)
def test_parameters_outside_the_domain_are_named(params, message):
    with pytest.raises(ValueError, match=r"exponentiate: params.*" + message):
        igr.exponentiate().init(params)


def test_abstract_parameters_are_not_looked_into():
    inside, outside = {"w": jnp.array([1.0])}, {"w": jnp.array([-1.0])}
    for optimizer in (igr.exponentiate(), igr.exponentiate(log_state=True)):
        with pytest.raises(ValueError, match="negative weight"):
            optimizer.init(outside)
        types = jax.tree.map(jax.typeof, optimizer.init(inside))
        for abstract in (jax.jit(optimizer.init), jax.vmap(optimizer.init)):
            assert jax.tree.map(jax.typeof, abstract(outside)) == types
        assert jax.tree.map(jax.typeof, jax.eval_shape(optimizer.init, outside)) == types


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"`floor` must be .* >= 0"):
        igr.exponentiate(floor=-1.0)
    with pytest.raises(ValueError, match="`floor` defines the domain"):
        igr.exponentiate(floor=optax.constant_schedule(0.1))
    optimizer, params = igr.exponentiate(), {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match="exponentiate needs the current parameters"):
        optimizer.update(params, optimizer.init(params))
    with pytest.raises(ValueError, match=r"exponentiate: `updates`.*\['w'\]"):
        optimizer.update({"w": jnp.ones(4)}, optimizer.init(params), params)


@pytest.mark.parametrize("log_state", [False, True])
def test_a_donated_step_makes_no_copy_of_the_tree(log_state):
    optimizer = exponentiated(0.1, log_state=log_state)
    params = jnp.ones([256, 512], jnp.float32)
    state = optimizer.init(params)

    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.01 * params.nbytes


def test_an_exponent_may_be_wider_than_the_weight_but_not_narrower():
    narrow, wide = jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.float32)
    updates, _ = igr.exponentiate().update(wide, igr.exponentiate().init(narrow), narrow)
    assert updates.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="exponentiate: `updates` must agree with `params`"):
        igr.exponentiate().update(narrow, igr.exponentiate().init(wide), wide)


def test_a_state_of_other_parameters_is_named():
    optimizer = igr.exponentiate(log_state=True)
    params, other = {"w": jnp.ones(3)}, {"w": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"exponentiate: `log_weights`.*\['w'\]"):
        optimizer.update(params, optimizer.init(other), params)
