"""Optimistix one step at a time is Optimistix."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from benchmarks.techniques.optimistix_transform import minimiser_step

SCALES = jnp.asarray([1.0, 3.0, 10.0])


def value_fn(p):
    return jnp.sum(jnp.cosh(SCALES * (p - 1)))


@pytest.mark.parametrize("solver", [optimistix.LBFGS, optimistix.NonlinearCG])
def test_a_step_is_one_of_its_own_loop(solver):
    solver = solver(rtol=0.0, atol=0.0)
    transform = minimiser_step(solver)

    def step(carry, _):
        params, state = carry
        updates, state = transform.update(params, state, params, value_fn=value_fn)
        return (params + updates, state), None

    start = jnp.zeros(3)
    (found, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, transform.init(start)), length=40))()
    theirs = optimistix.minimise(
        lambda p, args: value_fn(p), solver, start, max_steps=40, throw=False
    )
    np.testing.assert_allclose(found, theirs.value, rtol=1e-12)
    assert value_fn(found) < value_fn(start)
