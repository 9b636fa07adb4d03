"""How far down curvature gets, against passes over the data, and what a direction costs."""

import dataclasses
import math

import numpy as np
import optax

import optax_igr
from benchmarks.costs import curvature_costs
from benchmarks.engine.gradient_counts import count_gradients
from benchmarks.engine.table import RUN, Series, Table, at_lowest, groups, is_measured
from benchmarks.experiments import curvature_figures
from benchmarks.experiments.experiment import Column, Entry, Experiment, Figure, Measurement
from benchmarks.problems import autoencoder, convex
from benchmarks.problems.counted import with_counts
from benchmarks.problems.problem import Problem
from benchmarks.report import charts
from benchmarks.report.presentation import value_column
from benchmarks.techniques import TECHNIQUES
from benchmarks.techniques.counting import SPENT, counting_passes
from benchmarks.techniques.curvature import (
    PRODUCT,
    constant_spent,
    full_batch,
    inverse_root,
    lbfgs_passes,
    line_searched,
    newton_passes,
)
from benchmarks.techniques.technique import Technique

CONVEX_PROBLEMS = ("hinge", "logistic", "a9a")


# The gradients of a technique that cannot tell its passes are counted over so many steps, after twice as many.
_SETTLED = 8

# Rates and schedules that this comparison needs, under the names that the suite has for the plain techniques.
_DECAYED_SGD = Technique(
    "sgd",
    lambda rate, plan: optax.sgd(inverse_root(rate, plan)),
    (0.1, 0.3, 1.0),
    "rate ∝ 1/√epoch",
    spent=constant_spent(1),
)
_CONVEX = (
    _DECAYED_SGD,
    *(
        TECHNIQUES[name]
        for name in (
            *("svrg", "sqn", "slbfgs", "multibatch", "naive_lbfgs"),
            *("full_lbfgs", "optimistix_lbfgs", "full_newton_cg"),
        )
    ),
)
# A step on the autoencoder takes more passes than one on a linear classifier: it comes less often.
_NETWORK = (
    dataclasses.replace(
        TECHNIQUES["adam"],
        grid=(1e-3, 3e-3, 1e-2),
        about="on the batches, constant rate",
        spent=constant_spent(1),
    ),
    full_batch(
        "full_lbfgs", lambda rate: optax.lbfgs(), lbfgs_passes, 1.0, "optax.lbfgs on all examples"
    ),
    full_batch(
        "full_newton_cg",
        line_searched(optax_igr.scale_by_newton_cg(damping=1.0, tolerance=0.1)),
        newton_passes(PRODUCT),
        25.0,
        "Newton-CG on all examples, then Optax's backtracking",
    ),
    TECHNIQUES["full_gauss_newton_cg"],
)


def _problems(data_dir):
    problems = [convex.squared_hinge(), convex.logistic()]
    problems += [] if data_dir is None else [convex.a9a(data_dir)]
    return [*problems, autoencoder.digits()]


def _counting(technique: Technique, problem: Problem) -> Technique:
    """Lets a technique count its passes; of one that cannot tell they are those of some counted steps."""
    spent = technique.spent
    if spent is None:
        settings = technique.named_settings(technique.grid[0])
        # Later steps than the very first, which may measure what the others do not.
        settled = (
            dataclasses.replace(technique, period=_SETTLED) if technique.period == 1 else technique
        )
        gradients, products = count_gradients(problem, settled, settings)
        spent = constant_spent(gradients + PRODUCT * products)
    return counting_passes(technique, spent)


def costs_of(runs: Table) -> Table:
    """Keeps the costs of operations, which are no runs."""
    return runs[runs["problem"].isin(curvature_costs.PROBLEMS)]


def runs_of(runs: Table) -> Table:
    """Keeps the runs, with `end`: the distance from the minimum where that is known, else the training loss."""
    own = runs[~runs["problem"].isin(curvature_costs.PROBLEMS)]
    if "suboptimality" not in own:
        return own.assign(end=own["train_loss"])
    return own.assign(end=own["suboptimality"].fillna(own["train_loss"]))


def measure_of(runs: Table) -> str:
    """Returns the name of what is compared on a problem."""
    return "suboptimality" if is_measured(runs, "suboptimality") else "train_loss"


def _geometric_mean(ends: Series) -> float:
    positive = np.isfinite(ends) & (ends > 0)
    return float(np.exp(np.log(ends).mean())) if positive.all() else math.inf


def means(runs: Table) -> Table:
    """Returns by rate the geometric mean of the seeds at the end, infinite where one diverged, and the passes."""
    return runs.groupby(RUN, sort=False).agg(
        end=("end", _geometric_mean), passes=("passes", "mean")
    )


def _for_runs(cell):
    def made(group, runs):
        del runs
        own = runs_of(group)
        return "" if own.empty else cell(own)

    return made


def _end_cell(group):
    ends = group["end"]
    end = _geometric_mean(ends)
    if not math.isfinite(end):
        return f"diverged ({int((~np.isfinite(ends)).sum())} of {len(ends)})"
    return f"{end:.2e} [{ends.min():.1e}, {ends.max():.1e}]"


def _pairs_cell(group):
    pairs, rejected = group["pairs"].sum(), group["rejected"].sum()
    return f"{100 * rejected / pairs:.1f} % of {pairs:.0f}" if pairs > 0 else ""


def headline(runs: Table) -> str:
    """Says where the best rate of each technique ended, problem by problem."""
    named = {"suboptimality": "distance from the minimum", "train_loss": "training loss"}
    sentences = []
    for (problem,), own in groups(runs_of(runs), ["problem"]).items():
        best = means(own).sort_values(["end", "passes"], kind="stable")
        best = (
            best.groupby(level="technique", sort=False).head(1).droplevel(["problem", "settings"])
        )
        listed = ", ".join(f"{name} {_shown(x)} ({n:.0f})" for name, (x, n) in best.iterrows())
        sentences.append(
            f"{problem}, {named[measure_of(own)]} at the best rate and passes over the data: {listed}."
        )
    return " ".join([*sentences, *curvature_figures.sentences(costs_of(runs))])


def _shown(x):
    return f"{x:.1e}" if math.isfinite(x) else "diverged"


def _figures(runs):
    found = []
    for (problem,), own in groups(runs_of(runs), ["problem"]).items():
        best = at_lowest(own, means(own)["end"])
        measure = measure_of(own)
        title = "L − min L" if measure == "suboptimality" else "training loss"
        # A diverged start would stretch the axis: nothing above three times the first loss is drawn.
        first = max(curve[measure][0] for curve in best["curve"])
        chart = charts.curves(
            best,
            [(measure, title, "log")],
            x="passes",
            x_title="passes over the data",
            ceilings={measure: 3 * first},
        )
        found.append(
            Figure(
                f"{measure}_{problem}",
                f"{title}: {own['about'].iloc[0]}",
                "Each technique at its best rate; one that diverged at every rate has no line. A pass is a gradient "
                "on every example; a Hessian-vector product counts as two, a Gauss-Newton-vector product as 4/3, a "
                "loss as 1/3.",
                chart,
            )
        )
    return found + curvature_figures.draw(costs_of(runs))


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
        *(Entry(technique, problems=CONVEX_PROBLEMS) for technique in _CONVEX),
        *(Entry(technique, problems=(autoencoder.NAME,)) for technique in _NETWORK),
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
            _for_runs(lambda group: f"{group['passes'].mean():.0f}"),
        ),
        Column(
            "rejected pairs",
            "by the guard, of those offered, over all seeds; of the naive ones, those without positive curvature",
            _for_runs(_pairs_cell),
        ),
        *(
            value_column(*column)
            for column in (
                ("gradients", "of a batch in a step, counted by hand", "gradients", ".3g"),
                ("time ×", "beside a gradient, median of interleaved rounds", "time", ".2f"),
                ("ms", "median time", "milliseconds", ".2f"),
                ("FLOPs ×", "beside a gradient, the compiler's own figure", "flops", ".2f"),
                ("memory ×", "temporary and output bytes beside a gradient", "memory", ".2f"),
                ("error", "relative, against float64", "error", ".0e"),
            )
        ),
    ],
    headline=headline,
    figures=_figures,
    measurements=[Measurement(curvature_costs.KEYS, curvature_costs.measure)],
    needs=("passes",),
    adapt_technique=_counting,
    adapt_problem=lambda problem: with_counts(problem, SPENT),
)
