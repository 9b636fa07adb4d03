"""Prediction with expert advice: the regret of EG on the simplex beside its bound."""

import math
import statistics
from typing import Any

import altair as alt
import jax
import jax.numpy as jnp
import optax

import optax_igr
from benchmarks.engine.records import Record, groups
from benchmarks.experiments.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems.online import counted, hedge
from benchmarks.report import figures
from benchmarks.techniques.technique import Technique

GAMES = ((2, 1000), (10, 1000), (1000, 5000))
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)


def _scale_by_theory(multiple: Any, num_steps: int) -> optax.GradientTransformation:
    """Scales by the learning rate of the theorem, sqrt(8 ln N / T), times `multiple`."""

    def scale(losses: jax.Array) -> jax.Array:
        return -multiple * jnp.sqrt(8 * math.log(losses.size) / num_steps) * losses

    return optax.stateless(lambda updates, params: jax.tree.map(scale, updates))


def _technique(name: str, about: str, **options: Any) -> Technique:
    return Technique(
        name,
        lambda multiple, num_steps: optax.chain(
            _scale_by_theory(multiple, num_steps), optax_igr.exponentiate_simplex(**options)
        ),
        MULTIPLES,
        about,
    )


def _ratio(group: list[Record]) -> list[float]:
    return [r.final["regret"] / r.final["bound"] for r in group]


def headline(runs: list[Record]) -> str:
    """Says how close the regret comes to its bound at the learning rate of the theorem."""
    parts = [
        f"{statistics.fmean(r.final['regret'] for r in group):.1f} of {group[0].final['bound']:.1f} for "
        f"{group[0].settings}"
        for (_, technique, rate), group in groups(runs).items()
        if technique == "hedge" and rate == 1.0
    ]
    if not parts:
        return "No run is at the learning rate of the theorem, a multiple of 1."
    return f"Regret at the learning rate of the theorem, and its bound: {'; '.join(parts)}."


def _figures(runs: list[Record]) -> list[Figure]:
    hue, dash = figures.named_style(list(dict.fromkeys(r.technique for r in runs)))
    panels = []
    for problem in dict.fromkeys(r.problem for r in runs):
        rows = [
            {"label": technique, "x": rate} | figures.spread(_ratio(group))
            for (name, technique, rate), group in groups(runs).items()
            if name == problem
        ]
        _, experts, steps = problem.split("_")
        line = (
            alt.Chart(alt.Data(values=rows), title=f"{experts} experts, {steps} steps")
            .mark_line(point=True, strokeWidth=1.8)
            .encode(
                x=alt.X(
                    "x:Q",
                    title="learning rate / that of the theorem",
                    scale=alt.Scale(type="log", nice=False, padding=12),
                    axis=alt.Axis(values=list(MULTIPLES), format="~g"),
                ),
                y=alt.Y("mean:Q", title="regret / bound", scale=alt.Scale(zero=True)),
                color=hue,
                strokeDash=dash,
                tooltip=["label:N", "x:Q", "mean:Q", "low:Q", "high:Q"],
            )
        )
        bound = (
            alt.Chart(alt.Data(values=[{"bound": 1.0}]))
            .mark_rule(color="#777", strokeDash=[4, 3])
            .encode(y="bound:Q")
        )
        panels.append((bound + line).properties(width=figures.WIDTH - 60, height=figures.HEIGHT))
    return [
        Figure(
            "regret",
            "Regret against the best expert in hindsight",
            "The dashed line is the bound sqrt(T ln N / 2), which holds at the learning rate of the theorem (1).",
            alt.hconcat(*panels),
        )
    ]


EXPERIMENT = Experiment(
    name="hedge",
    question="How large is the regret of exponentiated gradient on the simplex?",
    about="Experts lose 0 or 1 at random; the player mixes them. The rate is a multiple of sqrt(8 ln N / T), for which "
    "the regret is at most sqrt(T ln N / 2) whatever the losses. A fixed share of 1e-3 insures against a change "
    "of the best expert, which does not come here.",
    problems=lambda data_dir: [hedge(*game) for game in GAMES],
    entries=[
        Entry(counted(_technique("hedge", "EG on the simplex"))),
        Entry(
            counted(_technique("hedge_fixed_share", "the same, fixed share 1e-3", fixed_share=1e-3))
        ),
    ],
    columns=[
        Column(
            "regret",
            "cumulative loss less that of the best expert, mean over the orders",
            lambda group, runs: f"{statistics.fmean(r.final['regret'] for r in group):.1f}",
        ),
        Column("bound", "sqrt(T ln N / 2)", lambda group, runs: f"{group[0].final['bound']:.1f}"),
    ],
    headline=headline,
    figures=_figures,
    needs=("regret",),
)
