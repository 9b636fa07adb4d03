"""Which continuous path does an optimizer follow?

Each record is a path or a line of errors, not a run of the training loop: `flow_paths` and `flow_errors` list what to
measure, and `flow_charts` draws it. Everything is in float64.
"""

from benchmarks.engine.table import Table, groups
from benchmarks.experiments import flow_charts, flow_errors, flow_paths
from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.flow_errors import DIGITS_RATE, DIGITS_STEPS
from benchmarks.report.presentation import value_column


def headline(runs: Table) -> str:
    """Says to what order the steps follow the flows, and how much nearer a correction comes."""
    by_problem = {problem: own for (problem,), own in groups(runs, ["problem"]).items()}
    slopes = by_problem["one step, tanh network"]
    drift = by_problem["digits"].set_index("technique")["value"]
    # How many times nearer each order comes than gradient flow.
    nearer = [drift["gradient flow"] / x for x in drift.drop("gradient flow")]
    return (
        "One step of gradient descent on a tanh network leaves the modified flow of order 0 to 4 by an error of slope "
        + ", ".join(f"{value:.2f}" for value in slopes["value"])
        + f" (theory {', '.join(f'{value:g}' for value in slopes['theory'])}). On digits, {DIGITS_STEPS} steps at rate "
        f"{DIGITS_RATE:g} end {nearer[0]:.0f}, {nearer[1]:.0f} and {nearer[2]:.0f} times nearer to the flows of order "
        "1, 2 and 3 than to gradient flow."
    )


EXPERIMENT = Experiment(
    name="flows",
    question="Which continuous path does an optimizer follow?",
    about="Gradient descent does not follow gradient flow. It follows a modified flow, a series in the learning rate "
    "that backward error analysis gives to any order: the steps leave the flow of order n by an error that falls with "
    "the power n + 2 of the learning rate in one step, and n + 1 over a fixed time. Momentum and Adam have flows of "
    "their own. Everything is computed in float64; the integrator's own error is measured, at a second tolerance.",
    measurements=[*flow_paths.measurements(), *flow_errors.measurements()],
    columns=[
        value_column("measure", "what the value is", "measure", "s"),
        value_column("value", "as measured", "value", ".6g"),
        value_column("theory", "what backward error analysis predicts", "theory", "g"),
        value_column(
            "integrator's own error",
            "difference of two tolerances of the integrator, the largest along the line; one-step errors are at least "
            "100 times theirs or are not reported",
            "own_error",
            ".1e",
        ),
    ],
    headline=headline,
    figures=flow_charts.draw,
    needs=("measure", "value"),
)
