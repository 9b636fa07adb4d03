"""The two-weight model of Barrett and Dherin: the paths of optimizers and of flows, from one start."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_igr
from benchmarks.experiments.experiment import Measurement
from benchmarks.experiments.flow_measurement import flow_measurement
from optax_igr import flows

START = (2.8, 3.5)
SMALL_RATE, LARGE_RATE, PENALTY, PENALTY_RATE = 1e-3, 2.5e-2, 0.5, 1e-4


def two_weights(params: Any) -> jax.Array:
    """E = (y - abx)²/2 with x = 1 and y = 0.6."""
    a, b = params
    return (0.6 - a * b) ** 2 / 2


def _path(points, times):
    a, b = np.asarray(points).T
    final = {"measure": "‖θ‖² at the end", "value": float(a[-1] ** 2 + b[-1] ** 2)}
    return {"time": list(map(float, times)), "a": a.tolist(), "b": b.tolist()}, final


def _steps(transform, learning_rate, num_steps, shown):
    """The path of an Optax transform at the step numbers `shown`."""
    start = jnp.array(START)

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        gradient = jax.grad(two_weights)(params)
        updates, state = transform.update(gradient, state, params, value_fn=two_weights)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    _, points = jax.lax.scan(step, (start, transform.init(start)), length=num_steps)
    points = jnp.concatenate([start[None], points])
    return _path(points[np.asarray(shown)], learning_rate * np.asarray(shown))


def _flow(field):
    # Dense at the start, where the path is fast.
    times = np.concatenate([[0], np.geomspace(1e-3, 6, 80)])
    points = flows.integrate(field, jnp.array(START), 6.0, save_at=times, rtol=1e-10, atol=1e-10)
    return _path(points, times)


def measurements() -> list[Measurement]:
    """Lists the paths."""
    gradient_flow = flows.gradient_flow(two_weights)
    # Six thousand points would draw the same line.
    spaced = [0, *np.unique(np.geomspace(1, 6000, 120).astype(int))]
    penalized = optax.chain(optax_igr.add_gradient_penalty(PENALTY), optax.sgd(PENALTY_RATE))
    measured = {
        ("gradient descent", SMALL_RATE, 6000): lambda: _steps(
            optax.sgd(SMALL_RATE), SMALL_RATE, 6000, spaced
        ),
        ("gradient descent", LARGE_RATE, 240): lambda: _steps(
            optax.sgd(LARGE_RATE), LARGE_RATE, 240, range(241)
        ),
        ("gradient flow", 0.0, 0): lambda: _flow(gradient_flow),
        ("modified flow, order 1", LARGE_RATE, 0): lambda: _flow(
            flows.modified_flow(gradient_flow, LARGE_RATE, 1)
        ),
        ("modified flow, order 2", LARGE_RATE, 0): lambda: _flow(
            flows.modified_flow(gradient_flow, LARGE_RATE, 2)
        ),
        # A small rate, so that its own implicit term does not matter.
        (f"explicit penalty {PENALTY:g} ‖∇E‖²", PENALTY_RATE, 60_000): lambda: _steps(
            penalized, PENALTY_RATE, 60_000, [10 * i for i in spaced]
        ),
    }
    settings = "E = (0.6 - ab)²/2 from (2.8, 3.5)"
    return [
        flow_measurement("two weights", settings, *key, measure=m) for key, m in measured.items()
    ]
