"""Prediction with expert advice: the regret of EG on the simplex beside its bound."""

import altair as alt

from benchmarks.engine.table import RUN, Table, groups
from benchmarks.experiments.experiment import Entry, Experiment, Figure
from benchmarks.problems.counted import with_counts
from benchmarks.problems.online import hedge
from benchmarks.report import charts, figures
from benchmarks.report.presentation import mean_column, value_column
from benchmarks.techniques import TECHNIQUES
from benchmarks.techniques.counting import INCURRED, counting_losses
from benchmarks.techniques.geometry import MULTIPLES

GAMES = ((2, 1000), (10, 1000), (1000, 5000))


def headline(runs: Table) -> str:
    """Says how close the regret comes to its bound at the learning rate of the theorem."""
    by_theory = runs[(runs["technique"] == "hedge") & (runs["setting"] == 1.0)]
    parts = [
        f"{group['regret'].mean():.1f} of {group['bound'].iloc[0]:.1f} for {group['about'].iloc[0]}"
        for group in groups(by_theory).values()
    ]
    if not parts:
        return "No run is at the learning rate of the theorem, a multiple of 1."
    return f"Regret at the learning rate of the theorem, and its bound: {'; '.join(parts)}."


def _figures(runs):
    hue, dash = figures.style_of(list(runs["technique"].unique()))
    shares = charts.spread(
        # The regret as a share of its bound, so that games of all sizes have one axis.
        runs.assign(share=runs["regret"] / runs["bound"]),
        [*RUN, "setting"],
        "share",
    ).rename(columns={"technique": "label", "setting": "x"})
    panels = []
    for (problem,), rows in groups(shares, ["problem"]).items():
        # The name of a game has its sizes.
        _, experts, steps = problem.split("_")
        line = (
            alt.Chart(
                figures.data(rows[["label", "x", "mean", "low", "high"]]),
                title=f"{experts} experts, {steps} steps",
            )
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
            alt.Chart(figures.data([{"bound": 1.0}]))
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
    entries=[Entry(TECHNIQUES["hedge"]), Entry(TECHNIQUES["hedge_fixed_share"])],
    columns=[
        mean_column(
            "regret",
            "cumulative loss less that of the best expert, mean over the orders",
            "regret",
            ".1f",
        ),
        value_column("bound", "sqrt(T ln N / 2)", "bound", ".1f"),
    ],
    headline=headline,
    figures=_figures,
    needs=("regret",),
    adapt_technique=lambda technique, problem: counting_losses(technique),
    adapt_problem=lambda problem: with_counts(problem, INCURRED),
)
