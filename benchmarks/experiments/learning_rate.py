"""How much the initial learning rate matters, over eight decades, and to whom.

Every technique starts at each rate and is compared with Adam under a cosine decay at the best rate of a grid: a rate
counts where the training loss ends within a tenth of that one's. A method without a rate has its default alone.
"""

import math

import altair as alt
import numpy as np
import pandas as pd

from benchmarks.engine.table import RUN, TECHNIQUE, Series, Table, at_lowest, curves, is_measured
from benchmarks.experiments.experiment import Column, Experiment, Figure
from benchmarks.experiments.learning_rate_entries import (
    ENTRIES,
    HEAVY_BALL,
    HEAVY_BALL_REFERENCE,
    RATES,
    REFERENCE,
    SHIFTED,
    problems,
)
from benchmarks.report import charts, figures

TOLERANCE = 1.1
ACCURACY_MARGIN = 0.01
# Of the figure: all problems start at less.
LOSS_CEILING = 10.0


def by_rate(runs: Table) -> Table:
    """Returns by rate the mean loss and the mean accuracy at the end, with the lowest and the highest loss.

    The loss is infinite where a seed diverged; the accuracy is NaN where none was measured.
    """
    if "test_accuracy" not in runs:
        runs = runs.assign(test_accuracy=math.nan)
    means = runs.groupby([*RUN, "setting"], sort=False).agg(
        # A mean over the seeds that arrived would reward a technique for those that did not.
        loss=("train_loss", lambda losses: losses.mean(skipna=False)),
        low=("train_loss", "min"),
        high=("train_loss", "max"),
        accuracy=("test_accuracy", lambda accuracies: accuracies.mean(skipna=False)),
    )
    means["loss"] = means["loss"].where(np.isfinite(means["loss"]), math.inf)
    return means


def references(means: Table) -> Table:
    """Returns by problem the loss and the accuracy of the reference at its best rate; NaN where it did not run."""
    own = means[means.index.get_level_values("technique") == REFERENCE]
    best = own.sort_values("loss", kind="stable").groupby(level="problem", sort=False).head(1)
    best = best[np.isfinite(best["loss"])].droplevel(["technique", "settings", "setting"])
    return best[["loss", "accuracy"]].reindex(means.index.unique("problem"))


def rates_reached(runs: Table) -> Table:
    """Counts, by problem and technique, the rates within a tenth of the loss, and a point of the accuracy."""
    means = by_rate(runs)
    # Every rate beside the reference of its own problem.
    compared = means.join(references(means).add_prefix("best_"), on="problem")
    reached = pd.DataFrame(
        {
            "total": True,
            "loss": compared["loss"] <= TOLERANCE * compared["best_loss"],
            "accuracy": compared["accuracy"] >= compared["best_accuracy"] - ACCURACY_MARGIN,
        },
        index=compared.index,
    )
    return reached.groupby(level=TECHNIQUE, sort=False).sum()


def headline(runs: Table) -> str:
    """Says for each problem which techniques reach the reference from how many rates."""
    found = references(by_rate(runs))
    reached = rates_reached(runs).drop(REFERENCE, level="technique", errors="ignore")
    reached = reached.sort_values(["loss", "accuracy"], ascending=False, kind="stable")
    sentences = []
    for problem, loss in found["loss"].items():
        if problem == SHIFTED or math.isnan(loss):
            continue
        has_accuracy = is_measured(runs[runs["problem"] == problem], "test_accuracy")
        own = reached[
            (reached.index.get_level_values("problem") == problem) & (reached["loss"] > 0)
        ]
        listed = ", ".join(
            f"{technique} {n.loss}{f'/{n.accuracy}' if has_accuracy else ''}"
            for (_, technique), n in own.iterrows()
        )
        sentences.append(f"On {problem} (searched: {loss:.3g}): {listed or 'none'}.")
    if sentences:
        sentences.insert(
            0,
            f"Initial rates of {len(RATES)} that end within a tenth of the loss of the searched {REFERENCE} / within "
            "a point of its accuracy, where there is one.",
        )
    return " ".join([*sentences, *_heavy_ball(runs), *_after_the_shift(runs)])


def _heavy_ball(runs):
    """Compares heavy ball with its own search, since Adam is another method."""
    own = runs[runs["technique"].isin([HEAVY_BALL, HEAVY_BALL_REFERENCE])]
    losses = by_rate(own)["loss"].groupby(level=TECHNIQUE, sort=False).agg(["min", "max"])
    compared = [
        f"{problem} {losses['max'][problem, HEAVY_BALL]:.2g} ({losses['min'][problem, HEAVY_BALL_REFERENCE]:.2g})"
        for problem in losses.index.unique("problem")
        if {(problem, HEAVY_BALL), (problem, HEAVY_BALL_REFERENCE)} <= set(losses.index)
    ]
    if not compared:
        return []
    return [
        f"Heavy ball under adapt_scale at the worst initial rate, and in brackets searched: {', '.join(compared)}."
    ]


def losses_after_shift(runs: Table) -> Series:
    """Returns by rate the mean over the seeds and over the curve after the shift; infinite where a seed diverged."""
    points = curves(runs, ["step", "train_loss"])
    halves = runs.groupby(RUN, sort=False)["num_steps"].first() // 2
    after = points[points["step"] > points.join(halves, on=RUN)["num_steps"]]
    means = after.groupby(RUN, sort=False)["train_loss"].agg(lambda x: x.mean(skipna=False))
    return means.where(np.isfinite(means), math.inf)


def best_after_shift(runs: Table) -> Table:
    """Keeps the runs of the shifted problem at each technique's rate with the lowest mean loss after the shift."""
    shifted = runs[runs["problem"] == SHIFTED]
    if shifted.empty:
        return shifted
    losses = losses_after_shift(shifted)
    return at_lowest(shifted, losses[np.isfinite(losses)])


def _after_the_shift(runs):
    best = best_after_shift(runs)
    if best.empty:
        return []
    losses = losses_after_shift(best).droplevel(["problem", "settings"])
    listed = ", ".join(f"{name} {x:.2g}" for name, x in losses.sort_values(kind="stable").items())
    return [
        f"Mean loss after the labels have changed, each technique at its best rate for that: {listed}."
    ]


def _rates(runs):
    rows = by_rate(runs[runs["problem"] != SHIFTED]).reset_index()
    rows = rows[(rows["loss"] > 0) & (rows["loss"] < LOSS_CEILING)]
    rows = rows.rename(columns={"technique": "label", "setting": "x", "loss": "mean"})
    hue, dash = figures.style_of(list(rows["label"].unique()))
    axis = alt.Axis(format=".0e", values=list(RATES[::2]))
    x = alt.X("x:Q", title="initial learning rate", scale=alt.Scale(type="log"), axis=axis)
    base = alt.Chart().encode(
        x=x,
        y=alt.Y("mean:Q", title="training loss at the end", scale=alt.Scale(type="log")),
        color=hue,
    )
    layers = base.mark_line().encode(strokeDash=dash) + base.mark_point(filled=True, size=40)
    # Vega would sort the panels by name.
    order = list(rows["problem"].unique())
    chart = (
        alt.layer(
            *layers.layer,
            data=figures.data(rows[["problem", "label", "x", "mean", "low", "high"]]),
        )
        .properties(width=figures.WIDTH, height=figures.HEIGHT)
        .facet(alt.Facet("problem:N", title=None, sort=order), columns=2)
        .resolve_scale(y="independent")
    )
    return Figure(
        "rates",
        "The final loss against the initial rate",
        "Mean over the seeds. A flat line at the height of the reference's lowest point is what one wishes for; a "
        f"missing point has diverged, or ends above {LOSS_CEILING:g}.",
        chart,
    )


def _figures(runs):
    shown = [_rates(runs)]
    after = best_after_shift(runs)
    if not after.empty:
        shown.append(
            Figure(
                "shift",
                "All labels change in the middle of the run",
                "The loss on the new labels, each technique at the rate with the lowest mean of it after the change. "
                "Mean over the seeds, band from the lowest to the highest.",
                charts.curves(after, [("train_loss", "training loss on the new labels", "log")]),
            )
        )
    return shown


def _rates_reached(name):
    def cell(group, runs):
        problem, technique = group["problem"].iloc[0], group["technique"].iloc[0]
        # Of all runs a cell needs these; to group all for every cell would take longer than the rest of the page.
        own = runs[runs["problem"] == problem]
        reached = rates_reached(own[own["technique"].isin([technique, REFERENCE])])
        found = reached.loc[(problem, technique)]
        return f"{found[name]} of {found['total']}"

    return cell


def _best(group, runs):
    del runs
    means = by_rate(group).sort_values("loss", kind="stable").reset_index()
    best = means.iloc[0]
    accuracy = "" if math.isnan(best["accuracy"]) else f", {best['accuracy']:.4f}"
    return f"{best['loss']:.2e}{accuracy} at {best['setting']:.2g}"


def _losses(group, runs):
    del runs
    means = by_rate(group).sort_values("setting", kind="stable")
    return " ".join(f"{loss:.1e}" for loss in means["loss"])


EXPERIMENT = Experiment(
    name="learning-rate",
    question="How much does the initial learning rate matter?",
    about="Every technique starts at nine rates from 1e-6 to 1e2. The reference is Adam under a cosine decay at the "
    "best of its own grid. Where the first steps are measured the initial rate cancels for an inner optimizer that is "
    "proportional to it: what remains is how good the method is, and that depends on the batch and on the length of "
    "the run, which some problems vary. Digits is small enough for networks to fit it, and a tenth of a loss of 1e-3 "
    "is little.",
    problems=problems,
    entries=ENTRIES,
    columns=[
        Column("rates reached", "within 10 % of the reference's loss", _rates_reached("loss")),
        Column("accurate", "within a point of its test accuracy", _rates_reached("accuracy")),
        Column("best", "loss, test accuracy and rate, mean over the seeds", _best),
        Column("losses", "at the end, at the rates in their order", _losses),
    ],
    headline=headline,
    figures=_figures,
    row_per_setting=False,
    curve_measures=("train_loss",),
    needs=("train_loss",),
)
