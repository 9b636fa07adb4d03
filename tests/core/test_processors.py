"""The forms for CPU against the plain ones, and the program of every other processor."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_igr
from optax_igr._core import processors

SMALL = np.geomspace(1e-12, 1, 20_001)
ARGUMENTS = np.concatenate([SMALL, -SMALL, np.linspace(-87, 88.3, 200_001)]).astype(np.float32)


@pytest.mark.parametrize("jit", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_expm1_keeps_its_digits_over_the_whole_range(jit):
    expm1 = np.float64(jit(processors.expm1)(ARGUMENTS))
    assert np.abs(expm1 / np.expm1(ARGUMENTS.astype(np.float64)) - 1).max() < 2e-7


def test_zero_is_exact_and_nan_passes():
    x = jnp.array([0.0, -0.0, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(processors.expm1(x), [0, 0, np.nan])
    np.testing.assert_array_equal(processors.bounded(x, -1.0, 1.0), x)


def test_bounded_arguments_saturate_at_finite_numbers():
    x = processors.within_range(jnp.array([-jnp.inf, -100.0, 100.0, jnp.inf], jnp.float32))
    np.testing.assert_array_equal(x[:2], np.float32(processors.LOWEST))
    np.testing.assert_array_equal(x[2:], np.float32(processors.HIGHEST))
    assert 0 < jnp.exp(x[0]) < 2e-38
    assert 2e38 < processors.expm1(x[3]) < jnp.inf


def test_float64_is_that_of_jax():
    x = jnp.linspace(-700, 700, 1001, dtype=jnp.float64)
    np.testing.assert_array_equal(processors.expm1(x), jnp.expm1(x))


def test_every_derivative_of_expm1_is_the_exponential():
    for x in (-3.0, 0.1, 40.0):
        argument = jnp.float32(x)
        first = jax.grad(processors.expm1)
        np.testing.assert_allclose(first(argument), np.exp(x), rtol=5e-6)
        np.testing.assert_allclose(jax.grad(first)(argument), np.exp(x), rtol=5e-6)
        np.testing.assert_allclose(jax.vmap(first)(jnp.full(2, argument)), np.exp(x), rtol=5e-6)


@pytest.mark.parametrize("transformed", [jax.vmap, lambda f: f], ids=["vmap", "plain"])
def test_bounded_has_the_derivative_of_a_clip(transformed):
    x = jnp.array([-2.0, 0.5, 3.0])
    derivative = jax.grad(lambda x: jnp.sum(transformed(lambda x: processors.bounded(x, -1, 1))(x)))
    np.testing.assert_array_equal(derivative(x), [0, 1, 0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("other", [0.0, np.nan, np.inf], ids=["zero", "nan", "infinity"])
def test_what_is_waited_for_changes_no_value_and_no_derivative(dtype, other):
    x = jnp.asarray([0.0, -1.5, 3e38, 1e-30], dtype)
    computed = jnp.full(4, other, jnp.float32)
    false = processors.unprovable_false(jnp.zeros([], jnp.int32))

    def waiting(x):
        return processors.after(processors.written_once(x, false, computed), false, computed)

    np.testing.assert_array_equal(waiting(x), x)
    _, tangent = jax.jvp(waiting, (x,), (jnp.ones_like(x),))
    np.testing.assert_array_equal(tangent, jnp.ones_like(x))


TRANSFORMS = {
    "exponentiate": optax_igr.exponentiate(),
    "exponentiate with its state": optax_igr.exponentiate(log_state=True),
    "signed": optax_igr.exponentiate_signed(),
    "hypentropy": optax_igr.exponentiate_hypentropy(),
    "gain": optax_igr.scale_by_gain(1e-3),
    "egdd": optax_igr.egdd(1e-3),
}


def operations(transform, platform):
    """Returns how often each operation stands in the program of one update."""
    params = {"w": jnp.full((3, 4), 0.5, jnp.float32), "b": jnp.full(4, 0.5, jnp.float32)}

    def step(params, state):
        return transform.update(params, state, params)

    traced = jax.jit(step).trace(params, transform.init(params))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    found = re.findall(r"stablehlo\.(\w+)", text)
    return {name: found.count(name) for name in set(found)}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_processors_run_the_plain_operations(transform, platform):
    found = operations(transform, platform)
    assert "bitcast_convert" not in found
    # Dividing by one, and what is waited for, are forms for CPU.
    cpu = operations(transform, "cpu")
    assert sum(found.values()) < sum(cpu.values())


@pytest.mark.parametrize("name", ["exponentiate", "signed", "hypentropy"])
def test_cuda_has_its_own_exponential_less_one(name):
    assert operations(TRANSFORMS[name], "cuda")["exponential_minus_one"] == 2
    assert operations(TRANSFORMS[name], "cpu").get("exponential_minus_one", 0) == 0


STEPS = {
    "gain": optax.chain(optax_igr.scale_by_gain(1e-3), optax.sgd(1e-3)),
    "gain normalized": optax.chain(
        optax_igr.scale_by_gain(1e-3, signal="normalized", ema=0.9), optax.sgd(1e-3)
    ),
    "egdd": optax_igr.egdd(1e-3),
    "exponentiate": optax_igr.exponentiate(),
    "exponentiate with its state": optax_igr.exponentiate(log_state=True),
    "hypentropy": optax_igr.exponentiate_hypentropy(),
    "scale of adam": optax_igr.adapt_scale(optax.adam(1e-3), 0.01, max_relative_update=0.1),
    "scale by leaf": optax_igr.adapt_scale(optax.adam(1e-3), 0.01, granularity="leaf"),
}


@pytest.mark.parametrize("optimizer", STEPS.values(), ids=STEPS)
def test_a_donated_step_needs_no_copy_of_the_tree(optimizer):
    params = {"w": jnp.ones([500, 500], jnp.float32), "v": jnp.ones([300, 500], jnp.float32)}
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    memory = step.lower(params, state, params).compile().memory_analysis()
    smallest_leaf = 4 * 300 * 500
    assert memory.temp_size_in_bytes < smallest_leaf / 10
