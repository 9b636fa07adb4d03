"""Few relevant inputs among many: EG± beside gradient descent and Adam, online and on LIBSVM files."""

import math
from pathlib import Path
from typing import Any

import altair as alt
import jax.numpy as jnp
import pandas as pd

from benchmarks.engine.table import RUN, Series, Table, at_lowest, groups, is_measured
from benchmarks.experiments.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import PROBLEMS
from benchmarks.problems.counted import with_counts
from benchmarks.problems.online import sparse_regression
from benchmarks.problems.problem import Problem
from benchmarks.report import charts, figures
from benchmarks.techniques import TECHNIQUES
from benchmarks.techniques.counting import INCURRED, counting_losses

NUM_INPUTS = (30, 100, 300, 1000)
FILES = ("a9a", "w8a")

# A weight of at most this size is counted as none.
THRESHOLD = 1e-3

SPARSE = "sparse_"


def _problems(data_dir: Path | None) -> list[Problem]:
    online = [sparse_regression(n) for n in NUM_INPUTS]
    if data_dir is None:
        return online
    return online + [_counting_weights(PROBLEMS[name](data_dir)) for name in FILES]


def _counting_weights(problem: Problem) -> Problem:
    def num_weights(params, train, test):
        del train, test
        return jnp.sum(jnp.abs(params["weight"]) > THRESHOLD)

    return problem.replace(final_measures={**problem.final_measures, "num_weights": num_weights})


def _scored(problem: Problem) -> Problem:
    """Scores the loss on the way where every example is seen once; elsewhere the loss at the end is the score."""
    # More examples than there are means that some come twice: then it is no game.
    seen = problem.num_steps * (problem.batch_size or problem.num_examples or 1)
    return with_counts(problem, INCURRED if seen <= (problem.num_examples or 0) else ())


def _scores(runs: Table) -> Series:
    """Returns the score of every run: the loss incurred on the way, else the training loss at the end."""
    if "incurred" not in runs:
        return runs["train_loss"]
    return runs["incurred"].fillna(runs["train_loss"])


def at_best_rates(runs: Table) -> Table:
    """Keeps the runs of each technique and problem at the rate with the lowest mean score."""
    # The mean of a rate with a diverged seed is not finite: it is the last to be chosen.
    return at_lowest(
        runs, runs.assign(score=_scores(runs)).groupby(RUN, sort=False)["score"].mean()
    )


def incurred(runs: Table) -> Table:
    """Returns the runs of the online problems at the best rates, with the number of inputs as a column."""
    online = runs[runs["problem"].str.startswith(SPARSE)]
    if online.empty:
        return online.assign(inputs=0)
    best = at_best_rates(online)
    return best.assign(inputs=best["problem"].str.removeprefix(SPARSE).astype(int))


def headline(runs: Table) -> str:
    """Compares the cumulative losses at the most inputs, and the classifiers."""
    sentences = []
    online = incurred(runs)
    if {"sgd", "eg_plus_minus"} <= set(online["technique"]):
        losses = online.groupby(["technique", "inputs"])["incurred"].mean()
        gd, eg = losses["sgd"], losses["eg_plus_minus"]
        few, many = gd.index.min(), gd.index.max()
        sentences.append(
            f"With 3 relevant inputs of {many}, gradient descent incurs {gd[many]:.0f} and EG± {eg[many]:.0f}, "
            f"{gd[many] / eg[many]:.1f} times less; from {few} to {many} inputs the one grows "
            f"{gd[many] / gd[few]:.1f} times and the other {eg[many] / eg[few]:.1f} times "
            f"(ln N grows {math.log(many) / math.log(few):.1f} times)."
        )
    for name in FILES:
        own = runs[runs["problem"] == name]
        parts = [
            f"{technique} {_error(group):.2f} % with {group['num_weights'].mean():.0f} weights"
            for (technique,), group in groups(at_best_rates(own), ["technique"]).items()
        ]
        if parts:
            sentences.append(f"Test error on {name}: {', '.join(parts)}.")
    return " ".join(sentences)


def _error(group: Table) -> float:
    return 100 * (1 - group["test_accuracy"].mean())


def _growth(runs: Table) -> Any:
    hue, dash = figures.style_of(list(runs["technique"].unique()))
    rows = charts.spread(incurred(runs), ["technique", "inputs"], "incurred")
    rows = rows.rename(columns={"technique": "label", "inputs": "x"})
    base = alt.Chart(figures.data(rows)).encode(
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


def _sparsity_rows(runs: Table) -> Table:
    grouped = runs.groupby([*RUN, "setting"], sort=False)
    rows = grouped.agg(
        weights=("num_weights", "mean"),
        error=("test_accuracy", lambda accuracy: 100 * (1 - accuracy.mean())),
        diverged=("diverged", "any"),
    ).reset_index()
    best = pd.MultiIndex.from_frame(at_best_rates(runs)[RUN])
    rows["best"] = pd.MultiIndex.from_frame(rows[RUN]).isin(best)
    rows = rows[~rows["diverged"]]
    # A rate that is far too small or too large would squeeze the others into a corner.
    rows = rows[rows["error"] < 1.6 * rows["error"].min()]
    rows = rows.rename(columns={"technique": "label", "setting": "rate"})
    return rows[["label", "weights", "error", "rate", "best"]]


def _sparsity(runs: Table) -> Any:
    names = list(runs["technique"].unique())
    panels = []
    for (name,), own in groups(runs[runs["problem"].isin(FILES)], ["problem"]).items():
        chart = (
            alt.Chart(figures.data(_sparsity_rows(own)), title=name)
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
                    scale=alt.Scale(domain=names, range=list(figures.COLORS[: len(names)])),
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


def _figures(runs: Table) -> list[Figure]:
    drawn = []
    if not incurred(runs).empty:
        drawn.append(
            Figure(
                "growth",
                "Cumulative loss against the number of inputs, 3 of them relevant",
                "At each technique's best fixed rate; the band spans the seeds, which are orders of the examples.",
                _growth(runs),
            )
        )
    if runs["problem"].isin(FILES).any():
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


def _loss_cell(group: Table, runs: Table) -> str:
    del runs
    best = at_best_rates(group)
    on_the_way = is_measured(best, "incurred")
    return f"{best['incurred'].mean():.0f}" if on_the_way else f"{best['train_loss'].mean():.4f}"


def _at_best(name: str, spec: str, cell: Any) -> Any:
    """Makes a cell of the best rate's runs; empty where they have not been measured."""

    def made(group: Table, runs: Table) -> str:
        del runs
        best = at_best_rates(group)
        return format(cell(best), spec) if is_measured(best, name) else ""

    return made


EXPERIMENT = Experiment(
    name="geometry",
    question="When few inputs matter, what does the geometry of the step change?",
    about="EG± searches the l1 ball multiplicatively: its loss bound has the logarithm of the number of inputs where "
    "that of gradient descent has the number. Each technique at its best fixed rate: by the loss incurred on the way "
    "where every example is seen once, else by the training loss at the end. The LIBSVM files need --data-dir.",
    problems=_problems,
    entries=[
        Entry(TECHNIQUES["sgd"], tuple(0.0125 * 2.0**k for k in range(12))),
        Entry(TECHNIQUES["adam"], tuple(1e-3 * 3.0**k for k in range(8))),
        Entry(TECHNIQUES["eg_plus_minus"]),
        Entry(TECHNIQUES["eg_plus_minus_300"]),
    ],
    columns=[
        Column(
            "best rate",
            "of the grid",
            _at_best("setting", ".3g", lambda best: best["setting"].iloc[0]),
        ),
        Column(
            "loss", "cumulative over the examples, or of the training set at the end", _loss_cell
        ),
        Column(
            "test error %",
            "at the end, mean over the seeds",
            _at_best("test_accuracy", ".2f", _error),
        ),
        Column(
            f"weights > {THRESHOLD:g}",
            "in absolute value, at the end, mean over the seeds",
            _at_best("num_weights", ".0f", lambda best: best["num_weights"].mean()),
        ),
    ],
    headline=headline,
    figures=_figures,
    row_per_setting=False,
    needs=("train_loss",),
    adapt_technique=lambda technique, problem: counting_losses(technique),
    adapt_problem=_scored,
)
