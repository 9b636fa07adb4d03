"""The public norms against singular values in float64, at every scale that a float holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_igr
from optax_igr import operators
from tests.operators.test_operators import dense

NORMS = {
    "spectral_norm": lambda values: values.max(),
    "spectral_norm_bound": lambda values: values.max(),
    "frobenius_norm": lambda values: np.sum(values**2) ** 0.5,
    "schatten_norm": lambda values: np.sum(values**8) ** (1 / 8),
}
every_norm = pytest.mark.parametrize("name", NORMS)


def measured(name, w, operator=None):
    further = (2,) if name == "schatten_norm" else ()
    return jax.jit(lambda w: getattr(operators, name)(w, *further, operator=operator))(w)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@every_norm
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1.0, 1e30, 2e37])
def test_a_matrix_at_every_scale_of_float32(name, scale):
    w = (scale * normal((5, 7))).astype(np.float32)
    expected = scale * NORMS[name](np.linalg.svd(np.float64(w) / scale, compute_uv=False))
    found = measured(name, w)
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(expected, rel=2e-6)


@every_norm
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("padding", ["CIRCULAR", "SAME"])
def test_a_convolution_at_every_scale_of_float32(name, scale, padding):
    operator = optax_igr.conv_operator((4, 5), padding=padding)
    kernel = np.float32(scale * normal((3, 3, 2, 3)))
    values = np.linalg.svd(dense(operator, np.float64(kernel) / scale), compute_uv=False)
    found, expected = float(measured(name, kernel, operator)) / scale, NORMS[name](values)
    if padding == "CIRCULAR" or name == "spectral_norm":
        assert found == pytest.approx(expected, rel=1e-4 if padding == "SAME" else 2e-6)
    else:
        assert expected * (1 - 2e-6) <= found < 3 * expected


@every_norm
def test_a_matrix_of_a_stack_does_not_depend_on_the_others(name):
    stack = np.stack([normal((3, 4), seed) for seed in range(5)]).astype(np.float32)
    stack[1] = 0
    stack[2] *= 1e30
    stack[3] *= 1e-30
    stack[4, 0, 0] = np.nan
    found = np.asarray(measured(name, stack, optax_igr.matrix_operator()))
    for index, scale in ((0, 1), (1, 1), (2, 1e30), (3, 1e-30)):
        values = np.linalg.svd(np.float64(stack[index]) / scale, compute_uv=False)
        assert float(found[index]) / scale == pytest.approx(NORMS[name](values), rel=2e-6)
    assert np.isnan(found[4])


@every_norm
@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float32, jnp.complex64], ids=["bfloat16", "float32", "complex64"]
)
def test_runs_with_every_check_of_jax_switched_on(name, dtype):
    w = jnp.asarray(normal((2, 3, 4)), dtype).at[0].set(0)
    conv = optax_igr.conv_operator((4,), padding="SAME")
    keywords = {"gram_steps": 2} if name == "schatten_norm" else {}
    norm = getattr(operators, name)
    with (
        jax.debug_nans(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        for operator in (optax_igr.matrix_operator(), conv):
            run = functools.partial(norm, operator=operator, **keywords)
            for values in (run(w), jax.jit(run)(w)):
                assert np.all(np.isfinite(values))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_steps": 0}, "`max_steps` must be a positive integer"),
        ({"max_steps": 2.5}, "`max_steps`"),
        ({"tolerance": float("nan")}, "`tolerance` must be a real number and >= 0"),
        ({"tolerance": -1e-3}, "`tolerance`"),
        ({"tolerance": None}, "`tolerance`"),
        ({"w": jnp.ones(3)}, "`w` must be a weight of at least two axes"),
        ({"w": jnp.ones([3, 3], int)}, "`w` must be .* of real or complex numbers"),
        ({"w": jnp.ones([0, 3])}, "`w` must be"),
        ({"w": jnp.ones([2, 3, 3]), "operator": None}, "more than two axes"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    conv = optax_igr.conv_operator((4,), padding="SAME")
    arguments = {"w": jnp.ones([3, 2, 2]), "operator": conv, **arguments}
    with pytest.raises(ValueError, match=f"spectral_norm: .*{message}"):
        operators.spectral_norm(**arguments)
