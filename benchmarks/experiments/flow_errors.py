"""How far steps leave their flows: in one step, after a time with momentum or Adam, and as gradient descent drifts.

The networks are small ones on scikit-learn's digits.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from benchmarks.experiments.experiment import Measurement
from benchmarks.experiments.flow_measurement import flow_measurement
from benchmarks.experiments.flow_paths import two_weights
from optax_igr import flows

DIGITS_RATE, DIGITS_STEPS = 0.2, 60
EPS_ROOT = 1e-3

RATES = (0.02, 0.01, 0.005, 0.0025)
OPTIMIZERS = {
    "heavy ball": (
        lambda h: optax.sgd(h, momentum=0.6),
        lambda f, h, order: flows.optimizer_flow(f, h, momentum=0.6, order=order),
    ),
    "Nesterov": (
        lambda h: optax.sgd(h, momentum=0.6, nesterov=True),
        lambda f, h, order: flows.optimizer_flow(f, h, momentum=0.6, nesterov=True, order=order),
    ),
    "Adam": (
        lambda h: optax.adam(h, b1=0.6, b2=0.8, eps=0.0, eps_root=EPS_ROOT),
        lambda f, h, order: flows.adam_flow(f, h, 0.6, 0.8, EPS_ROOT, order=order),
    ),
}


def measurements() -> Iterator[Measurement]:
    """Lists the lines of errors."""
    yield from _local_measurements()
    yield from _optimizer_measurements()
    yield from _drift_measurements()


@functools.cache
def _digits_problem(width: int, num_images: int):
    """Returns the cross-entropy of a tanh network 64-width-10, and a start, in float64."""
    pixels, targets = load_digits(return_X_y=True)
    images, labels = pixels[:num_images] / 16.0, np.eye(10)[targets[:num_images]]
    # Drawn by NumPy in float64: the errors of high order need all digits.
    rng = np.random.default_rng(0)
    params = {
        "hidden": rng.normal(size=(64, width)) / 8,
        "bias": np.zeros(width),
        "out": rng.normal(size=(width, 10)) / width**0.5,
    }

    def value_fn(p):
        logits = jnp.tanh(images @ p["hidden"] + p["bias"][None]) @ p["out"]
        return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=1))

    return value_fn, params


def _local_errors(value_fn, start, step_sizes, order):
    field = flows.gradient_flow(value_fn)
    result = flows.convergence_order(
        lambda p, h: jax.tree.map(lambda x, f: x + h * f, p, field(p)),
        lambda h: flows.modified_flow(field, h, order),
        start,
        step_sizes,
    )
    curve = {"step_size": result.step_sizes.tolist(), "error": result.errors.tolist()}
    final = {"measure": "slope", "value": float(result.slope), "theory": order + 2}
    return curve, final


def _local_measurements():
    value_fn, start = _digits_problem(8, 64)
    problems = {
        "one step, two weights": (
            two_weights,
            (1.4, 1.1),
            (0.04, 0.02, 0.01, 0.005),
            "E = (0.6 - ab)²/2 at (1.4, 1.1)",
        ),
        "one step, tanh network": (
            value_fn,
            start,
            (0.1, 0.05, 0.025, 0.0125),
            "64 digits, MLP 64-8-10 (tanh)",
        ),
    }
    for problem, (loss, point, sizes, settings) in problems.items():
        for order in range(5):
            yield flow_measurement(
                problem,
                settings,
                f"order {order}",
                max(sizes),
                1,
                functools.partial(_measure_local, loss, point, sizes, order),
            )


def _measure_local(loss, point, sizes, order):
    start = jnp.array(point) if isinstance(point, tuple) else point
    return _local_errors(loss, start, sizes, order)


def _optimizer_errors(name, order):
    """Distances from the flow over the time 0.6, after a time in which the state settles."""
    value_fn, start = _digits_problem(8, 64)
    make, flow = OPTIMIZERS[name]

    @jax.jit
    def error(h, settling, num_steps):
        transform = make(h)

        def step(_, carry):
            params, state = carry
            updates, state = transform.update(jax.grad(value_fn)(params), state, params)
            return optax.apply_updates(params, updates), state

        # A momentum that starts at zero follows its flow only after some steps.
        first = jax.lax.fori_loop(0, settling, step, (start, transform.init(start)))
        last, _ = jax.lax.fori_loop(0, num_steps, step, first)
        # Twice, so that the integrator's own error is measured beside the flow's.
        tolerances = jnp.array([1e-12, 1e-10])
        ends = jax.lax.map(
            lambda tol: flows.integrate(
                flow(value_fn, h, order), first[0], h * num_steps, rtol=tol, atol=tol
            ),
            tolerances,
        )
        return _distances(jax.tree.map(lambda x: x[0], ends), last, ends)

    pairs = [error(h, round(1.2 / h), round(0.6 / h)) for h in RATES]
    errors, own_errors = ([float(x[i]) for x in pairs] for i in range(2))
    slope = np.polyfit(np.log(RATES), np.log(errors), 1)[0]
    curve = {"step_size": list(RATES), "error": errors, "own_error": own_errors}
    final = {"measure": "slope", "value": float(slope), "theory": order + 1}
    return curve, final | {"own_error": max(own_errors)}


def _distances(flow, steps, ends):
    """The distance of the steps from the flow, and the integrator's own error."""
    looser = jax.tree.map(lambda x: x[1], ends)
    return optax.tree.norm(optax.tree.sub(flow, steps)), optax.tree.norm(
        optax.tree.sub(flow, looser)
    )


def _optimizer_measurements():
    for name in OPTIMIZERS:
        for order, technique in ((0, "without the correction"), (1, "with the correction")):
            yield flow_measurement(
                name,
                "64 digits, MLP 64-8-10 (tanh), momentum 0.6, Adam's β₂ 0.8 and ε 1e-3 in the root",
                technique,
                max(RATES),
                round(0.6 / min(RATES)),
                functools.partial(_optimizer_errors, name, order),
            )


def _drift(order):
    value_fn, start = _digits_problem(16, 256)
    field = flows.modified_flow(flows.gradient_flow(value_fn), DIGITS_RATE, order)
    duration = DIGITS_RATE * DIGITS_STEPS

    @jax.jit
    def measure():
        def step(params, _):
            gradient = jax.grad(value_fn)(params)
            params = jax.tree.map(lambda p, g: p - DIGITS_RATE * g, params, gradient)
            return params, params

        params = jax.tree.map(jnp.asarray, start)
        _, path = jax.lax.scan(step, params, length=DIGITS_STEPS)
        times = DIGITS_RATE * jnp.arange(1, DIGITS_STEPS + 1)
        # The last product may be one rounding beyond the end of the integration.
        times = times.at[-1].set(duration)
        paths = jax.lax.map(
            lambda tol: flows.integrate(field, params, duration, save_at=times, rtol=tol, atol=tol),
            jnp.array([1e-11, 1e-9]),
        )
        flow = jax.tree.map(lambda x: x[0], paths)
        return times, *jax.vmap(_distances, in_axes=(0, 0, 1))(flow, path, paths)

    times, distance, own_error = (x.tolist() for x in measure())
    curve = {"time": times, "distance": distance, "own_error": own_error}
    final = {"measure": "distance at the end", "value": distance[-1], "own_error": max(own_error)}
    return curve, final


def _drift_measurements():
    names = ("gradient flow", *(f"modified flow, order {order}" for order in (1, 2, 3)))
    for order, technique in enumerate(names):
        yield flow_measurement(
            "digits",
            f"256 digits, MLP 64-16-10 (tanh), gradient descent at rate {DIGITS_RATE:g}",
            technique,
            DIGITS_RATE,
            DIGITS_STEPS,
            functools.partial(_drift, order),
        )
