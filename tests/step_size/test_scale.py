"""The learned scale against the derivative of the next loss, its invariances and its two guards."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from optax_igr._core import trees
from tests.problems import tanh_network

NETWORK = tanh_network(dtype=jnp.float64)
INNERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.01),
}
every_inner = pytest.mark.parametrize("inner", INNERS.values(), ids=INNERS)


def train(optimizer, num_steps, loss_scale=1.0, params=NETWORK.params):
    def value_fn(p):
        return loss_scale * NETWORK.value_fn(p)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(
            jax.grad(value_fn)(params), state, params, value_fn=value_fn
        )
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(num_steps):
        params, state = step(params, state)
    return params, state


def assert_trees_close(x, y, rtol=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13), x, y)


@every_inner
@pytest.mark.parametrize("granularity", ["tree", "leaf"])
def test_the_product_is_the_derivative_of_the_next_loss(inner, granularity):
    rate = 0.3
    optimizer = optax_igr.adapt_scale(inner, rate, granularity=granularity, signal="product")
    params, state = train(optimizer, 3)
    update = jax.jit(lambda s, p: optimizer.update(jax.grad(NETWORK.value_fn)(p), s, p))
    updates, state = update(state, params)
    raw = state.previous_updates

    def next_loss(log_scale):
        scales = log_scale
        if granularity == "tree":
            scales = jax.tree.map(lambda _: log_scale, params)
        moved = jax.tree.map(lambda p, s, u: p + jnp.exp(s) * u, params, scales, raw)
        return NETWORK.value_fn(moved)

    derivative = jax.grad(next_loss)(state.log_scale)
    _, after = update(state, optax.apply_updates(params, updates))
    expected = jax.tree.map(lambda s, d: s - rate * d, state.log_scale, derivative)
    assert_trees_close(after.log_scale, expected)


@every_inner
def test_with_an_average_it_is_the_derivative_along_the_weighted_displacement(inner):
    rate, ema = 0.3, 0.6
    optimizer = optax_igr.adapt_scale(inner, rate, ema=ema, signal="product")
    params, state, inner_state = NETWORK.params, optimizer.init(NETWORK.params), None
    inner_state = inner.init(params)
    way = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(optimizer.update)
    for _ in range(4):
        gradient = jax.grad(NETWORK.value_fn)(params)
        raw, inner_state = inner.update(gradient, inner_state, params)
        way = jax.tree.map(lambda w, u: ema * w + u, way, raw)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    assert_trees_close(state.previous_updates, way)

    def longer(log_factor):
        growth = jnp.exp(state.log_scale) * (jnp.exp(log_factor) - 1)
        return NETWORK.value_fn(jax.tree.map(lambda p, w: p + growth * w, params, way))

    derivative = jax.grad(longer)(jnp.zeros([]))
    _, after = update(jax.grad(NETWORK.value_fn)(params), state, params)
    np.testing.assert_allclose(after.log_scale, state.log_scale - rate * derivative, rtol=1e-9)
    assert abs(derivative) > 1e-4


def test_an_average_agrees_where_single_steps_disagree():
    # Of the gradients 3, -1, 3, -1, ... each opposes the last, and the way of both still goes down.
    def moved(ema):
        optimizer = optax_igr.adapt_scale(optax.sgd(0.1), 0.1, ema=ema, signal="cosine")
        state = optimizer.init(jnp.zeros(2))
        update = jax.jit(optimizer.update)
        for t in range(200):
            # The second coordinate tells the cosine from a sign.
            _, state = update(jnp.array([1.0, 3.0 * (-1) ** t]), state, jnp.zeros(2))
        return float(state.log_scale)

    # ⟨(1, 3), (1, -3)⟩ / 10, and with the sums (1 - β^t) / (1 - β) and 3 (1 - (-β)^t) / (1 + β).
    np.testing.assert_allclose(moved(0.0), 0.1 * 199 * -0.8, rtol=1e-5)
    ema, t = 0.9, np.arange(1, 200)
    x, y = (1 - ema**t) / (1 - ema), 3 * (1 - (-ema) ** t) / (1 + ema)
    expected = 0.1 * np.sum((x - 3 * y) / np.hypot(x, y)) / np.sqrt(10)
    assert expected > 0
    np.testing.assert_allclose(moved(ema), expected, rtol=1e-5)


@every_inner
@pytest.mark.parametrize(("signal", "of"), [("cosine", lambda c: c), ("sign", np.sign)])
def test_the_other_signals_are_the_cosine_and_its_sign(inner, signal, of):
    optimizer = optax_igr.adapt_scale(inner, 0.3, signal=signal)
    params, state = train(optimizer, 1)
    gradient = jax.grad(NETWORK.value_fn)(params)
    flat_u, _ = jax.flatten_util.ravel_pytree(state.previous_updates)
    flat_g, _ = jax.flatten_util.ravel_pytree(gradient)
    cosine = flat_u @ flat_g / np.linalg.norm(flat_u) / np.linalg.norm(flat_g)
    _, after = jax.jit(optimizer.update)(gradient, state, params)
    np.testing.assert_allclose(after.log_scale, -0.3 * of(cosine), rtol=1e-10)


@pytest.mark.usefixtures("optimized_compilation")
@every_inner
def test_rate_zero_is_the_inner_optimizer_to_rounding(inner):
    """XLA contracts products and sums differently in the two programs: the bits are not the same."""
    optimizer = optax_igr.adapt_scale(inner, 0.0)
    params = jax.tree.map(lambda p: p.astype(jnp.float32), NETWORK.params)
    plain, wrapped = inner.init(params), optimizer.init(params)
    for _ in range(3):
        gradient = jax.tree.map(jnp.cos, params)
        expected, plain = jax.jit(inner.update)(gradient, plain, params)
        found, wrapped = jax.jit(optimizer.update)(gradient, wrapped, params)
        assert float(wrapped.log_scale) == 0
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
        params = optax.apply_updates(params, expected)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), wrapped.inner_state, plain
    )


@pytest.mark.parametrize("signal", ["cosine", "sign"])
@pytest.mark.parametrize("loss_scale", [1e-3, 1e3])
def test_a_scaled_loss_with_an_inversely_scaled_rate_moves_alike(signal, loss_scale):
    def trained(scale):
        inner = optax.sgd(0.1 / scale, momentum=0.9)
        return train(optax_igr.adapt_scale(inner, 0.1, signal=signal), 20, scale)[0]

    assert_trees_close(trained(loss_scale), trained(1.0))


def test_the_log_scale_decays_towards_zero():
    optimizer = optax_igr.adapt_scale(optax.sgd(0.1), 0.3, signal="sign", decay=0.1)
    state = optimizer.init(jnp.zeros(1))
    update = jax.jit(optimizer.update)
    for _ in range(5):
        _, state = update(jnp.ones(1), state, jnp.zeros(1))
    # Four gradients that agree with the step before: 0.3 Σ 0.9^k.
    np.testing.assert_allclose(state.log_scale, 0.3 * (1 - 0.9**4) / 0.1, rtol=1e-6)


def test_the_first_step_is_the_minimizer_of_the_model_whatever_the_rate():
    curvatures = jnp.array([1.0, 4.0, 9.0])

    def value_fn(p):
        return jnp.sum(curvatures * p**2) / 2

    params = jnp.array([1.0, -2.0, 0.5])
    gradient = jax.grad(value_fn)(params)
    for inner, direction in ((optax.sgd, gradient), (optax.adam, jnp.sign(gradient))):
        length = direction @ gradient / (direction @ (curvatures * direction))
        for rate in (1e-12, 1.0, 1e12):
            optimizer = optax_igr.adapt_scale(inner(rate), 0.1, first_step="cauchy")
            updates, state = optimizer.update(
                gradient, optimizer.init(params), params, value_fn=value_fn
            )
            np.testing.assert_allclose(updates, -length * direction, rtol=1e-6)
            assert state.measurements.count == 1


def test_the_first_step_is_measured_once_at_the_first_gradient_that_is_there():
    def value_fn(p):
        return 3 * jnp.sum(p**2) / 2

    optimizer = optax_igr.adapt_scale(optax.sgd(1e-3), 0.0, first_step="cauchy")
    params = jnp.ones(2)
    state = optimizer.init(params)
    update = jax.jit(lambda g, s: optimizer.update(g, s, params, value_fn=value_fn))
    for bad in (0.0, jnp.nan, jnp.inf):
        updates, state = update(jnp.full(2, bad), state)
        np.testing.assert_array_equal(updates, 0)
        assert state.measurements.count == 0
        np.testing.assert_array_equal(state.log_scale, 0)
    updates, state = update(3 * params, state)
    np.testing.assert_allclose(updates, -params, rtol=1e-9)
    updates, state = update(1.5 * params, state)
    np.testing.assert_allclose(updates, -0.5 * params, rtol=1e-9)
    updates, _ = update(6 * params, state)
    np.testing.assert_allclose(updates, -1.1 * params, rtol=1e-9)


def test_the_log_scale_decays_towards_what_was_measured():
    optimizer = optax_igr.adapt_scale(
        optax.sgd(1e-3), 0.3, signal="sign", decay=0.1, first_step="cauchy"
    )
    params = jnp.ones(1)
    state = optimizer.init(params)
    update = jax.jit(
        lambda g, s: optimizer.update(g, s, params, value_fn=lambda p: 2 * jnp.sum(p**2))
    )
    for t in range(6):
        _, state = update((-1.0) ** t * params, state)
        # A curvature of 4 at a rate of 1e-3 measures 250; each turn of the gradient takes 0.3 off.
        expected = np.log(250) - 0.3 * (1 - 0.9**t) / 0.1
        np.testing.assert_allclose(state.log_scale, expected, rtol=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_first_steps_grow_up_to_the_length_of_their_displacement_on_the_next_batches(ema):
    num_measured, rate = 4, 1e-3
    optimizer = optax_igr.adapt_scale(
        optax.sgd(rate), 0.0, ema=ema, first_step="cauchy", warmup_steps=num_measured
    )
    params = jnp.ones(2)
    update = jax.jit(
        lambda s, c, g: optimizer.update(g, s, params, value_fn=lambda p: c * jnp.sum(p**2) / 2)
    )
    gradients = np.array([[1.0, 2.0], [2.0, 0.5], [3.0, 1.0], [-1.0, 1.0], [0.5, 2.0]])
    curvatures = np.array([0.1, 2.0, -0.5, 4.0, 100.0])
    way, slope, curvature, longest = np.zeros(2), 0.0, 0.0, np.inf
    state = optimizer.init(params)
    for t, (g, c) in enumerate(zip(gradients, curvatures, strict=True)):
        updates, state = update(state, c, g)
        if t == 0:
            scale = 1 / (c * rate)
        elif t < num_measured:
            slope, curvature = slope + way @ g / np.linalg.norm(way), curvature + abs(c)
            scale = abs(slope) / curvature / np.linalg.norm(way)
        fraction = min(t + 1, num_measured) / num_measured
        # From then on no step is more than a tenth longer than the longest.
        step = scale * rate * g * min(1, 1.1 * longest / np.linalg.norm(scale * rate * g))
        np.testing.assert_allclose(updates, -fraction * step, rtol=1e-9)
        if t == num_measured - 1:
            longest = np.linalg.norm(step)
        way = ema * way - rate * g
    np.testing.assert_array_equal(state.measurements.count, num_measured)


def test_a_gradient_of_zero_delays_the_measurements():
    optimizer = optax_igr.adapt_scale(
        optax.sgd(1e-3), 0.0, ema=0.9, first_step="cauchy", warmup_steps=2
    )
    params = gradient = jnp.ones(2)
    update = jax.jit(lambda s, g: optimizer.update(g, s, params, value_fn=lambda p: jnp.sum(p**2)))
    state = optimizer.init(params)
    for g, fraction in ((0, 0), (1, 0.5), (0, 0), (1, 1 / 0.9)):
        updates, state = update(state, g * gradient)
        if g:
            np.testing.assert_allclose(updates, -fraction * 0.5 * gradient, rtol=1e-9)
        else:
            np.testing.assert_array_equal(updates, 0)


def test_the_noise_of_one_batch_makes_no_step_longer():
    """A way of t steps, whose gradients are nine tenths noise, has the slope that t / (t + 9) of its square leave."""
    num_steps, size = 100, 1000
    optimizer = optax_igr.adapt_scale(
        optax.sgd(1.0), 0.0, ema=0.9, first_step="cauchy", warmup_steps=num_steps
    )

    def step(state, key):
        gradient = 1 + 3 * jax.random.normal(key, (size,))
        way = state.previous_updates
        _, state = optimizer.update(
            gradient, state, jnp.zeros(size), value_fn=lambda p: jnp.sum(p**2) / 2
        )
        along = jnp.where(state.measurements.count > 1, way, gradient)
        return state, jnp.exp(state.log_scale) * jnp.linalg.norm(along)

    keys = jax.random.split(jax.random.key(0), num_steps)
    _, lengths = jax.lax.scan(step, optimizer.init(jnp.zeros(size)), keys)
    steps = np.arange(1, num_steps)
    # The number of equally weighted steps whose mean is as noisy as that with the weights 0.9^k.
    averaged = (1 - 0.9**steps) ** 2 / (1 - 0.9) ** 2 * (1 - 0.81) / (1 - 0.81**steps)
    expected = np.mean(np.sqrt(averaged / (averaged + 9)))
    np.testing.assert_allclose(lengths[0], np.sqrt(size * 10), rtol=0.05)
    np.testing.assert_allclose(lengths[-1], np.sqrt(size) * expected, rtol=0.03)


def test_measuring_ends_where_nothing_can_be_measured():
    optimizer = optax_igr.adapt_scale(optax.sgd(0.5), 0.0, first_step="cauchy", warmup_steps=3)
    state = optimizer.init(jnp.ones(2))

    def step(state, _):
        # A linear loss has no curvature.
        updates, state = optimizer.update(jnp.ones(2), state, jnp.ones(2), value_fn=jnp.sum)
        return state, updates[0]

    _, steps = jax.lax.scan(step, state, length=110)
    np.testing.assert_allclose(steps[:102], -0.5 / 3, rtol=1e-6)
    np.testing.assert_allclose(steps[102:], -0.5, rtol=1e-6)


def test_momentum_does_not_amplify_a_measured_first_step_at_once():
    optimizer = optax_igr.adapt_scale(optax.sgd(1.0, momentum=0.9), 0.0, first_step="cauchy")
    params = jnp.ones(1)
    state = optimizer.init(params)
    update = jax.jit(
        lambda s: optimizer.update(2 * params, s, params, value_fn=lambda p: jnp.sum(p**2))
    )
    lengths = []
    for _ in range(40):
        updates, state = update(state)
        lengths.append(float(jnp.abs(updates[0])))
    # The buffer grows as 1, 1.9, 2.71, ... to 10, the steps as 1.1^t until it no longer does.
    np.testing.assert_allclose(lengths[:7], 1.1 ** np.arange(7), rtol=1e-9)
    assert max(np.diff(np.log(lengths))) < np.log(1.1) + 1e-9


def test_runs_side_by_side_pay_for_the_product_in_the_first_updates_alone():
    optimizer = optax_igr.adapt_scale(optax.sgd(0.1), 0.1, first_step="cauchy")

    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(
                jnp.cos(params), state, params, value_fn=lambda p: jnp.sum(jnp.sin(p))
            )
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=3)[0][1].count

    batched = jax.make_jaxpr(jax.vmap(run))(jnp.ones([2, 3]))
    (scan,) = [e for e in batched.eqns if e.primitive.name == "scan"]
    assert "cond" in {e.primitive.name for e in scan.params["jaxpr"].eqns}


@pytest.mark.parametrize("granularity", ["tree", "leaf"])
@pytest.mark.parametrize("rate", [1e-4, 1e-2, 1e3])
def test_the_cap_bounds_the_relative_update_and_is_folded_into_the_scale(granularity, rate):
    optimizer = optax_igr.adapt_scale(
        optax.sgd(rate), 0.0, granularity=granularity, max_relative_update=0.05
    )
    params = NETWORK.params
    gradient = jax.grad(NETWORK.value_fn)(params)
    updates, state = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)

    def norm(tree):
        return float(jnp.sqrt(trees.squared_norm(tree)))

    expected = min(rate * norm(gradient), 0.05 * norm(params))
    assert norm(updates) == pytest.approx(expected, rel=1e-9)
    factor = expected / (rate * norm(gradient))
    for log_scale in jax.tree.leaves(state.log_scale):
        np.testing.assert_allclose(jnp.exp(log_scale), factor, rtol=1e-9)


def test_zero_weights_can_move_under_the_cap():
    optimizer = optax_igr.adapt_scale(optax.sgd(1.0), 0.0, max_relative_update=0.5)
    params = jnp.zeros(4)
    updates, _ = jax.jit(optimizer.update)(jnp.ones(4), optimizer.init(params), params)
    np.testing.assert_allclose(updates, -0.5e-2, rtol=1e-6)


@every_inner
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_broken_gradient_emits_zeros_and_leaves_the_state(inner, bad):
    optimizer = optax_igr.adapt_scale(inner, 0.1)
    params = jax.tree.map(lambda p: p.astype(jnp.float32), NETWORK.params)
    update = jax.jit(optimizer.update)
    fresh = optimizer.init(params)
    _, used = update(jax.tree.map(jnp.sin, params), fresh, params)
    broken = jax.tree.map(lambda p: jnp.full_like(p, bad), params)
    for before in (fresh, used):
        updates, after = update(broken, before, params)
        assert trees.squared_norm(updates) == 0
        for name in ("log_scale", "longest_step", "measurements", "inner_state"):
            jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
        assert trees.all_finite(after.previous_updates)
        updates, _ = update(jax.tree.map(jnp.sin, params), after, params)
        assert trees.all_finite(updates)
        assert trees.squared_norm(updates) > 0


def test_reaches_a_small_and_a_large_rate_within_bounds():
    free = optax_igr.adapt_scale(optax.sgd(1e-6), 0.5, signal="sign")
    bounded = optax_igr.adapt_scale(optax.sgd(1e-6), 0.5, signal="sign", bounds=(0.1, 10.0))
    assert train(free, 30)[1].log_scale > 10
    np.testing.assert_allclose(train(bounded, 30)[1].log_scale, np.log(10), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner": 0.1}, "inner"),
        ({"granularity": "layer"}, "granularity.*'tree', 'leaf'"),
        ({"signal": "normalized"}, "signal.*'cosine'"),
        ({"first_step": "newton"}, "first_step.*'cauchy'"),
        ({"max_relative_update": 0.0}, "max_relative_update.*> 0"),
        ({"bounds": (0.0, 1.0)}, "bounds.*0 < low"),
        ({"decay": 1.0}, "decay.*< 1"),
        ({"ema": 1.0}, "ema.*< 1"),
        ({"warmup_steps": 3}, "warmup_steps.*first_step"),
        ({"warmup_steps": 0, "first_step": "cauchy"}, "warmup_steps.*positive integer"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=f"adapt_scale.*{message}"):
        optax_igr.adapt_scale(**{"inner": optax.sgd(0.1), "scale_rate": 0.1, **arguments})


@pytest.mark.parametrize("option", [{"first_step": "cauchy"}, {"max_relative_update": 0.1}])
def test_an_option_asks_for_the_parameters_it_needs(option):
    optimizer = optax_igr.adapt_scale(optax.sgd(0.1), 0.1, **option)
    with pytest.raises(ValueError, match="adapt_scale needs the current parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


def test_more_measurements_need_no_copy_of_the_displacement():
    def temporaries(warmup_steps):
        optimizer = optax_igr.adapt_scale(
            optax.adam(0.1), 0.1, ema=0.9, first_step="cauchy", warmup_steps=warmup_steps
        )

        def step(params, state, gradient):
            updates, state = optimizer.update(
                gradient, state, params, value_fn=lambda p: jnp.sum(jnp.sin(p))
            )
            return optax.apply_updates(params, updates), state

        params = jnp.ones(100_000)
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, optimizer.init(params), params)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(5) < temporaries(1) + 0.1 * jnp.ones(100_000).nbytes


def test_the_program_is_linear_in_the_number_of_leaves():
    def num_lines(num_leaves):
        optimizer = optax_igr.adapt_scale(optax.sgd(0.1), 0.1, granularity="leaf")
        params = {f"w{i}": jnp.ones(i + 1) for i in range(num_leaves)}

        def step(params, state):
            updates, state = optimizer.update(params, state, params)
            return optax.apply_updates(params, updates), state

        lowered = jax.jit(step).lower(params, optimizer.init(params))
        return len(lowered.compile().as_text().splitlines())

    # A quadratic part would make the second difference grow: 11, 38 and 145 thousand lines at 20, 40 and 80 leaves.
    few, some, many = (num_lines(n) for n in (10, 20, 40))
    assert many - some < 2.3 * (some - few)


@pytest.mark.parametrize("option", [{}, {"ema": 0.9}, {"granularity": "leaf"}])
def test_weakly_typed_parameters_compile_once(option):
    optimizer = optax_igr.adapt_scale(optax.sgd(0.1, momentum=0.9), 0.1, **option)
    params = {"a": jnp.asarray(1.0), "b": jnp.full(3, 2.0)}
    assert params["a"].weak_type
    num_traces = 0

    @jax.jit
    def step(params, state):
        nonlocal num_traces
        num_traces += 1
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(4):
        params, state = step(params, state)
    # The parameters themselves lose their weak type with the first update.
    assert num_traces <= 2
    assert not any(x.weak_type for x in jax.tree.leaves(state))


@pytest.mark.parametrize("signal", ["cosine", "sign", "product"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_one_gradient_that_is_far_too_large_does_not_end_the_training(signal, ema):
    """Before moves had a bound, a product left the scale at e^-80 for ever."""
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    optimizer = optax_igr.adapt_scale(clipped, 0.1, signal=signal, ema=ema)

    def step(carry, t):
        params, state = carry
        gradient = 2 * params * jnp.where(t == 30, 1e15, 1.0)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), state.log_scale

    params = jnp.array([1.0, -2.0], jnp.float32)
    (params, _), log_scales = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(200))
    assert np.abs(np.diff(log_scales)).max() <= 1 + 1e-6
    assert jnp.sum(params**2) < 1e-4


BOUNDARIES = {"zero": 0.0, "one": 1.0, "above": 7.0, "below": -1.0, "nan": np.nan, "inf": np.inf}


@pytest.mark.parametrize("boundary", BOUNDARIES.values(), ids=BOUNDARIES)
@pytest.mark.parametrize("name", ["scale_rate", "ema", "decay", "max_relative_update"])
def test_a_schedule_at_its_boundary_leaves_all_finite_and_learning(name, boundary):
    """Its first and its fourth value are out of range; what follows must still be a training."""
    arguments: dict = {"scale_rate": 0.05, "max_relative_update": 0.5}
    good = {"scale_rate": 0.05, "ema": 0.5, "decay": 0.01, "max_relative_update": 0.5}[name]
    arguments[name] = lambda t: jnp.where((t == 0) | (t == 3), boundary, good)
    optimizer = optax_igr.adapt_scale(optax.sgd(0.1), **arguments)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(2 * params, state, params)
        return (optax.apply_updates(params, updates), state), trees.all_finite((updates, state))

    params = jnp.array([1.0, -2.0], jnp.float32)
    (params, _), finite = jax.lax.scan(step, (params, optimizer.init(params)), length=400)
    assert finite.all()
    assert jnp.sum(params**2) < 1e-3


def test_a_product_that_has_no_forward_derivative_falls_back():
    """A loss with an opaque backward pass: `auto` finds a mode that the loss allows, others say so."""

    @jax.custom_vjp
    def opaque(x):
        return jnp.sum(x**2)

    opaque.defvjp(lambda x: (opaque(x), x), lambda x, g: (2 * g * x,))
    params = jnp.array([1.0, 2.0])
    optimizer = optax_igr.adapt_scale(optax.sgd(1e-3), 0.1, first_step="cauchy")
    updates, _ = optimizer.update(2 * params, optimizer.init(params), params, value_fn=opaque)
    np.testing.assert_allclose(updates, -params, rtol=1e-6)
    strict = optax_igr.adapt_scale(
        optax.sgd(1e-3), 0.1, first_step="cauchy", hvp="reverse_over_forward"
    )
    with pytest.raises(ValueError, match=r"adapt_scale.*reverse_over_forward"):
        strict.update(2 * params, strict.init(params), params, value_fn=opaque)
    with pytest.raises(ValueError, match=r"adapt_scale.*hvp"):
        optax_igr.adapt_scale(optax.sgd(1e-3), 0.1, hvp="dense")
