"""Which continuous path does an optimizer follow? The measurements behind four figures, in float64.

Each record is a path or a line of errors, not a run of the training loop: `MEASUREMENTS` lists what to
measure, `run` measures what is not on record yet, and `flow_charts` draws it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_igr
from benchmarks import records
from benchmarks.experiment import Column, Experiment
from benchmarks.experiments import flow_charts
from benchmarks.records import Record
from optax_igr import flows

START = (2.8, 3.5)
SMALL_RATE, LARGE_RATE, PENALTY, PENALTY_RATE = 1e-3, 2.5e-2, 0.5, 1e-4
DIGITS_RATE, DIGITS_STEPS = 0.2, 60
EPS_ROOT = 1e-3


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one record holds.

    Attributes:
      problem: which figure it belongs to.
      settings: the problem in words.
      technique: the line of the figure.
      learning_rate: the learning rate or the largest of several; 0 for gradient flow itself.
      num_steps: of the optimizer.
      measure: returns the curve and the final numbers: `measure` and `value`, and `theory` and
        `own_error` where there are any.
    """

    problem: str
    settings: str
    technique: str
    learning_rate: float
    num_steps: int
    measure: Callable[[], tuple[dict[str, list[float]], dict[str, Any]]]

    @property
    def key(self) -> records.Key:
        """The key of its record."""
        return (self.problem, self.settings, self.num_steps, self.technique, self.learning_rate, 0)


def run(
    path: Path, *, progress: Callable[[str, float], None] = lambda what, fraction: None
) -> list[Record]:
    """Measures what is not in the records at `path` yet, appends it, and returns all records."""
    known = {r.key: r for r in records.read(path)}
    environment = records.environment()
    for index, wanted in enumerate(MEASUREMENTS):
        progress(f"{wanted.technique}, {wanted.problem}", index / len(MEASUREMENTS))
        if wanted.key in known:
            continue
        # Errors of high order are below the rounding of float32.
        with jax.enable_x64(True):
            curve, final = wanted.measure()
        record = Record(
            problem=wanted.problem,
            settings=wanted.settings,
            technique=wanted.technique,
            learning_rate=wanted.learning_rate,
            seed=0,
            num_steps=wanted.num_steps,
            curve=curve,
            final=final | {"train_loss": final["value"]},
            gradients_per_step=math.nan,
            products_per_step=math.nan,
            seconds_per_step=math.nan,
            compile_seconds=math.nan,
            runs_in_program=1,
            environment=environment,
        )
        records.append(path, [record])
        known[record.key] = record
    progress("done", 1.0)
    return [known[wanted.key] for wanted in MEASUREMENTS]


# The two-weight model of Barrett and Dherin.


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
    times = np.concatenate([[0], np.geomspace(1e-3, 6, 80)])
    points = flows.integrate(field, jnp.array(START), 6.0, save_at=times, rtol=1e-10, atol=1e-10)
    return _path(points, times)


def _two_weight_measurements():
    gradient_flow = flows.gradient_flow(two_weights)
    spaced = [0, *np.unique(np.geomspace(1, 6000, 120).astype(int))]
    penalised = optax.chain(optax_igr.add_gradient_penalty(PENALTY), optax.sgd(PENALTY_RATE))
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
        (f"explicit penalty {PENALTY:g} ‖∇E‖²", PENALTY_RATE, 60_000): lambda: _steps(
            penalised, PENALTY_RATE, 60_000, [10 * i for i in spaced]
        ),
    }
    settings = "E = (0.6 - ab)²/2 from (2.8, 3.5)"
    return [Measurement("two weights", settings, *key, measure=m) for key, m in measured.items()]


# Small networks on scikit-learn's digits.


@functools.cache
def _digits_problem(width: int, num_images: int):
    """Returns the cross-entropy of a tanh network 64-width-10, and a start, in float64."""
    pixels, targets = load_digits(return_X_y=True)
    images, labels = pixels[:num_images] / 16.0, np.eye(10)[targets[:num_images]]
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
            yield Measurement(
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


# Momentum and Adam.

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

        first = jax.lax.fori_loop(0, settling, step, (start, transform.init(start)))
        last, _ = jax.lax.fori_loop(0, num_steps, step, first)
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
            yield Measurement(
                name,
                "64 digits, MLP 64-8-10 (tanh), momentum 0.6, Adam's β₂ 0.8 and ε 1e-3 in the root",
                technique,
                max(RATES),
                round(0.6 / min(RATES)),
                functools.partial(_optimizer_errors, name, order),
            )


# The drift of gradient descent over time.


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
        yield Measurement(
            "digits",
            f"256 digits, MLP 64-16-10 (tanh), gradient descent at rate {DIGITS_RATE:g}",
            technique,
            DIGITS_RATE,
            DIGITS_STEPS,
            functools.partial(_drift, order),
        )


MEASUREMENTS: Sequence[Measurement] = [
    *_two_weight_measurements(),
    *_local_measurements(),
    *_optimizer_measurements(),
    *_drift_measurements(),
]


def headline(runs: Sequence[Record]) -> str:
    """Says to what order the steps follow the flows, and how much nearer a correction comes."""
    slopes = [r for r in runs if r.problem == "one step, tanh network"]
    drift = {r.technique: r.final["value"] for r in runs if r.problem == "digits"}
    base = drift["gradient flow"]
    nearer = [base / value for name, value in drift.items() if name != "gradient flow"]
    return (
        "One step of gradient descent on a tanh network leaves the modified flow of order 0 to 4 by an error of slope "
        + ", ".join(f"{r.final['value']:.2f}" for r in slopes)
        + f" (theory {', '.join(str(r.final['theory']) for r in slopes)}). On digits, {DIGITS_STEPS} steps at rate "
        f"{DIGITS_RATE:g} end {nearer[0]:.0f}, {nearer[1]:.0f} and {nearer[2]:.0f} times nearer to the flows of order "
        "1, 2 and 3 than to gradient flow."
    )


def _final(name, spec):
    def cell(group, runs):
        del runs
        value = group[0].final.get(name)
        return "" if value is None else format(value, spec)

    return cell


EXPERIMENT = Experiment(
    name="flows",
    question="Which continuous path does an optimizer follow?",
    about="Gradient descent does not follow gradient flow. It follows a modified flow, a series in the learning rate "
    "that backward error analysis gives to any order: the steps leave the flow of order n by an error that falls with "
    "the power n + 2 of the learning rate in one step, and n + 1 over a fixed time. Momentum and Adam have flows of "
    "their own. Everything is computed in float64; the integrator's own error is measured, at a second tolerance.",
    problems=lambda data_dir: [],
    entries=[],
    columns=[
        Column("measure", "what the value is", _final("measure", "s")),
        Column("value", "as measured", _final("value", ".6g")),
        Column("theory", "what backward error analysis predicts", _final("theory", "g")),
        Column(
            "integrator's own error",
            "difference of two tolerances of the integrator, the largest along the line; one-step errors are at least "
            "100 times theirs or are not reported",
            _final("own_error", ".1e"),
        ),
    ],
    headline=headline,
    figures=flow_charts.draw,
)
