"""Sharpness against dense eigenvalues."""

import sys

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr._core import derivatives
from optax_igr.diagnostics import sharpness
from tests.problems import tanh_network


def quadratic(eigenvalues, seed=0):
    size = len(eigenvalues)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    matrix = jnp.array((basis * np.array(eigenvalues)) @ basis.T)
    return lambda p: jnp.sum(p * (matrix @ p)) / 2, jnp.zeros(size, jnp.float64)


def test_the_largest_eigenvalue_of_a_network():
    problem = tanh_network(dtype=jnp.float64)
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    hessian = jax.jit(jax.hessian(lambda x: problem.value_fn(unravel(x))))(flat)
    largest = np.linalg.eigvalsh(hessian)[-1]
    found = jax.jit(lambda p: sharpness(problem.value_fn, p, num_steps=30))(problem.params)
    assert float(found.eigenvalue) == pytest.approx(largest, rel=1e-8)
    assert found.stability_threshold is None
    rough = sharpness(problem.value_fn, problem.params, num_steps=4)
    assert rough.eigenvalue < largest
    assert 0 < largest - rough.eigenvalue < rough.error_estimate


def test_the_error_estimate_is_the_norm_of_the_residual():
    """With fewer steps than eigenvalues some eigenvalue lies that close, and at full length all are found."""
    eigenvalues = np.linspace(-1, 2, 12)
    value_fn, params = quadratic(eigenvalues)
    for num_steps in (4, 8):
        found = sharpness(value_fn, params, num_steps=num_steps)
        distance = np.min(np.abs(eigenvalues - float(found.eigenvalue)))
        assert distance <= float(found.error_estimate) * (1 + 1e-9)
    found = sharpness(value_fn, params, num_steps=12, learning_rate=0.1)
    assert float(found.eigenvalue) == pytest.approx(2, rel=1e-12)
    assert float(found.error_estimate) < 1e-6
    assert found.stability_threshold == 20


def test_negative_curvature_that_is_larger_in_size_is_not_sharpness():
    value_fn, params = quadratic([-5.0, -1.0, 0.5, 2.0])
    assert float(sharpness(value_fn, params).eigenvalue) == pytest.approx(2, rel=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize(
    ("eigenvalues", "largest"),
    [([2.0] * 20, 2), ([0.0] * 20, 0), ([3.0] * 10 + [-1.0] * 10, 3)],
    ids=["twice the identity", "zero", "two eigenvalues"],
)
def test_an_exhausted_krylov_space_adds_no_eigenvalue(eigenvalues, largest, dtype):
    value_fn, params = quadratic(eigenvalues)
    found = sharpness(lambda p: value_fn(p.astype(jnp.float64)), params.astype(dtype), num_steps=15)
    assert float(found.eigenvalue) == pytest.approx(largest, abs=20 * float(jnp.finfo(dtype).eps))
    assert float(found.error_estimate) < 1e-5


def test_no_more_steps_than_parameters_and_other_leaves_are_constants():
    params = {"w": jnp.ones([2], jnp.bfloat16), "count": jnp.array(3), "none": None}
    found = sharpness(lambda p: p["count"] * jnp.sum(p["w"] ** 2), params, num_steps=50)
    assert found.eigenvalue.dtype == jnp.float32
    assert float(found.eigenvalue) == pytest.approx(6, rel=1e-6)


def test_progress_counts_the_products():
    seen = []
    value_fn, params = quadratic(np.linspace(0, 1, 8))
    report = jax.jit(
        lambda p: sharpness(
            value_fn, p, num_steps=4, progress=lambda done, total: seen.append((done, total))
        )
    )
    for _ in range(2):
        jax.block_until_ready(report(params))
        jax.effects_barrier()
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
        seen.clear()


def test_without_matfree_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matfree", None)
    with pytest.raises(ImportError, match=r'pip install "optax_igr\[diagnostics\]"'):
        sharpness(jnp.sum, jnp.ones(3))


def test_complex_and_absent_parameters_are_refused():
    with pytest.raises(ValueError, match="sharpness: complex"):
        sharpness(lambda z: jnp.sum(jnp.abs(z)), jnp.ones(2, jnp.complex64))
    with pytest.raises(ValueError, match="sharpness: `params`"):
        sharpness(lambda p: 0.0, {"count": jnp.array(1)})


@pytest.mark.parametrize("hvp", derivatives.MODES)
def test_every_mode_finds_the_largest_eigenvalue(hvp):
    value_fn, params = quadratic([3.0, -5.0, 1.0, 0.5])
    found = sharpness(value_fn, params, hvp=hvp)
    assert float(found.eigenvalue) == pytest.approx(3, rel=1e-6)


def test_an_unknown_mode_and_a_radius_of_an_exact_one_are_refused():
    value_fn, params = quadratic([1.0, 2.0])
    with pytest.raises(ValueError, match="sharpness: `hvp` must be one of 'auto'"):
        sharpness(value_fn, params, hvp="exact")
    with pytest.raises(ValueError, match="sharpness: `radius`"):
        sharpness(value_fn, params, hvp="reverse_over_forward", radius=0.1)
