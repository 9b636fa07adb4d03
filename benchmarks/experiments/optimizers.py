"""Every optimizer on several problems over its whole grid: who is fast, and who is easy to tune.

Statistics in the manner of AlgoPerf: steps to a target, at the rate with the best median; a miss is infinite.
"""

import math
from typing import Any

import altair as alt
import numpy as np

from benchmarks.engine.table import RUN, TECHNIQUE, Series, Table, at_lowest
from benchmarks.experiments.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import PROBLEMS
from benchmarks.report import figures
from benchmarks.report.run_statistics import (
    learning_rate_width,
    median_and_quartiles,
    performance_profile,
    profile_score,
    with_steps_to_target,
)
from benchmarks.techniques import TECHNIQUES, peers

# Those that need no file, and those that are added with `--data-dir`; `--problems` names others.
DEFAULT_PROBLEMS = ("quadratic", "rosenbrock", "digits")
DATA_PROBLEMS = ("a9a", "mushrooms")

# The same digits, shorter: the grid has eight times the runs of the main comparison.
DIGITS_EPOCHS = 20


def _problems(data_dir):
    names = DEFAULT_PROBLEMS if data_dir is None else (*DEFAULT_PROBLEMS, *DATA_PROBLEMS)
    options = {"digits": {"epochs": DIGITS_EPOCHS}}
    return [PROBLEMS[name](data_dir, **options.get(name, {})) for name in names]


def _median(values) -> float:
    return median_and_quartiles(values).estimate


def medians(runs: Table) -> Series:
    """Returns the median of the steps to the target, by the columns of `RUN`."""
    return runs.groupby(RUN, sort=False)["steps_to_target"].agg(_median)


def at_best_rates(runs: Table) -> Table:
    """Keeps the runs at the rate with the lowest median of steps to the target, and returns these steps too.

    Where no rate reaches the target, the rate with the lowest mean training loss.
    """
    runs = with_steps_to_target(runs)
    return at_lowest(runs, medians(runs), runs.groupby(RUN, sort=False)["train_loss"].mean())


def profile(runs: Table) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns the techniques, the ratios and the shares of problems solved within each ratio."""
    best = medians(at_best_rates(runs)).droplevel("settings").unstack("problem")
    # A technique that cannot run on a problem misses its target.
    costs = best.reindex(index=runs["technique"].unique()).fillna(math.inf)
    return list(costs.index), *performance_profile(costs.to_numpy())


def widths(runs: Table) -> Series:
    """Returns by problem and technique the decades of rates that come within a tenth of the fewest steps."""
    runs = with_steps_to_target(runs)
    by_rate = runs.groupby([*RUN, "setting"], sort=False)["steps_to_target"].agg(_median)

    def width(steps):
        rates = steps.index.get_level_values("setting")
        return learning_rate_width(rates, steps) if len(rates) > 1 else 0.0

    return by_rate.groupby(level=TECHNIQUE, sort=False).agg(width)


def headline(runs: Table) -> str:
    """Names the technique with the highest profile score and the widest range of rates."""
    techniques, ratios, shares = profile(runs)
    scores = profile_score(ratios, shares)
    first = int(np.argmax(scores))
    mean_widths = widths(runs).groupby(level="technique", sort=False).mean()
    widest = mean_widths.idxmax()
    return (
        f"{techniques[first]} has the highest profile score, {scores[first]:.2f} of 1, over "
        f"{runs['problem'].nunique()} problems; {widest} stays within 10 % of its own fewest steps over "
        f"the widest range of rates, {mean_widths[widest]:.2f} decades on average."
    )


def _at_best(cell: Any) -> Any:
    return lambda group, runs: cell(at_best_rates(group))


def _steps_cell(best):
    median, low, high = median_and_quartiles(best["steps_to_target"])
    if math.isinf(median):
        missed = int(np.isinf(best["steps_to_target"]).sum())
        return f"missed by {missed} of {len(best)}"
    return f"{median:.0f} [{low:.0f}, {high:.0f}]"


def _seconds_cell(best):
    return f"{_median(best['steps_to_target'] * best['seconds_per_step']):.2g}"


def _mean_loss_cell(best):
    diverged = int(best["diverged"].sum())
    return f"{diverged} of {len(best)} diverged" if diverged else f"{best['train_loss'].mean():.2e}"


def _score_cell(group, runs):
    techniques, ratios, shares = profile(runs)
    return f"{profile_score(ratios, shares)[techniques.index(group['technique'].iloc[0])]:.2f}"


def _sensitivity(runs, hue, dash, chosen):
    steps = with_steps_to_target(runs)
    by_rate = steps.groupby([*RUN, "setting"], sort=False)["steps_to_target"].agg(_median)
    rows = by_rate.reset_index().rename(
        columns={"technique": "label", "setting": "rate", "steps_to_target": "steps"}
    )
    # A line connects its points in the order of the rows.
    rows = rows.sort_values("rate", kind="stable")
    panels = []
    for problem in runs["problem"].unique():
        own = rows[(rows["problem"] == problem) & np.isfinite(rows["steps"])]
        panels.append(
            alt.Chart(figures.data(own[["label", "problem", "rate", "steps"]]), title=problem)
            .mark_line(point=True, strokeWidth=1.8)
            .encode(
                x=alt.X("rate:Q", title="learning rate", scale=alt.Scale(type="log")),
                y=alt.Y(
                    "steps:Q",
                    title="median steps to target",
                    scale=alt.Scale(type="log", nice=False, padding=8),
                ),
                color=hue,
                strokeDash=dash,
                opacity=figures.dimmed(chosen, 1.0, 0.08),
                tooltip=["label:N", "rate:Q", "steps:Q"],
            )
            .properties(width=figures.WIDTH, height=figures.HEIGHT)
        )
    return alt.concat(panels[0].add_params(chosen), *panels[1:], columns=3)


def _profiles(runs, hue, dash, chosen):
    names, ratios, shares = profile(runs)
    rows = [
        {"label": name, "x": float(ratio), "share": float(share)}
        for name, row in zip(names, shares, strict=True)
        # A fifth of the points draws the same steps.
        for ratio, share in zip(ratios[::5], row[::5], strict=True)
    ]
    return (
        alt.Chart(figures.data(rows))
        .mark_line(strokeWidth=1.8, interpolate="step-after")
        .encode(
            x=alt.X("x:Q", title="steps / fewest steps", scale=alt.Scale(domain=[1, 4])),
            y=alt.Y("share:Q", title="share of problems", scale=alt.Scale(domain=[0, 1])),
            color=hue,
            strokeDash=dash,
            opacity=figures.dimmed(chosen, 1.0, 0.08),
            tooltip=["label:N", "x:Q", "share:Q"],
        )
        .properties(width=2 * figures.WIDTH, height=figures.HEIGHT)
        .add_params(chosen)
    )


def _figures(runs):
    hue, dash = figures.style_of(list(runs["technique"].unique()))
    chosen = figures.selection()
    return [
        Figure(
            "sensitivity",
            "Steps to the target against the learning rate",
            "Each at the rates of its own grid; a rate whose median run misses the target has no point.",
            _sensitivity(runs, hue, dash, chosen),
        ),
        Figure(
            "profile",
            "Performance profiles",
            "The share of problems that a technique, at its best rate, solves within a multiple of the fewest steps.",
            _profiles(runs, hue, dash, chosen),
        ),
    ]


EXPERIMENT = Experiment(
    name="optimizers",
    question="Which optimizer is fast, and which is easy to tune?",
    about="Steps to a fixed target, at each optimizer's best rate on its own grid; a run that misses it counts as "
    "infinite. Steps are compared, not seconds: the cost of a step is a table of its own, `steps`. "
    "A curve has 25 points, and steps between two of them are interpolated. Optimistix's minimiser runs where all "
    "steps see the same batch, and counts as a miss elsewhere.",
    problems=_problems,
    entries=[
        *(
            Entry(TECHNIQUES[name])
            for name in ("sgd", "sgd_penalty", "adam", "adam_penalty", "sam")
        ),
        *(Entry(peer) for peer in peers.TECHNIQUES if peer.name != "adamw_decayed"),
    ],
    columns=[
        Column(
            "best rate",
            "the rate of the grid with the lowest median of steps to the target",
            _at_best(lambda best: f"{best['setting'].iloc[0]:.3g}"),
        ),
        Column(
            "steps to target",
            "median over the seeds and interquartile range at the best rate; a run that misses counts as inf",
            _at_best(_steps_cell),
        ),
        Column(
            "s to target",
            "the same times the measured seconds of a step of one run",
            _at_best(_seconds_cell),
        ),
        Column(
            "width in decades",
            "of the rates whose median steps to the target are within 10 % of the best",
            lambda group, runs: f"{widths(group).iloc[0]:.2f}",
        ),
        Column(
            "profile score",
            "the area under the performance profile up to 4 times the fewest steps, over all problems",
            _score_cell,
        ),
        Column(
            "final train loss", "mean over the seeds at the best rate", _at_best(_mean_loss_cell)
        ),
    ],
    headline=headline,
    figures=_figures,
    row_per_setting=False,
    curve_measures=("train_loss", "test_loss", "test_accuracy"),
    needs=("train_loss",),
)
