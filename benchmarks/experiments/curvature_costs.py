"""What curvature costs beside a gradient: every mode of a Hessian-vector product, and every direction.

Times are medians over rounds in which all programs take turns, each as a ratio to the gradient of its own round; a
direction's to the step of gradient descent. FLOPs and memory are the compiler's own figures; a direction contains
loops, whose bodies those count once, so it has none.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import altair as alt

from benchmarks.costs import curvature_programs as programs_
from benchmarks.costs.curvature_programs import ACTIVATIONS, CYCLE
from benchmarks.engine import records
from benchmarks.engine.records import Record
from benchmarks.experiments.experiment import Figure, Measurement

ROUNDS = 9
PRODUCTS = {name: f"Hessian-vector product, {name}" for name in ACTIVATIONS}
DIRECTIONS = "direction, tanh"
PROBLEMS = (*PRODUCTS.values(), DIRECTIONS)
SETTINGS = f"MLP {'-'.join(map(str, programs_.WIDTHS))}, batch {programs_.BATCH_SIZE}, float32"


def measure(rounds: int = ROUNDS) -> list[Record]:
    """Compiles and times everything."""
    programs = {
        (problem, technique): program
        for problem, found in [
            *((PRODUCTS[name], programs_.products(fn)) for name, fn in ACTIVATIONS.items()),
            (DIRECTIONS, programs_.directions()),
        ]
        for technique, program in found.items()
    }
    for program in programs.values():
        program.run()
    seconds: dict[Any, list[float]] = {key: [] for key in programs}
    for _ in range(rounds):
        for key, program in programs.items():
            seconds[key].append(program.run() / program.steps)
    return [_record(key, programs, seconds) for key in programs]


def _record(key, programs, seconds):
    problem, technique = key
    base = (problem, "gradient" if problem in PRODUCTS.values() else "sgd")
    ratios = [a / b for a, b in zip(seconds[key], seconds[base], strict=True)]
    figures = dict(programs[key].figures)
    for name in ("flops", "memory"):
        if name in figures:
            figures[name] = figures[name] / programs[base].figures[name]
    figures["time"] = statistics.median(ratios)
    figures["milliseconds"] = 1e3 * statistics.median(seconds[key])
    return Record(
        problem=problem,
        settings=SETTINGS,
        technique=technique,
        learning_rate=0.0,
        seed=0,
        num_steps=ROUNDS,
        curve={},
        final={"train_loss": math.nan, **figures},
        gradients_per_step=figures.get("gradients", math.nan),
        products_per_step=math.nan,
        seconds_per_step=statistics.median(seconds[key]),
        compile_seconds=math.nan,
        runs_in_program=1,
        environment=records.environment(),
    )


DIRECTION_NAMES = (
    *("sgd", "adam", "naive_lbfgs", "multibatch_lbfgs", "multibatch_lbfgs gram", "svrg", "sqn"),
    *("sqn gram", "slbfgs", "newton_cg 10", "gauss_newton_cg 10"),
)
MEASUREMENT = Measurement(
    keys=[
        (problem, SETTINGS, ROUNDS, technique, 0.0, 0)
        for problem, techniques in [
            *((problem, ("gradient", *programs_.MODES)) for problem in PRODUCTS.values()),
            (DIRECTIONS, DIRECTION_NAMES),
        ]
        for technique in techniques
    ],
    measure=measure,
)


def headline(runs: Sequence[Record]) -> list[str]:
    """Says what a product costs in each exact mode."""
    sentences = []
    for problem in PRODUCTS.values():
        modes = [r for r in runs if r.problem == problem and r.technique in programs_.EXACT_MODES]
        if modes:
            times = ", ".join(f"{r.technique} {r.final['time']:.2f}" for r in modes)
            sentences.append(f"Gradient and {problem}, in the time of a gradient: {times}.")
    return sentences


def figures_of(runs: Sequence[Record]) -> list[Figure]:
    """Draws the costs as dots beside a gradient."""
    found = []
    panels = {
        "products": (
            list(PRODUCTS.values()),
            [
                ("time", "time × a gradient"),
                ("flops", "FLOPs × a gradient"),
                ("memory", "memory × a gradient"),
            ],
            "A gradient and a product with it, in gradients",
            "By the mode of `hvp`. FLOPs and memory are the compiler's own figures.",
        ),
        "directions": (
            [DIRECTIONS],
            [("gradients", "gradients, counted by hand"), ("time", "time × a gradient step")],
            "A step of each technique, in gradients of its batch",
            f"Ten batches make the curvature batch and the whole data set, each used once in {CYCLE} steps.",
        ),
    }
    for name, (problems, measures, title, caption) in panels.items():
        own = [r for r in runs if r.problem in problems and r.technique != "gradient"]
        if own:
            found.append(Figure(f"cost_of_{name}", title, caption, _dots(own, measures)))
    return found


def _dots(runs, measures):
    order = list(dict.fromkeys(r.technique for r in runs))
    rows = [
        {"problem": r.problem.split(", ")[-1], "technique": r.technique, **_finite(r.final)}
        for r in runs
    ]
    charts = []
    for index, (name, title) in enumerate(measures):
        y = alt.Y(
            "technique:N", sort=order, title=None, axis=alt.Axis(labels=index == 0, ticks=False)
        )
        x = alt.X(f"{name}:Q", title=title, scale=alt.Scale(domainMin=0))
        tips = [
            alt.Tooltip("technique:N"),
            alt.Tooltip("problem:N"),
            alt.Tooltip(f"{name}:Q", format=".3~g"),
        ]
        charts.append(
            alt.Chart(alt.Data(values=rows))
            .mark_point(filled=True, size=110, opacity=0.9)
            .encode(x=x, y=y, color="problem:N", shape="problem:N", tooltip=tips)
            .properties(width=300 if len(measures) > 2 else 400, height=28 * len(order))
        )
    return alt.hconcat(*charts)


def _finite(numbers):
    return {k: x for k, x in numbers.items() if isinstance(x, float | int) and math.isfinite(x)}
