"""How much the initial learning rate matters, over eight decades, and to whom.

Every technique starts at each rate and is compared with Adam under a cosine decay at the best rate of a grid: a rate
counts where the training loss ends within a tenth of that one's. A method without a rate has its default alone.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import altair as alt
import optax
from flax import nnx

import optax_igr
from benchmarks import figures
from benchmarks.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import digits, logistic, shakespeare
from benchmarks.problems.problem import Problem
from benchmarks.records import Record, groups
from benchmarks.report import mean_column
from benchmarks.technique import ADAM_RATES, BASIC, Technique, decayed
from benchmarks.techniques import TECHNIQUES

RATES = tuple(10.0**k for k in range(-6, 3))
REFERENCE = "adam_decayed"
TOLERANCE = 1.1
ACCURACY_MARGIN = 0.01

# Alignments over a hundred steps: those of single steps settle at a rate that is too small (see `adapt_scale`).
MEASURED = {
    "scale_rate": 0.3,
    "ema": 0.99,
    "first_step": "cauchy",
    "warmup_steps": 10,
}
CAP = 0.1


def _adapted(inner, **options):
    return optax_igr.adapt_scale(inner, **options)


def _adapted_decayed(inner, num_steps, **options):
    adapted = _adapted(inner, **MEASURED, **options)
    return optax.chain(adapted, optax.scale_by_schedule(decayed(1.0, num_steps)))


OWN = [
    Technique(
        "egdd", lambda h, n: optax_igr.egdd(h), RATES, "EGDD with the defaults of its authors"
    ),
    Technique(
        "sgd_gain",
        lambda h, n: optax.chain(optax_igr.scale_by_gain(h), optax.sgd(h)),
        RATES,
        "the raw rule: one gain a parameter, with the rate itself as the gain's",
    ),
    Technique(
        "sgd_adapted_decayed",
        lambda h, n: _adapted_decayed(optax.sgd(h), n),
        RATES,
        "gradient descent, its scale learned from ten measured steps, under a cosine decay",
    ),
    Technique(
        "adam_adapted",
        lambda h, n: _adapted(optax.adam(h), **MEASURED),
        RATES,
        "Adam, its scale learned from ten measured steps",
    ),
    Technique(
        "adam_adapted_capped_decayed",
        lambda h, n: _adapted_decayed(optax.adam(h), n, max_relative_update=CAP),
        RATES,
        "the same with a cap on the relative update, which is for an outlier among the measured, and a cosine decay",
    ),
    Technique(
        "adam_capped",
        lambda h, n: _adapted(optax.adam(h), scale_rate=0.03, max_relative_update=CAP),
        RATES,
        "Adam, its scale learned, with a cap on the relative update in place of measured steps",
    ),
]

ADAM_DECAYED = Technique(
    REFERENCE,
    lambda h, n: optax.adam(decayed(h, n)),
    ADAM_RATES,
    "Adam, cosine decay: the reference, at the best of its grid",
    extra_arguments=BASIC,
)


SHIFTED = "digits_shift"


def _problems(data_dir):
    three = digits.mlp(widths=(64, 64), activation=nnx.relu)
    seven = digits.mlp(widths=(32,) * 6, activation=nnx.relu)
    chosen = [
        three.replace(name="digits_three", num_steps=600),
        seven.replace(name="digits_seven", num_steps=600),
        shifted(three, 600),
    ]
    if data_dir is not None:
        small = {"length": 32, "width": 32, "num_heads": 2, "num_steps": 300}
        chosen.insert(0, logistic.a9a(data_dir).replace(num_steps=500))
        chosen.append(shakespeare.transformer(data_dir, **small))
    return [problem.measuring("train_loss", "test_loss", "test_accuracy") for problem in chosen]


def shifted(problem: Problem, num_steps: int) -> Problem:
    """Returns a classifier whose labels are permuted from the middle of the run on.

    The training loss is that on the permuted labels: before the middle it says nothing.
    """

    def permuted(data, by=1):
        return data | {"label": (data["label"] + by) % 10}

    def shift(batch, step):
        return permuted(batch, step >= num_steps // 2)

    def measure(params, train, test):
        del test
        return problem.loss(params, permuted(train))

    return problem.replace(
        name=SHIFTED,
        num_steps=num_steps,
        measures={"train_loss": measure},
        final_measures={"train_loss": measure},
        shift=shift,
        target=None,
        about=f"{problem.about}, every label raised by one (modulo ten) from step {num_steps // 2} on",
    )


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
        if problem == SHIFTED:
            continue
        has_accuracy = any(r.problem == problem and "test_accuracy" in r.final for r in runs)
        found = {t: n for (p, t), n in reached.items() if p == problem and t != REFERENCE}
        listed = ", ".join(
            f"{technique} {n.loss}{f'/{n.accuracy}' if has_accuracy else ''} of {n.total}"
            for technique, n in sorted(found.items(), key=lambda x: (-x[1].loss, -x[1].accuracy))
        )
        counted = "loss/accuracy" if has_accuracy else "loss"
        sentences.append(
            f"On {problem}, {REFERENCE} at its best rate ends at {loss:.3g}; rates that reach it ({counted}): {listed}."
        )
    return " ".join([*sentences, *_after_the_shift(runs)])


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
        if problem != SHIFTED and 0 < mean_loss(group) < figures.CEILING
    ]
    names = list(dict.fromkeys(row["label"] for row in rows))
    colour, dash = figures.named_style(names)
    x = alt.X("x:Q", title="initial learning rate", scale=alt.Scale(type="log"))
    base = alt.Chart().encode(
        x=x,
        y=alt.Y("mean:Q", title="training loss at the end", scale=alt.Scale(type="log")),
        color=colour,
    )
    layers = base.mark_line().encode(strokeDash=dash) + base.mark_point(filled=True, size=40)
    chart = (
        alt.layer(*layers.layer, data=alt.Data(values=rows))
        .properties(width=figures.WIDTH, height=figures.HEIGHT)
        .facet(column=alt.Column("problem:N", title=None))
        .resolve_scale(y="independent")
    )
    return Figure(
        "rates",
        "The final loss against the initial rate",
        "Mean over the seeds. A flat line at the height of the reference's lowest point is what one wishes for; a "
        "missing point has diverged.",
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


def _reached(group, runs):
    best = best_losses(runs)[group[0].problem]
    return "yes" if mean_loss(group) <= TOLERANCE * best else "no"


def _accuracy(group, runs):
    del runs
    accuracy = mean_accuracy(group)
    return "" if math.isnan(accuracy) else f"{accuracy:.4f}"


EXPERIMENT = Experiment(
    name="learning-rate",
    question="How much does the initial learning rate matter?",
    about="Every technique starts at nine rates from 1e-6 to 1e2. The reference is Adam under a cosine decay at the "
    "best of its own grid. Where the first step is measured the initial rate cancels for an inner optimizer that is "
    "proportional to it: what remains is how good the method is, and that depends on the batch and on the length of "
    "the run.",
    problems=_problems,
    entries=[
        Entry(ADAM_DECAYED),
        Entry(TECHNIQUES["sgd"], RATES),
        Entry(TECHNIQUES["adam"], RATES),
        Entry(TECHNIQUES["adamw_decayed"], RATES),
        *(Entry(technique) for technique in OWN),
        *(Entry(TECHNIQUES[name], RATES) for name in ("mechanize", "schedule_free_adamw")),
        *(Entry(TECHNIQUES[name], RATES) for name in ("prodigy", "dadapt_adamw", "dog", "dowg")),
    ],
    columns=[
        mean_column("train loss", "at the end, mean over the seeds", "train_loss", ".3e"),
        Column("test accuracy", "at the end, mean over the seeds", _accuracy),
        Column("within 10 %", "of the loss of the reference at its best rate", _reached),
    ],
    headline=headline,
    figures=_figures,
)
