"""How far down stochastic quasi-Newton methods get, against passes over the data."""

import dataclasses
import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_igr
from benchmarks import figures
from benchmarks.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import convex
from benchmarks.records import Record, groups
from benchmarks.technique import BASIC, Technique

PAIR_INTERVAL = 10
# Steps from one iteration of full-batch L-BFGS to the next: it costs about two passes.
FULL_INTERVAL_EPOCHS = 0.5
TARGET = 1e-11


def _decayed(rate, num_steps):
    epoch = num_steps / convex.EPOCHS
    return lambda count: rate / jnp.sqrt(1 + count / epoch)


def _epoch(num_steps):
    return max(1, num_steps // convex.EPOCHS)


def on_full_batch_every(
    interval: int, optimizer: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Lets a deterministic optimizer take a step on all examples every so many steps of the others."""
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return jnp.zeros([], jnp.int32), optimizer.init(params)

    def update(updates, state, params: Any = None, *, full_value_fn: Any = None, **extra):
        del extra
        count, inner = state

        def step():
            value, grad = jax.value_and_grad(full_value_fn)(params)
            return optimizer.update(
                grad, inner, params, value=value, grad=grad, value_fn=full_value_fn
            )

        def wait():
            return jax.tree.map(jnp.zeros_like, updates), inner

        updates, inner = jax.lax.cond(count % interval == 0, step, wait)
        return updates, (count + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)


CURVATURE = (*BASIC, "curvature_value_fn")
FULL = (*BASIC, "full_value_fn")

SGD = Technique("sgd", lambda h, n: optax.sgd(_decayed(h, n)), (0.1, 0.3, 1.0), "rate ∝ 1/√epoch")
SVRG = Technique(
    "svrg",
    lambda h, n: optax.chain(optax_igr.svrg(anchor_interval=_epoch(n)), optax.sgd(h)),
    (0.1, 0.3),
    "variance reduction, an anchor an epoch",
    extra_arguments=FULL,
)
SQN = Technique(
    "sqn",
    lambda h, n: optax_igr.sqn(_decayed(h, n), pair_interval=PAIR_INTERVAL),
    (0.03, 0.1),
    "stochastic quasi-Newton, rate ∝ 1/√epoch",
    extra_arguments=CURVATURE,
)
SLBFGS = Technique(
    "slbfgs",
    lambda h, n: optax_igr.slbfgs(h, anchor_interval=_epoch(n), pair_interval=PAIR_INTERVAL),
    (0.003, 0.01, 0.03),
    "variance reduction and stochastic quasi-Newton, constant rate",
    extra_arguments=(*FULL, "curvature_value_fn"),
)
MULTIBATCH = Technique(
    "multibatch",
    lambda h, n: optax_igr.multibatch_lbfgs(h),
    (0.03, 0.1),
    "multi-batch L-BFGS, overlap 25 %",
    extra_arguments=(*BASIC, "overlap_value_fn"),
)
NAIVE = Technique(
    "naive_lbfgs",
    lambda h, n: optax.chain(optax.scale_by_lbfgs(), optax.scale_by_learning_rate(h)),
    (0.03, 0.1),
    "optax.scale_by_lbfgs on the batches: differences of two batches' gradients",
    extra_arguments=(),
)
FULL_LBFGS = Technique(
    "full_lbfgs",
    lambda h, n: on_full_batch_every(
        max(1, round(FULL_INTERVAL_EPOCHS * _epoch(n))), optax.lbfgs()
    ),
    (1.0,),
    "optax.lbfgs on all examples, two iterations in the time of an epoch",
    extra_arguments=FULL,
)


def gradients_per_step(technique: str, steps_per_epoch: float) -> float:
    """Returns the mean cost of a step in gradients of a batch, a Hessian-vector product counted as two.

    A curvature batch is ten batches, made use of every tenth step; an anchor costs a pass each epoch. An iteration of
    full-batch L-BFGS is counted as two gradients, as if its line search took one step back on average.
    """
    pairs = 2 * 10 / PAIR_INTERVAL
    return {
        "sgd": 1.0,
        "svrg": 2.0 + 1.0,
        "sqn": 1.0 + pairs,
        "slbfgs": 2.0 + 1.0 + pairs,
        "multibatch": 1.0 + 2 * 0.25,
        "naive_lbfgs": 1.0,
        "full_lbfgs": 2.0 / FULL_INTERVAL_EPOCHS,
    }.get(technique, math.nan)


def with_passes(record: Record) -> Record:
    """Adds to the curve the passes over the data, in gradients."""
    epoch = record.num_steps / convex.EPOCHS
    cost = gradients_per_step(record.technique, epoch) / epoch
    passes = [cost * step for step in record.curve["step"]]
    return dataclasses.replace(record, curve={**record.curve, "passes": passes})


def _problems(data_dir):
    problems = [convex.squared_hinge(), convex.logistic()]
    return problems if data_dir is None else [*problems, convex.a9a(data_dir)]


def _gap(group):
    gaps = [r.final["suboptimality"] for r in group]
    if not all(math.isfinite(gap) for gap in gaps):
        return math.inf
    return math.exp(statistics.fmean(map(math.log, gaps)))


def _gap_cell(group, runs):
    del runs
    gaps = [r.final["suboptimality"] for r in group]
    if not all(math.isfinite(gap) for gap in gaps):
        return "diverged"
    return f"{_gap(group):.1e} [{min(gaps):.0e}, {max(gaps):.0e}]"


def _passes_cell(group, runs):
    del runs
    return f"{with_passes(group[0]).curve['passes'][-1]:.0f}"


def headline(runs: list[Record]) -> str:
    """Says where the best rate of each technique ended, problem by problem."""
    best: dict[str, dict[str, float]] = {}
    for (problem, technique, _), group in groups(runs).items():
        gaps = best.setdefault(problem, {})
        gaps[technique] = min(_gap(group), gaps.get(technique, math.inf))
    return " ".join(
        f"{problem}, distance from the minimum after {convex.EPOCHS} epochs at the best rate: "
        + ", ".join(f"{t} {gap:.0e}" for t, gap in sorted(gaps.items(), key=lambda x: x[1]))
        + "."
        for problem, gaps in best.items()
    )


def _figures(runs):
    found = []
    for problem in dict.fromkeys(r.problem for r in runs):
        own = [with_passes(r) for r in runs if r.problem == problem]
        chart = figures.curves(
            own,
            [("suboptimality", "L − min L", "log")],
            x="passes",
            x_title="passes over the data",
            ceilings={"suboptimality": 10.0},
        )
        found.append(
            Figure(
                f"suboptimality_{problem}",
                f"Distance from the minimum: {own[0].settings}",
                "A pass is a gradient on every example, a Hessian-vector product counted as two.",
                chart,
            )
        )
    return found


EXPERIMENT = Experiment(
    name="curvature",
    question="How far down do stochastic quasi-Newton methods get?",
    about="The noise of minibatch gradients stops a constant rate above the minimum, and a decaying one slows down. "
    "Variance reduction removes the noise, curvature the condition number; stochastic L-BFGS with both converges "
    "linearly at a constant rate. The differences of two batches' gradients, which an ordinary L-BFGS takes on "
    "minibatches, are no curvature.",
    problems=_problems,
    entries=[Entry(t) for t in (SGD, SVRG, SQN, SLBFGS, MULTIBATCH, NAIVE, FULL_LBFGS)],
    columns=[
        Column(
            "L − min L",
            "at the end: geometric mean of the seeds, lowest and highest",
            _gap_cell,
        ),
        Column(
            "passes",
            "over the data, in gradients; a Hessian-vector product counts as two",
            _passes_cell,
        ),
        Column(
            "µs a step",
            "wall time of a step of one run, all seeds in one program, without compilation",
            lambda group, runs: f"{1e6 * statistics.fmean(r.seconds_per_step for r in group):.0f}",
        ),
    ],
    headline=headline,
    figures=_figures,
)
