"""Few relevant inputs among many: EG± beside gradient descent and Adam, online and on LIBSVM files."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import jax.numpy as jnp
import optax

import optax_igr
from benchmarks.engine.records import Record, groups
from benchmarks.experiments.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import PROBLEMS
from benchmarks.problems.online import counted, on_params, sparse_regression
from benchmarks.problems.problem import Problem
from benchmarks.report import figures
from benchmarks.techniques.own import TECHNIQUES
from benchmarks.techniques.technique import Technique

NUM_INPUTS = (30, 100, 300, 1000)
FILES = ("a9a", "w8a")

# The l1 norm of the three relevant weights, and a radius that the classifiers do not reach.
TOTAL = 30.0
LARGE_TOTAL = 300.0

# A weight of at most this size is counted as none.
THRESHOLD = 1e-3

SPARSE = "sparse_"


# A bias is neither sparse nor in the ball of the weights.
BIAS_RATE = 0.5


def _eg_plus_minus(total: float, name: str) -> Technique:
    def make(learning_rate: Any, num_steps: int) -> optax.GradientTransformation:
        del num_steps
        links: dict[Any, Any] = {
            "weight": optax_igr.eg_plus_minus(learning_rate, total=total),
            "bias": optax.sgd(BIAS_RATE),
        }
        return optax.partition(links, lambda params: {name: name for name in params})

    return Technique(
        name,
        make,
        tuple(0.0125 * 2.0**k for k in range(12)),
        f"EG± with the total {total:g}",
    )


def _problems(data_dir: Path | None) -> list[Problem]:
    online = [sparse_regression(n) for n in NUM_INPUTS]
    if data_dir is None:
        return online
    return online + [_counting_weights(PROBLEMS[name](data_dir)) for name in FILES]


def _counting_weights(problem: Problem) -> Problem:
    def num_weights(params, train, test):
        del train, test
        return jnp.sum(jnp.abs(params["weight"]) > THRESHOLD)

    return problem.replace(
        measures=on_params(problem.measures),
        final_measures=on_params(problem.final_measures) | on_params({"num_weights": num_weights}),
    )


def best(runs: Sequence[Record]) -> tuple[float, list[Record]]:
    """Returns the rate with the lowest mean loss, on the way or at the end, and its runs."""
    by_rate = {rate: group for (_, _, rate), group in groups(runs).items()}

    def score(rate: float) -> float:
        measure = "incurred" if "incurred" in by_rate[rate][0].final else "train_loss"
        mean = statistics.fmean(r.final[measure] for r in by_rate[rate])
        return mean if math.isfinite(mean) else math.inf

    rate = min(by_rate, key=score)
    return rate, by_rate[rate]


def _by_technique(runs: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    found: dict[tuple[str, str], list[Record]] = {}
    for record in runs:
        found.setdefault((record.problem, record.technique), []).append(record)
    return found


def incurred(runs: Sequence[Record]) -> dict[str, dict[int, list[float]]]:
    """Returns by technique and number of inputs the cumulative losses of its best rate, one a seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for (problem, technique), group in _by_technique(runs).items():
        if problem.startswith(SPARSE):
            losses = [r.final["incurred"] for r in best(group)[1]]
            found.setdefault(technique, {})[int(problem.removeprefix(SPARSE))] = losses
    return found


def headline(runs: list[Record]) -> str:
    """Compares the cumulative losses at the most inputs, and the classifiers."""
    sentences = []
    losses = {
        technique: {n: statistics.fmean(values) for n, values in by_size.items()}
        for technique, by_size in incurred(runs).items()
    }
    if {"sgd", "eg_plus_minus"} <= losses.keys():
        gd, eg = losses["sgd"], losses["eg_plus_minus"]
        few, many = min(gd), max(gd)
        sentences.append(
            f"With 3 relevant inputs of {many}, gradient descent incurs {gd[many]:.0f} and EG± {eg[many]:.0f}, "
            f"{gd[many] / eg[many]:.1f} times less; from {few} to {many} inputs the one grows "
            f"{gd[many] / gd[few]:.1f} times and the other {eg[many] / eg[few]:.1f} times "
            f"(ln N grows {math.log(many) / math.log(few):.1f} times)."
        )
    for name in FILES:
        parts = [
            f"{technique} {100 * _error(best(group)[1]):.2f} % with {_num_weights(best(group)[1]):.0f} weights"
            for (problem, technique), group in _by_technique(runs).items()
            if problem == name
        ]
        if parts:
            sentences.append(f"Test error on {name}: {', '.join(parts)}.")
    return " ".join(sentences)


def _error(group: Sequence[Record]) -> float:
    return 1 - statistics.fmean(r.final["test_accuracy"] for r in group)


def _num_weights(group: Sequence[Record]) -> float:
    return statistics.fmean(r.final["num_weights"] for r in group)


def _growth(runs: list[Record]) -> Any:
    hue, dash = figures.named_style(list(dict.fromkeys(r.technique for r in runs)))
    rows = [
        {"label": technique, "x": n} | figures.spread(values)
        for technique, by_size in incurred(runs).items()
        for n, values in by_size.items()
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "x:Q",
            title="number of inputs N",
            scale=alt.Scale(type="log", nice=False, padding=12),
            axis=alt.Axis(values=list(NUM_INPUTS), format="d"),
        ),
        color=hue,
    )
    y_axis = alt.Axis(values=[20, 50, 100, 200, 500, 1000, 2000], format="d")
    y = alt.Y(
        "mean:Q",
        title="cumulative square loss",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=y_axis,
    )
    line = base.mark_line(strokeWidth=1.8, point=alt.OverlayMarkDef(size=60)).encode(
        y=y, strokeDash=dash, tooltip=["label:N", "x:Q", "mean:Q", "low:Q", "high:Q"]
    )
    area = base.mark_area(opacity=0.12).encode(y=alt.Y("low:Q", axis=y_axis), y2="high:Q")
    return (area + line).properties(width=2 * figures.WIDTH, height=figures.HEIGHT)


def _sparsity(runs: list[Record]) -> Any:
    names = list(dict.fromkeys(r.technique for r in runs))
    panels = []
    for name in dict.fromkeys(r.problem for r in runs if r.problem in FILES):
        rows = [
            {"label": technique, "weights": _num_weights(group), "error": 100 * _error(group)}
            | {"rate": rate, "best": rate == best(_by_technique(runs)[problem, technique])[0]}
            for (problem, technique, rate), group in groups(runs).items()
            if problem == name and not any(r.diverged for r in group)
        ]
        low = min(row["error"] for row in rows)
        chart = (
            alt.Chart(
                alt.Data(values=[row for row in rows if row["error"] < 1.6 * low]), title=name
            )
            .mark_point(filled=True, strokeWidth=1)
            .encode(
                x=alt.X(
                    "weights:Q",
                    title=f"weights above {THRESHOLD:g}",
                    scale=alt.Scale(zero=False, padding=12),
                ),
                y=alt.Y("error:Q", title="test error %", scale=alt.Scale(zero=False, padding=12)),
                color=alt.Color(
                    "label:N",
                    sort=names,
                    scale=alt.Scale(domain=names, range=list(figures.COLOURS[: len(names)])),
                    legend=alt.Legend(title="technique", symbolType="circle", symbolOpacity=1),
                ),
                size=alt.condition("datum.best", alt.value(220), alt.value(45)),
                shape=alt.condition("datum.best", alt.value("diamond"), alt.value("circle")),
                tooltip=["label:N", "rate:Q", "weights:Q", "error:Q"],
            )
            .properties(width=figures.WIDTH, height=figures.HEIGHT)
        )
        panels.append(chart)
    return alt.hconcat(*panels)


def _figures(runs: list[Record]) -> list[Figure]:
    drawn = []
    if incurred(runs):
        drawn.append(
            Figure(
                "growth",
                "Cumulative loss against the number of inputs, 3 of them relevant",
                "At each technique's best fixed rate; the band spans the seeds, which are orders of the examples.",
                _growth(runs),
            )
        )
    if any(r.problem in FILES for r in runs):
        drawn.append(
            Figure(
                "sparsity",
                "Test error against the number of weights that matter",
                "A dot is a learning rate, the diamond the one with the lowest training loss; rates with more than 1.6 "
                "times the lowest error are left out.",
                _sparsity(runs),
            )
        )
    return drawn


def _loss_cell(group: list[Record], runs: list[Record]) -> str:
    del runs
    _, chosen = best(group)
    if "incurred" in chosen[0].final:
        return f"{statistics.fmean(r.final['incurred'] for r in chosen):.0f}"
    return f"{statistics.fmean(r.final['train_loss'] for r in chosen):.4f}"


def _error_cell(group: list[Record], runs: list[Record]) -> str:
    del runs
    _, chosen = best(group)
    return f"{100 * _error(chosen):.2f}" if "test_accuracy" in chosen[0].final else ""


def _weights_cell(group: list[Record], runs: list[Record]) -> str:
    del runs
    _, chosen = best(group)
    return f"{_num_weights(chosen):.0f}" if "num_weights" in chosen[0].final else ""


EXPERIMENT = Experiment(
    name="geometry",
    question="When few inputs matter, what does the geometry of the step change?",
    about="EG± searches the l1 ball multiplicatively: its loss bound has the logarithm of the number of inputs where "
    "that of gradient descent has the number. Each technique at its best fixed rate: by the loss incurred on the way "
    "where every example is seen once, else by the training loss at the end. The LIBSVM files need --data-dir.",
    problems=_problems,
    entries=[
        Entry(counted(TECHNIQUES["sgd"]), tuple(0.0125 * 2.0**k for k in range(12))),
        Entry(counted(TECHNIQUES["adam"]), tuple(1e-3 * 3.0**k for k in range(8))),
        Entry(counted(_eg_plus_minus(TOTAL, "eg_plus_minus"))),
        Entry(counted(_eg_plus_minus(LARGE_TOTAL, "eg_plus_minus_300"))),
    ],
    columns=[
        Column("best rate", "of the grid", lambda group, runs: f"{best(group)[0]:.3g}"),
        Column(
            "loss", "cumulative over the examples, or of the training set at the end", _loss_cell
        ),
        Column("test error %", "at the end, mean over the seeds", _error_cell),
        Column(
            f"weights > {THRESHOLD:g}",
            "in absolute value, at the end, mean over the seeds",
            _weights_cell,
        ),
    ],
    headline=headline,
    figures=_figures,
    row_per_rate=False,
    needs=("incurred",),
)
