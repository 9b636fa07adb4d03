"""The monitor against dense eigenvalues of the preconditioned Hessian, and its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_igr import diagnostics

MATRIX = jnp.array([[3.0, 0.5, 0.1], [0.5, 1.0, -0.2], [0.1, -0.2, -1.0]])


def value_fn(p):
    return p @ MATRIX @ p / 2 + jnp.sum(p**4) / 40


def run(optimizer, num_steps, start=(0.5, -1.0, 0.3)):
    params = jnp.array(start)
    state = optimizer.init(params)
    update = jax.jit(lambda g, s, p: optimizer.update(g, s, p, value_fn=value_fn))
    for _ in range(num_steps):
        before = params
        updates, state = update(jax.grad(value_fn)(params), state, params)
        params = optax.apply_updates(params, updates)
    return before, state


OPTIMIZERS = {
    "descent": (optax.sgd(0.1), {}, 2.0),
    "heavy_ball": (optax.sgd(0.1, momentum=0.6), {"momentum": 0.6}, 3.2),
    "nesterov": (
        optax.sgd(0.1, momentum=0.6, nesterov=True),
        {"momentum": 0.6, "nesterov": True},
        3.2 / 2.2,
    ),
    "adam": (
        optax.adam(optax.constant_schedule(0.1), b1=0.6, b2=0.9),
        {
            "momentum": 0.6,
            "averaged": True,
            "preconditioner": diagnostics.adam_divisor(b2=0.9),
        },
        8.0,
    ),
    "rmsprop": (optax.rmsprop(0.003), {"preconditioner": diagnostics.rmsprop_divisor()}, 2.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ratio_is_that_of_the_dense_preconditioned_hessian(name):
    inner, options, threshold = OPTIMIZERS[name]
    rate = 0.003 if name == "rmsprop" else 0.1
    optimizer = diagnostics.monitor_sharpness_ratio(inner, rate, interval=1, **options)
    params, state = run(optimizer, 60)
    nu = optax.tree.get(state, "nu")
    divisor = jnp.ones(3)
    if name == "adam":
        divisor = jnp.sqrt(nu / (1 - 0.9**60)) + 1e-8
    elif name == "rmsprop":
        divisor = jnp.sqrt(nu + 1e-8)
    dense = jax.hessian(value_fn)(params) / jnp.sqrt(jnp.outer(divisor, divisor))
    expected = rate * jnp.linalg.eigvalsh(dense)[-1] / threshold
    np.testing.assert_allclose(state.sharpness_ratio, expected, rtol=0.05)
    assert jnp.abs(state.sharpness_ratio - expected) < state.ratio_error + 1e-6
    np.testing.assert_array_equal(
        run(inner if nu is None else optax.with_extra_args_support(inner), 60)[0], params
    )


@pytest.mark.parametrize(
    ("rate", "regime"), [(0.2, "SERIES"), (0.45, "BEYOND_SERIES"), (0.7, "EDGE")]
)
def test_regime(rate, regime):
    optimizer = diagnostics.monitor_sharpness_ratio(optax.sgd(0.0), rate)
    _, state = run(optimizer, 1, start=(0.0, 0.0, 0.0))
    assert diagnostics.Regime(int(state.regime)).name == regime
    largest = jnp.linalg.eigvalsh(MATRIX)[-1]
    np.testing.assert_allclose(state.sharpness_ratio, rate * largest / 2, rtol=1e-4)


def test_measures_every_interval_and_keeps_its_direction_through_a_bad_batch():
    optimizer = diagnostics.monitor_sharpness_ratio(optax.sgd(0.0), 0.1, interval=3)
    params = jnp.array([0.5, -1.0, 0.3])
    state = optimizer.init(params)
    ratios = []
    for t in range(7):
        factor = jnp.nan if t == 3 else 1.0 + t

        def scaled(p, factor=factor):
            return factor * value_fn(p)

        _, state = optimizer.update(jnp.zeros(3), state, params, value_fn=scaled)
        ratios.append(float(state.sharpness_ratio))
    assert ratios[0] == ratios[1] == ratios[2] == ratios[3] == ratios[5]
    np.testing.assert_allclose(ratios[6], 7 * ratios[0], rtol=1e-3)


def test_a_bad_first_batch_is_forgotten():
    optimizer = diagnostics.monitor_sharpness_ratio(optax.sgd(0.0), 0.1, interval=1)
    params = jnp.array([0.5, -1.0, 0.3])
    state = optimizer.init(params)
    for gradient, factor in ((jnp.full(3, jnp.nan), jnp.nan), (jnp.ones(3), 1.0)):

        def scaled(p, factor=factor):
            return factor * value_fn(p)

        _, state = optimizer.update(gradient, state, params, value_fn=scaled)
    dense = jnp.linalg.eigvalsh(jax.hessian(value_fn)(params))[-1]
    np.testing.assert_allclose(state.sharpness_ratio, 0.1 * dense / 2, rtol=1e-3)


def test_a_second_moment_without_a_preconditioner_is_an_error():
    optimizer = diagnostics.monitor_sharpness_ratio(optax.adam(0.1), 0.1)
    with pytest.raises(ValueError, match="preconditioner"):
        optimizer.init(jnp.ones(2))
    with pytest.raises(ValueError, match="one second moment"):
        diagnostics.adam_divisor()(optax.sgd(0.1).init(jnp.ones(2)))
