"""Which continuous path does an optimizer follow?

Each record is a path or a line of errors, not a run of the training loop: `flow_paths` and `flow_errors` list what to
measure, `run` measures what is not on record yet, and `flow_charts` draws it. Everything is in float64.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from benchmarks.engine import records
from benchmarks.engine.records import Record
from benchmarks.experiments import flow_charts, flow_errors, flow_paths
from benchmarks.experiments.experiment import Column, Experiment
from benchmarks.experiments.flow_errors import DIGITS_RATE, DIGITS_STEPS
from benchmarks.experiments.flow_measurement import Measurement

MEASUREMENTS: Sequence[Measurement] = [*flow_paths.measurements(), *flow_errors.measurements()]


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
