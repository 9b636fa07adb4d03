"""How much the initial learning rate matters, over eight decades, and to whom.

Every technique starts at each rate and is compared with Adam under a cosine decay at the best rate of a grid: a rate
counts where the training loss ends within a tenth of that one's. A method without a rate has its default alone.
"""

import math
import statistics
from collections.abc import Sequence

import altair as alt
import optax

import optax_igr
from benchmarks import figures
from benchmarks.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import PROBLEMS
from benchmarks.records import Record, groups
from benchmarks.report import mean_column
from benchmarks.technique import ADAM_RATES, BASIC, Technique, decayed
from benchmarks.techniques import TECHNIQUES

RATES = tuple(10.0**k for k in range(-6, 3))
REFERENCE = "adam_decayed"
TOLERANCE = 1.1
SCALE_RATE = 0.03


def _adapted(inner, **options):
    return optax_igr.adapt_scale(inner, SCALE_RATE, **options)


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
        "sgd_adapted",
        lambda h, n: _adapted(optax.sgd(h), first_step="cauchy"),
        RATES,
        "gradient descent, its scale learned from a measured first step",
    ),
    Technique(
        "adam_adapted",
        lambda h, n: _adapted(optax.adam(h), first_step="cauchy"),
        RATES,
        "Adam, its scale learned from a measured first step",
    ),
    Technique(
        "adam_adapted_decayed",
        lambda h, n: optax.chain(
            _adapted(optax.adam(h), first_step="cauchy"),
            optax.scale_by_schedule(decayed(1.0, n)),
        ),
        RATES,
        "the same, its steps under a cosine decay",
    ),
    Technique(
        "adam_capped",
        lambda h, n: _adapted(optax.adam(h), max_relative_update=0.1),
        RATES,
        "Adam, its scale learned, with a cap on the relative update in place of a measured step",
    ),
]

ADAM_DECAYED = Technique(
    REFERENCE,
    lambda h, n: optax.adam(decayed(h, n)),
    ADAM_RATES,
    "Adam, cosine decay: the reference, at the best of its grid",
    extra_arguments=BASIC,
)


def _problems(data_dir):
    if data_dir is None:
        return [PROBLEMS["digits"](None)]
    return [PROBLEMS[name](data_dir) for name in ("a9a", "mnist", "shakespeare")]


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


def rates_reached(runs: Sequence[Record]) -> dict[tuple[str, str], tuple[int, int]]:
    """Returns, by problem and technique, how many of its rates end within a tenth of the reference."""
    best = best_losses(runs)
    reached: dict[tuple[str, str], tuple[int, int]] = {}
    for (problem, technique, _), group in groups(runs).items():
        number, total = reached.get((problem, technique), (0, 0))
        good = mean_loss(group) <= TOLERANCE * best[problem]
        reached[problem, technique] = (number + good, total + 1)
    return reached


def headline(runs: Sequence[Record]) -> str:
    """Says for each problem which techniques reach the reference from how many rates."""
    best = best_losses(runs)
    sentences = []
    for problem, loss in best.items():
        found = {t: n for (p, t), n in rates_reached(runs).items() if p == problem}
        listed = ", ".join(
            f"{technique} {number} of {total}"
            for technique, (number, total) in sorted(found.items(), key=lambda x: -x[1][0])
            if technique != REFERENCE
        )
        sentences.append(
            f"On {problem}, rates within 10 % of the tuned {REFERENCE} (loss {loss:.3g}): {listed}."
        )
    return " ".join(sentences)


def _figures(runs):
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
        if 0 < mean_loss(group) < figures.CEILING
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
    return [
        Figure(
            "rates",
            "The final loss against the initial rate",
            "Mean over the seeds. A flat line at the height of the reference's lowest point is what one wishes for; a "
            "missing point has diverged.",
            chart,
        )
    ]


def _reached(group, runs):
    best = best_losses(runs)[group[0].problem]
    return "yes" if mean_loss(group) <= TOLERANCE * best else "no"


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
        Column("within 10 %", "of the loss of the reference at its best rate", _reached),
    ],
    headline=headline,
    figures=_figures,
)
