"""How much the initial learning rate matters, over eight decades, and to whom.

Every technique starts at each rate and is compared with Adam under a cosine decay at the best rate of a grid: a rate
counts where the training loss ends within a tenth of that one's. A method without a rate has its default alone.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import altair as alt

from benchmarks.engine.records import Record, groups
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
from benchmarks.report import figures

TOLERANCE = 1.1
ACCURACY_MARGIN = 0.01
# Of the figure: all problems start at less.
LOSS_CEILING = 10.0


def mean_loss(group: Sequence[Record]) -> float:
    """Returns the mean training loss at the end, infinite where a seed diverged."""
    losses = [r.final["train_loss"] for r in group]
    return statistics.fmean(losses) if all(map(math.isfinite, losses)) else math.inf


def best_losses(runs: Sequence[Record]) -> dict[str, float]:
    """Returns, by problem, the loss of the reference at its best rate; nan where it did not run."""
    best = {r.problem: math.inf for r in runs}
    for (problem, technique, _), group in groups(runs).items():
        if technique == REFERENCE:
            best[problem] = min(best[problem], mean_loss(group))
    return {problem: loss if math.isfinite(loss) else math.nan for problem, loss in best.items()}


def best_accuracies(runs: Sequence[Record]) -> dict[str, float]:
    """Returns, by problem, the test accuracy of the reference at the rate of its lowest training loss."""
    losses = best_losses(runs)
    return {
        problem: mean_accuracy(group)
        for (problem, technique, _), group in groups(runs).items()
        if technique == REFERENCE and mean_loss(group) == losses[problem]
    }


def mean_accuracy(group: Sequence[Record]) -> float:
    """Returns the mean test accuracy at the end; nan where none was measured."""
    return statistics.fmean(r.final.get("test_accuracy", math.nan) for r in group)


class Reached(NamedTuple):
    """How many rates there are, and from how many of them the reference was met in loss and in accuracy."""

    total: int
    loss: int
    accuracy: int


def rates_reached(runs: Sequence[Record]) -> dict[tuple[str, str], Reached]:
    """Counts, by problem and technique, the rates within a tenth of the loss, and a point of the accuracy."""
    losses, accuracies = best_losses(runs), best_accuracies(runs)
    reached: dict[tuple[str, str], Reached] = {}
    for (problem, technique, _), group in groups(runs).items():
        before = reached.get((problem, technique), Reached(0, 0, 0))
        reached[problem, technique] = Reached(
            before.total + 1,
            before.loss + (mean_loss(group) <= TOLERANCE * losses[problem]),
            before.accuracy
            + (mean_accuracy(group) >= accuracies.get(problem, math.nan) - ACCURACY_MARGIN),
        )
    return reached


def headline(runs: Sequence[Record]) -> str:
    """Says for each problem which techniques reach the reference from how many rates."""
    reached = rates_reached(runs)
    sentences = []
    for problem, loss in best_losses(runs).items():
        if problem == SHIFTED or math.isnan(loss):
            continue
        has_accuracy = any(r.problem == problem and "test_accuracy" in r.final for r in runs)
        found = {t: n for (p, t), n in reached.items() if p == problem and t != REFERENCE}
        listed = ", ".join(
            f"{technique} {n.loss}{f'/{n.accuracy}' if has_accuracy else ''}"
            for technique, n in sorted(found.items(), key=lambda x: (-x[1].loss, -x[1].accuracy))
            if n.loss
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
    losses: dict[str, dict[str, list[float]]] = {}
    for (problem, technique, _), group in groups(runs).items():
        if technique in (HEAVY_BALL, HEAVY_BALL_REFERENCE):
            found = losses.setdefault(problem, {}).setdefault(technique, [])
            found.append(mean_loss(group))
    compared = [
        f"{problem} {max(found[HEAVY_BALL]):.2g} ({min(found[HEAVY_BALL_REFERENCE]):.2g})"
        for problem, found in losses.items()
        if len(found) == 2
    ]
    if not compared:
        return []
    return [
        f"Heavy ball under adapt_scale at the worst initial rate, and in brackets searched: {', '.join(compared)}."
    ]


def best_after_shift(runs: Sequence[Record]) -> dict[str, list[Record]]:
    """Returns, by technique, the runs of the shifted problem at the rate with the lowest mean loss after the shift."""
    best: dict[str, list[Record]] = {}
    for (problem, technique, _), group in groups(runs).items():
        if problem == SHIFTED and loss_after_shift(group) < (
            loss_after_shift(best[technique]) if technique in best else math.inf
        ):
            best[technique] = group
    return best


def loss_after_shift(group: Sequence[Record]) -> float:
    """Returns the mean over the seeds and over the curve after the shift; infinite where a seed diverged."""
    losses = [
        x
        for r in group
        for step, x in zip(r.curve["step"], r.curve["train_loss"], strict=True)
        if step > r.num_steps // 2
    ]
    return statistics.fmean(losses) if all(map(math.isfinite, losses)) else math.inf


def _after_the_shift(runs):
    best = sorted(best_after_shift(runs).items(), key=lambda x: loss_after_shift(x[1]))
    if not best:
        return []
    listed = ", ".join(f"{technique} {loss_after_shift(group):.2g}" for technique, group in best)
    return [
        f"Mean loss after the labels have changed, each technique at its best rate for that: {listed}."
    ]


def _rates(runs):
    rows = [
        {
            "problem": problem,
            "label": technique,
            "x": rate,
            "mean": mean_loss(group),
            "low": min(r.final["train_loss"] for r in group),
            "high": max(r.final["train_loss"] for r in group),
        }
        for (problem, technique, rate), group in groups(runs).items()
        if problem != SHIFTED and 0 < mean_loss(group) < LOSS_CEILING
    ]
    names = list(dict.fromkeys(row["label"] for row in rows))
    order = list(dict.fromkeys(row["problem"] for row in rows))
    colour, dash = figures.named_style(names)
    axis = alt.Axis(format=".0e", values=list(RATES[::2]))
    x = alt.X("x:Q", title="initial learning rate", scale=alt.Scale(type="log"), axis=axis)
    base = alt.Chart().encode(
        x=x,
        y=alt.Y("mean:Q", title="training loss at the end", scale=alt.Scale(type="log")),
        color=colour,
    )
    layers = base.mark_line().encode(strokeDash=dash) + base.mark_point(filled=True, size=40)
    chart = (
        alt.layer(*layers.layer, data=alt.Data(values=rows))
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
    best = best_after_shift(runs)
    if best:
        after = [r for group in best.values() for r in group]
        shown.append(
            Figure(
                "shift",
                "All labels change in the middle of the run",
                "The loss on the new labels, each technique at the rate with the lowest mean of it after the change. "
                "Mean over the seeds, band from the lowest to the highest.",
                figures.curves(after, [("train_loss", "training loss on the new labels", "log")]),
            )
        )
    return shown


def _rates_reached(name):
    def cell(group, runs):
        problem, technique = group[0].problem, group[0].technique
        # Of all runs a cell needs these; to group all for every cell would take longer than the rest of the report.
        needed = [r for r in runs if r.problem == problem and r.technique in (technique, REFERENCE)]
        reached = rates_reached(needed)[problem, technique]
        return f"{getattr(reached, name)} of {reached.total}"

    return cell


def _by_rate(group):
    return {rate: found for (_, _, rate), found in groups(group).items()}


def _best(group, runs):
    del runs
    rate, found = min(_by_rate(group).items(), key=lambda x: mean_loss(x[1]))
    accuracy = mean_accuracy(found)
    shown = "" if math.isnan(accuracy) else f", {accuracy:.4f}"
    return f"{mean_loss(found):.2e}{shown} at {rate:.2g}"


def _losses(group, runs):
    del runs
    return " ".join(f"{mean_loss(found):.1e}" for _, found in sorted(_by_rate(group).items()))


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
    row_per_rate=False,
    curve_measures=("train_loss",),
    needs=("train_loss",),
)
