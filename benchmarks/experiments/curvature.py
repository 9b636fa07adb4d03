"""How far down curvature gets, against passes over the data, and what a direction costs."""

import dataclasses
import math
import statistics

from benchmarks.engine.records import Record, groups
from benchmarks.experiments import curvature_costs as costs
from benchmarks.experiments.curvature_techniques import CONVEX, NETWORK
from benchmarks.experiments.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import autoencoder, convex
from benchmarks.report import figures
from benchmarks.techniques.pass_counting import with_meters

CONVEX_PROBLEMS = ("hinge", "logistic", "a9a")


def _problems(data_dir):
    problems = [convex.squared_hinge(), convex.logistic()]
    problems += [] if data_dir is None else [convex.a9a(data_dir)]
    return [with_meters(problem) for problem in (*problems, autoencoder.digits())]


def is_cost(record: Record) -> bool:
    """Says whether a record is the cost of an operation, not a run."""
    return record.problem in costs.PROBLEMS


def measure_of(record: Record) -> str:
    """Returns the name of what is compared: the distance from the minimum where that is known."""
    return "suboptimality" if "suboptimality" in record.final else "train_loss"


def end(group: list[Record]) -> float:
    """Returns the geometric mean of the seeds at the end; infinity where one diverged."""
    ends = [r.final[measure_of(r)] for r in group]
    if not all(math.isfinite(x) and x > 0 for x in ends):
        return math.inf
    return math.exp(statistics.fmean(map(math.log, ends)))


def _for_runs(cell):
    return lambda group, runs: "" if is_cost(group[0]) else cell(group)


def _for_costs(name, spec):
    def cell(group, runs):
        del runs
        value = group[0].final.get(name) if is_cost(group[0]) else None
        return "" if value is None else format(value, spec)

    return cell


def _end_cell(group):
    ends = [r.final[measure_of(r)] for r in group]
    if not math.isfinite(end(group)):
        return f"diverged ({sum(not math.isfinite(x) for x in ends)} of {len(ends)})"
    return f"{end(group):.2e} [{min(ends):.1e}, {max(ends):.1e}]"


def _pairs_cell(group):
    pairs = sum(r.final["pairs"] for r in group)
    if not pairs > 0:
        return ""
    return f"{100 * sum(r.final['rejected'] for r in group) / pairs:.1f} % of {pairs:.0f}"


def headline(runs: list[Record]) -> str:
    """Says where the best rate of each technique ended, problem by problem."""
    best: dict[str, dict[str, tuple[float, float]]] = {}
    for (problem, technique, _), group in groups([r for r in runs if not is_cost(r)]).items():
        found = best.setdefault(problem, {})
        passes = statistics.fmean(r.final["passes"] for r in group)
        found[technique] = min((end(group), passes), found.get(technique, (math.inf, passes)))
    measures = {r.problem: measure_of(r) for r in runs if not is_cost(r)}
    named = {"suboptimality": "distance from the minimum", "train_loss": "training loss"}
    sentences = [
        f"{problem}, {named[measures[problem]]} at the best rate and passes over the data: "
        + ", ".join(
            f"{t} {_shown(x)} ({p:.0f})" for t, (x, p) in sorted(found.items(), key=_by_end)
        )
        + "."
        for problem, found in best.items()
    ]
    return " ".join([*sentences, *costs.headline([r for r in runs if is_cost(r)])])


def _shown(x):
    return f"{x:.1e}" if math.isfinite(x) else "diverged"


def _by_end(item):
    return item[1]


def _figures(runs):
    found = []
    for problem in dict.fromkeys(r.problem for r in runs if not is_cost(r)):
        own = best_rates([r for r in runs if r.problem == problem])
        measure = measure_of(own[0])
        title = "L − min L" if measure == "suboptimality" else "training loss"
        first = max(r.curve[measure][0] for r in own)
        chart = figures.curves(
            own,
            [(measure, title, "log")],
            x="passes",
            x_title="passes over the data",
            ceilings={measure: 3 * first},
        )
        found.append(
            Figure(
                f"{measure}_{problem}",
                f"{title}: {own[0].settings}",
                "Each technique at its best rate; one that diverged at every rate has no line. A pass is a gradient "
                "on every example; a Hessian-vector product counts as two, a Gauss-Newton-vector product as 4/3, a "
                "loss as 1/3.",
                chart,
            )
        )
    return found + costs.figures_of([r for r in runs if is_cost(r)])


def best_rates(runs: list[Record]) -> list[Record]:
    """Keeps the runs at each technique's best rate, with the mean of the seeds' passes on the abscissa."""
    by_technique: dict[str, list[list[Record]]] = {}
    for (_, technique, _), group in groups(runs).items():
        by_technique.setdefault(technique, []).append(group)
    return [
        r for groups_ in by_technique.values() for r in _with_mean_passes(min(groups_, key=end))
    ]


def _with_mean_passes(group):
    points = zip(*(r.curve["passes"] for r in group), strict=True)
    passes = [statistics.fmean(point) for point in points]
    return [dataclasses.replace(r, curve={**r.curve, "passes": passes}) for r in group]


EXPERIMENT = Experiment(
    name="curvature",
    question="How far down does curvature get, and what does it cost?",
    about="The noise of minibatch gradients stops a constant rate above the minimum, and a decaying one slows down. "
    "Variance reduction removes the noise, curvature the condition number; stochastic L-BFGS with both converges "
    "linearly at a constant rate. The differences of two batches' gradients, which an ordinary L-BFGS takes on "
    "minibatches, are no curvature. Methods on all examples stand beside them at the same count of passes, and "
    "Newton-CG beside L-BFGS and Adam on an autoencoder, which is not convex.",
    problems=_problems,
    entries=[
        *(Entry(t, problems=CONVEX_PROBLEMS) for t in CONVEX),
        *(Entry(t, problems=(autoencoder.NAME,)) for t in NETWORK),
    ],
    columns=[
        Column(
            "at the end",
            "L − min L, on the autoencoder the loss: geometric mean of the seeds, lowest and highest",
            _for_runs(_end_cell),
        ),
        Column(
            "passes",
            "over the data, counted; a Hessian-vector product is two, a Gauss-Newton-vector product 4/3, a loss 1/3",
            _for_runs(lambda group: f"{statistics.fmean(r.final['passes'] for r in group):.0f}"),
        ),
        Column(
            "rejected pairs",
            "by the guard, of those offered, over all seeds; of the naive ones, those without positive curvature",
            _for_runs(_pairs_cell),
        ),
        Column(
            "gradients", "of a batch in a step, counted by hand", _for_costs("gradients", ".3g")
        ),
        Column(
            "time ×", "beside a gradient, median of interleaved rounds", _for_costs("time", ".2f")
        ),
        Column("ms", "median time", _for_costs("milliseconds", ".2f")),
        Column(
            "FLOPs ×", "beside a gradient, the compiler's own figure", _for_costs("flops", ".2f")
        ),
        Column(
            "memory ×", "temporary and output bytes beside a gradient", _for_costs("memory", ".2f")
        ),
        Column("error", "relative, against float64", _for_costs("error", ".0e")),
    ],
    headline=headline,
    figures=_figures,
    measurements=[costs.MEASUREMENT],
    needs=("passes",),
)
