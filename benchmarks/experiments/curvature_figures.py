"""The costs of curvature as a sentence and as charts: what a product and a direction take, in gradients."""

import altair as alt
import numpy as np

from benchmarks.costs import curvature_programs
from benchmarks.costs.curvature_costs import DIRECTIONS, PRODUCTS
from benchmarks.engine.table import Table, groups
from benchmarks.experiments.experiment import Figure
from benchmarks.report import figures


def sentences(runs: Table) -> list[str]:
    """Says what a product costs in each exact mode."""
    exact = runs[
        runs["problem"].isin(PRODUCTS.values())
        & runs["technique"].isin(curvature_programs.EXACT_MODES)
    ]
    return [
        f"Gradient and {problem}, in the time of a gradient: "
        + ", ".join(f"{mode} {time:.2f}" for mode, time in own[["technique", "time"]].values)
        + "."
        for (problem,), own in groups(exact, ["problem"]).items()
    ]


def draw(runs: Table) -> list[Figure]:
    """Draws the costs as dots beside a gradient."""
    found = []
    panels = {
        "products": (
            list(PRODUCTS.values()),
            [
                ("time", "time × a gradient"),
                ("flops", "FLOPs × a gradient"),
                ("memory", "memory × a gradient"),
            ],
            "A gradient and a product with it, in gradients",
            "By the mode of `hvp`. FLOPs and memory are the compiler's own figures.",
        ),
        "directions": (
            [DIRECTIONS],
            [("gradients", "gradients, counted by hand"), ("time", "time × a gradient step")],
            "A step of each technique, in gradients of its batch",
            "Ten batches make the curvature batch and the whole data set, each used once in "
            f"{curvature_programs.CYCLE} steps.",
        ),
    }
    for name, (problems, measures, title, caption) in panels.items():
        # The gradient is the unit: its dot would stand at one.
        own = runs[runs["problem"].isin(problems) & (runs["technique"] != "gradient")]
        if not own.empty:
            found.append(Figure(f"cost_of_{name}", title, caption, _dots(own, measures)))
    return found


def _dots(runs, measures):
    order = list(runs["technique"].unique())
    rows = runs[["problem", "technique", *(name for name, _ in measures)]]
    # What was not measured, or is not finite, has no dot.
    rows = rows.replace([np.inf, -np.inf], np.nan)
    rows = rows.assign(problem=rows["problem"].str.split(", ").str[-1])
    charts = []
    for index, (name, title) in enumerate(measures):
        y = alt.Y(
            "technique:N", sort=order, title=None, axis=alt.Axis(labels=index == 0, ticks=False)
        )
        x = alt.X(f"{name}:Q", title=title, scale=alt.Scale(domainMin=0))
        tips = [
            alt.Tooltip("technique:N"),
            alt.Tooltip("problem:N"),
            alt.Tooltip(f"{name}:Q", format=".3~g"),
        ]
        charts.append(
            alt.Chart(figures.data(rows))
            .mark_point(filled=True, size=110, opacity=0.9)
            .encode(x=x, y=y, color="problem:N", shape="problem:N", tooltip=tips)
            .properties(width=300 if len(measures) > 2 else 400, height=28 * len(order))
        )
    return alt.hconcat(*charts)
