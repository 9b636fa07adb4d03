"""Every optimizer on several problems over its whole grid: who is fast, and who is easy to tune.

Statistics in the manner of AlgoPerf: steps to a target, at the rate with the best median; a miss is infinite.
"""

import math
from collections.abc import Sequence

import altair as alt
import numpy as np

from benchmarks.engine.records import Record, groups
from benchmarks.experiments.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import PROBLEMS
from benchmarks.problems.problem import Target
from benchmarks.report import figures
from benchmarks.report import run_statistics as stats
from benchmarks.techniques.own import TECHNIQUES
from benchmarks.techniques.peers import PEERS

# Those that need no file, and those that are added with `--data-dir`; `--problems` names others.
DEFAULT_PROBLEMS = ("quadratic", "rosenbrock", "digits")
DATA_PROBLEMS = ("a9a", "mushrooms")

# The same digits, shorter: the grid has eight times the runs of the main comparison.
DIGITS_EPOCHS = 20


def _problems(data_dir):
    names = DEFAULT_PROBLEMS if data_dir is None else (*DEFAULT_PROBLEMS, *DATA_PROBLEMS)
    options = {"digits": {"epochs": DIGITS_EPOCHS}}
    return [PROBLEMS[name](data_dir, **options.get(name, {})) for name in names]


def steps(record: Record) -> float:
    """Returns the steps that a run took to the target of its problem; infinity for a miss."""
    target = Target(**record.target) if record.target else None
    if target is None:
        return math.inf
    return stats.steps_to_target(
        record.curve["step"],
        record.curve[target.measure],
        target.value,
        higher_is_better=target.higher_is_better,
    )


def best(records: Sequence[Record]) -> tuple[float, list[Record]]:
    """Returns the rate with the lowest median of steps to the target, and its runs.

    Where no rate reaches the target, the rate with the lowest mean training loss.
    """
    by_rate = {rate: group for (_, _, rate), group in groups(records).items()}

    def rank(rate):
        losses = [r.final["train_loss"] for r in by_rate[rate]]
        loss = sum(losses) / len(losses)
        median = stats.median_and_quartiles([steps(r) for r in by_rate[rate]]).estimate
        return median, loss if math.isfinite(loss) else math.inf

    rate = min(by_rate, key=rank)
    return rate, by_rate[rate]


def medians(records: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Returns the rates, ascending, and the median of steps to the target at each."""
    by_rate = {rate: group for (_, _, rate), group in sorted(groups(records).items())}
    return list(by_rate), [
        stats.median_and_quartiles([steps(r) for r in group]).estimate for group in by_rate.values()
    ]


def profile(records: Sequence[Record]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns the techniques, the ratios and the shares of problems solved within each ratio."""
    techniques = list(dict.fromkeys(r.technique for r in records))
    problems = list(dict.fromkeys(r.problem for r in records))
    costs = np.full((len(techniques), len(problems)), math.inf)
    for (problem, technique), runs in _by_technique(records).items():
        _, chosen = best(runs)
        median = stats.median_and_quartiles([steps(r) for r in chosen]).estimate
        costs[techniques.index(technique), problems.index(problem)] = median
    return techniques, *stats.performance_profile(costs)


def headline(records: list[Record]) -> str:
    """Names the technique with the highest profile score and the widest range of rates."""
    techniques, ratios, shares = profile(records)
    scores = stats.profile_score(ratios, shares)
    first = int(np.argmax(scores))
    widths = {
        technique: np.mean(
            [_width(runs) for (_, t), runs in _by_technique(records).items() if t == technique]
        )
        for technique in techniques
    }
    widest = max(widths, key=lambda name: widths[name])
    return (
        f"{techniques[first]} has the highest profile score, {scores[first]:.2f} of 1, over "
        f"{len({r.problem for r in records})} problems; {widest} stays within 10 % of its own fewest steps over "
        f"the widest range of rates, {widths[widest]:.2f} decades on average."
    )


def _by_technique(records):
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record.problem, record.technique), []).append(record)
    return found


def _width(runs):
    rates, values = medians(runs)
    return stats.learning_rate_width(rates, values) if len(rates) > 1 else 0.0


def _steps_cell(group, records):
    del records
    _, runs = best(group)
    taken = [steps(r) for r in runs]
    median, low, high = stats.median_and_quartiles(taken)
    if math.isinf(median):
        return f"missed by {sum(map(math.isinf, taken))} of {len(taken)}"
    return f"{median:.0f} [{low:.0f}, {high:.0f}]"


def _seconds_cell(group, records):
    del records
    _, runs = best(group)
    seconds = stats.median_and_quartiles([steps(r) * r.seconds_per_step for r in runs]).estimate
    return f"{seconds:.2g}"


def _mean_loss_cell(runs):
    diverged = sum(r.diverged for r in runs)
    if diverged:
        return f"{diverged} of {len(runs)} diverged"
    return f"{np.mean([r.final['train_loss'] for r in runs]):.2e}"


def _score_cell(group, records):
    techniques, ratios, shares = profile(records)
    return f"{stats.profile_score(ratios, shares)[techniques.index(group[0].technique)]:.2f}"


def _figures(records):
    by_technique = _by_technique(records)
    problems = list(dict.fromkeys(r.problem for r in records))
    techniques = list(dict.fromkeys(r.technique for r in records))
    sensitivity = []
    for (problem, technique), runs in by_technique.items():
        for rate, value in zip(*medians(runs), strict=True):
            if math.isfinite(value):
                sensitivity.append(
                    {"label": technique, "problem": problem, "rate": rate, "steps": value}
                )
    hue, dash = figures.named_style(techniques)
    chosen = figures.selection()
    panels = []
    for problem in problems:
        rows = [row for row in sensitivity if row["problem"] == problem]
        panels.append(
            alt.Chart(alt.Data(values=rows), title=problem)
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
    names, ratios, shares = profile(records)
    rows = [
        {"label": name, "x": float(ratio), "share": float(share)}
        for name, row in zip(names, shares, strict=True)
        for ratio, share in zip(ratios[::5], row[::5], strict=True)
    ]
    profiles = (
        alt.Chart(alt.Data(values=rows))
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
    return [
        Figure(
            "sensitivity",
            "Steps to the target against the learning rate",
            "Each at the rates of its own grid; a rate whose median run misses the target has no point.",
            alt.concat(panels[0].add_params(chosen), *panels[1:], columns=3),
        ),
        Figure(
            "profile",
            "Performance profiles",
            "The share of problems that a technique, at its best rate, solves within a multiple of the fewest steps.",
            profiles,
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
        *(Entry(peer) for peer in PEERS if peer.name != "adamw_decayed"),
    ],
    columns=[
        Column(
            "best rate",
            "the rate of the grid with the lowest median of steps to the target",
            lambda group, records: f"{best(group)[0]:.3g}",
        ),
        Column(
            "steps to target",
            "median over the seeds and interquartile range at the best rate; a run that misses counts as inf",
            _steps_cell,
        ),
        Column(
            "s to target", "the same times the measured seconds of a step of one run", _seconds_cell
        ),
        Column(
            "width in decades",
            "of the rates whose median steps to the target are within 10 % of the best",
            lambda group, records: f"{_width(group):.2f}",
        ),
        Column(
            "profile score",
            "the area under the performance profile up to 4 times the fewest steps, over all problems",
            _score_cell,
        ),
        Column(
            "final train loss",
            "mean over the seeds at the best rate",
            lambda group, records: _mean_loss_cell(best(group)[1]),
        ),
    ],
    headline=headline,
    figures=_figures,
    row_per_rate=False,
    curve_measures=("train_loss", "test_loss", "test_accuracy"),
)
