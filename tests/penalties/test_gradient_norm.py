"""The explicit penalties against dense derivatives, closed forms and published numbers, in float64."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from optax_igr._core import derivatives, trees
from tests.problems import tanh_network, two_weights

NETWORK = tanh_network(dtype=jnp.float64)
MODES = derivatives.MODES


def penalised_gradient(transform, value_fn, params, **extra):
    """One update from a fresh state, whose incoming updates are the gradient."""
    gradient = jax.grad(value_fn)(params)
    update = jax.jit(lambda g, s, p: transform.update(g, s, p, value_fn=value_fn, **extra))
    return update(gradient, transform.init(params), params)[0]


def gradient_norm(value_fn, params, power):
    squared = trees.squared_norm(jax.grad(value_fn)(params))
    return squared ** (power / 2)


def assert_trees_close(x, y, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), x, y)


@pytest.mark.parametrize(("norm", "power"), [("squared", 2), ("plain", 1)])
def test_equals_the_gradient_of_the_penalised_loss(norm, power):
    def penalised(params):
        return NETWORK.value_fn(params) + 0.3 * gradient_norm(NETWORK.value_fn, params, power)

    expected = jax.grad(penalised)(NETWORK.params)
    transform = optax_igr.add_gradient_penalty(0.3, norm=norm)
    updates = penalised_gradient(transform, NETWORK.value_fn, NETWORK.params)
    assert_trees_close(updates, expected, rtol=1e-10)


@pytest.mark.parametrize("hvp", MODES)
def test_two_weights_in_every_mode(hvp):
    # ∇(E + μ‖g‖²) with 2μ = h/2 at h = 0.025; the differences are off by their own truncation.
    problem = two_weights()
    transform = optax_igr.add_gradient_penalty(0.025 / 4, hvp=hvp)
    updates = penalised_gradient(transform, problem.value_fn, problem.params)
    tolerance = {"forward_difference": 1e-6, "backward_difference": 1e-6}.get(hvp, 1e-9)
    np.testing.assert_allclose(updates, [43.248625, 35.93198], rtol=tolerance)


@pytest.mark.parametrize(
    ("hvp", "order"),
    [("forward_difference", 1), ("backward_difference", 1), ("central_difference", 2)],
)
def test_differences_approach_the_exact_penalty_with_their_order(hvp, order):
    problem = two_weights()
    exact = penalised_gradient(
        optax_igr.add_gradient_penalty(0.1), problem.value_fn, problem.params
    )
    errors = []
    for radius in (0.02, 0.01):
        transform = optax_igr.add_gradient_penalty(0.1, hvp=hvp, radius=radius)
        updates = penalised_gradient(transform, problem.value_fn, problem.params)
        errors.append(np.linalg.norm(updates - exact))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.02)


@pytest.mark.parametrize(
    ("coefficient", "squared_norm"), [(0.01, 4.16579), (0.1, 3.33947), (0.5, 2.99741)]
)
def test_small_steps_end_where_the_penalised_flow_does(coefficient, squared_norm):
    problem = two_weights()
    optimizer = optax.chain(optax_igr.add_gradient_penalty(coefficient), optax.sgd(1e-4))
    final = descend(optimizer, problem, num_steps=100_000)
    assert float(final @ final) == pytest.approx(squared_norm, abs=6e-6)


def test_plain_descent_ends_where_the_reference_does():
    final = descend(optax.sgd(2.5e-2), two_weights(), num_steps=2_000)
    assert float(final @ final) == pytest.approx(4.18243, abs=6e-6)


def descend(optimizer, problem, num_steps):
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(problem.value_fn)(params)
        updates, state = optimizer.update(gradient, state, params, value_fn=problem.value_fn)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)[0][0]

    return run(problem.params)


@pytest.mark.parametrize("ratio", [1.0, 0.4])
def test_plain_norm_by_a_forward_difference_is_zhao_and_sam(ratio):
    # (1 - α) g + α g(θ + r g/‖g‖) with α = μ/r; α = 1 is sharpness-aware minimisation.
    radius = 0.05
    transform = optax_igr.add_gradient_penalty(
        ratio * radius, norm="plain", hvp="forward_difference", radius=radius
    )
    updates = penalised_gradient(transform, NETWORK.value_fn, NETWORK.params)
    gradient = jax.grad(NETWORK.value_fn)(NETWORK.params)
    scale = radius / np.sqrt(trees.squared_norm(gradient))
    moved = jax.tree.map(lambda p, g: p + scale * g, NETWORK.params, gradient)
    perturbed = jax.grad(NETWORK.value_fn)(moved)
    mixture = jax.tree.map(lambda g, q: (1 - ratio) * g + ratio * q, gradient, perturbed)
    assert_trees_close(updates, mixture, rtol=1e-9)


def test_equals_optax_sam_where_both_apply():
    radius = 0.05
    ours = optax.chain(
        optax_igr.add_gradient_penalty(
            radius, norm="plain", hvp="forward_difference", radius=radius
        ),
        optax.sgd(0.1),
    )
    sam = optax.contrib.sam(
        optax.sgd(0.1),
        optax.chain(optax.contrib.normalize(), optax.sgd(radius)),
        opaque_mode=True,
        reset_state=False,
    )
    params = NETWORK.params
    gradient = jax.grad(NETWORK.value_fn)(params)
    expected, _ = sam.update(
        gradient,
        sam.init(params),
        params,
        grad_fn=lambda p, _: jax.grad(NETWORK.value_fn)(p),
    )
    updates, _ = ours.update(gradient, ours.init(params), params, value_fn=NETWORK.value_fn)
    assert_trees_close(updates, expected, rtol=1e-9)


@pytest.mark.parametrize("hvp", ["forward_over_reverse", "central_difference"])
@pytest.mark.parametrize("mask", ["tree", "function"])
def test_masked_parameter_is_a_constant(hvp, mask):
    keep = [{"kernel": True, "bias": False}] * len(NETWORK.params)
    if mask == "function":
        tree = keep

        def keep(params):
            del params
            return tree

    def penalised(params):
        gradient = jax.grad(NETWORK.value_fn)(params)
        kernels = [layer["kernel"] for layer in gradient]
        return 0.3 * trees.squared_norm(kernels)

    gradient = jax.grad(NETWORK.value_fn)(NETWORK.params)
    penalty = jax.grad(penalised)(NETWORK.params)
    expected = [
        {"kernel": g["kernel"] + p["kernel"], "bias": g["bias"]}
        for g, p in zip(gradient, penalty, strict=True)
    ]
    transform = optax_igr.add_gradient_penalty(0.3, hvp=hvp, mask=keep)
    updates = penalised_gradient(transform, NETWORK.value_fn, NETWORK.params)
    assert_trees_close(updates, expected, rtol=1e-6 if "difference" in hvp else 1e-10)


def test_mask_may_be_a_prefix():
    transform = optax_igr.add_gradient_penalty(0.3, mask=[True, False, False])
    updates = penalised_gradient(transform, NETWORK.value_fn, NETWORK.params)
    gradient = jax.grad(NETWORK.value_fn)(NETWORK.params)
    assert_trees_close(updates[1:], gradient[1:], rtol=1e-15)
    assert np.abs(updates[0]["bias"] - gradient[0]["bias"]).min() > 0


def test_raw_gradient_is_taken_from_grad_where_the_updates_are_something_else():
    gradient = jax.grad(NETWORK.value_fn)(NETWORK.params)
    transform = optax_igr.add_gradient_penalty(0.3)
    state = transform.init(NETWORK.params)
    plain, _ = transform.update(gradient, state, NETWORK.params, value_fn=NETWORK.value_fn)
    scaled = jax.tree.map(lambda g: 5 * g, gradient)
    updates, _ = transform.update(
        scaled, state, NETWORK.params, value_fn=NETWORK.value_fn, grad=gradient
    )
    expected = jax.tree.map(lambda p, g: p + 4 * g, plain, gradient)
    assert_trees_close(updates, expected, rtol=1e-12)


def test_schedules_are_evaluated_at_the_number_of_updates():
    # On E = λθ²/2 the update is λθ(1 + 2μλ); E = θ³/3 shows the radius: its forward error is μ·2εθ⁴.
    transform = optax_igr.add_gradient_penalty(lambda count: 0.1 * (count + 1))
    state, theta = transform.init(jnp.float64(2.0)), jnp.float64(2.0)
    for count in range(3):
        updates, state = transform.update(3 * theta, state, theta, value_fn=lambda t: 3 * t**2 / 2)
        assert float(updates) == pytest.approx(6 * (1 + 2 * 0.1 * (count + 1) * 3))
    assert int(state.count) == 3

    transform = optax_igr.add_gradient_penalty(
        0.5, hvp="forward_difference", radius=lambda count: 0.01 * (count + 1)
    )
    theta = jnp.float64(0.5)
    state = transform.init(theta)
    for count in range(3):
        updates, state = transform.update(theta**2, state, theta, value_fn=lambda t: t**3 / 3)
        epsilon = 0.01 * (count + 1) / theta**2
        exact = theta**2 + 2 * 0.5 * (2 * theta) * theta**2
        assert float(updates - exact) == pytest.approx(float(epsilon * theta**4), rel=1e-9)


@pytest.mark.parametrize("norm", ["squared", "plain"])
@pytest.mark.parametrize("hvp", MODES)
def test_zero_gradient_gives_a_zero_penalty(norm, hvp):
    transform = optax_igr.add_gradient_penalty(1.0, norm=norm, hvp=hvp, safeguard=True)
    zero = jnp.zeros(3)
    updates, state = transform.update(
        zero, transform.init(zero), zero, value_fn=lambda x: jnp.sum(x**2)
    )
    np.testing.assert_array_equal(updates, zero)
    assert int(state.dropped_count) == 0


def test_safeguard_drops_a_penalty_that_would_ascend():
    # On cos t the penalised loss has a minimum at the maximum t = 0 for μ > ½, and its zeros at ±π/3.
    def update(t, safeguard):
        transform = optax_igr.add_gradient_penalty(1.0, safeguard=safeguard)
        t = jnp.float64(t)
        return transform.update(-jnp.sin(t), transform.init(t), t, value_fn=jnp.cos)

    for t, is_dropped in [(0.1, 1), (1.0, 1), (1.1, 0)]:
        bare, _ = update(t, safeguard=False)
        assert float(bare) == pytest.approx(np.sin(t) * (2 * np.cos(t) - 1), rel=1e-12)
        guarded, state = update(t, safeguard=True)
        assert float(guarded) == pytest.approx(-np.sin(t) if is_dropped else float(bare))
        assert int(state.dropped_count) == is_dropped
    false_minimum, _ = update(np.pi / 3, safeguard=False)
    assert float(false_minimum) == pytest.approx(0, abs=1e-15)


def test_safeguard_drops_a_penalty_that_is_not_finite():
    # H overflows where the gradient does not.
    transform = optax_igr.add_gradient_penalty(1e30, safeguard=True)
    theta = jnp.float32(1e10)
    updates, state = transform.update(
        theta**3, transform.init(theta), theta, value_fn=lambda t: t**4 / 4
    )
    assert np.isfinite(updates)
    assert int(state.dropped_count) == 1


def test_difference_keeps_bfloat16_updates_close_to_float32():
    problem = tanh_network((20, 32, 16, 1), 64, dtype=jnp.float32)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), problem.params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    transform = optax_igr.add_gradient_penalty(1.0, hvp="forward_difference")
    zero = jax.tree.map(jnp.zeros_like, narrow)
    gradient = jax.grad(problem.value_fn)(wide)
    penalty, _ = transform.update(
        zero,
        transform.init(narrow),
        narrow,
        value_fn=problem.value_fn,
        grad=jax.tree.map(lambda x: x.astype(jnp.bfloat16), gradient),
    )
    exact = derivatives.hessian_vector_product(problem.value_fn, wide, gradient)
    difference = jax.tree.map(lambda p, e: p.astype(jnp.float32) - 2 * e, penalty, exact)
    ratio = trees.squared_norm(difference) / trees.squared_norm(exact) / 4
    assert {x.dtype for x in jax.tree.leaves(penalty)} == {jnp.dtype(jnp.bfloat16)}
    assert float(jnp.sqrt(ratio)) < 2**-7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l2"}, "`norm` must be one of 'squared', 'plain'"),
        ({"hvp": "exact"}, "`hvp` must be one of 'auto'"),
        ({"hvp": "forward_over_reverse", "radius": 0.1}, "`radius`.*exact"),
        ({"hvp": "central_difference", "radius": 0.0}, "`radius` must be .* > 0"),
        ({"coefficient": "large"}, "`coefficient` must be a real number or a schedule"),
        ({"coefficient": float("nan")}, "`coefficient`"),
        ({"coefficient": jnp.ones(2)}, "`coefficient`"),
    ],
)
def test_bad_argument_is_named(options, message):
    with pytest.raises(ValueError, match=f"add_gradient_penalty: {message}"):
        optax_igr.add_gradient_penalty(**{"coefficient": 0.1, **options})


def test_mask_that_is_no_prefix_is_named():
    transform = optax_igr.add_gradient_penalty(0.1, mask={"other": True})
    with pytest.raises(ValueError, match="add_gradient_penalty: `mask` must be a pytree prefix"):
        penalised_gradient(transform, NETWORK.value_fn, NETWORK.params)
