"""Should every layer learn at the same rate? Equal, small in front, large in front: each at its own best rate."""

from benchmarks.engine.table import RUN, Table, at_lowest, groups
from benchmarks.experiments.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import digits
from benchmarks.report import charts
from benchmarks.report.presentation import mean_column
from benchmarks.report.run_statistics import paired_difference
from benchmarks.techniques.step_size import LAYER_DECAY, LAYERWISE


def _problems(data_dir):
    # Three layers, as the factors assume.
    problem = digits.mlp(data_dir, widths=(64, 64)).replace(num_steps=600)
    return [problem.measuring("train_loss", "test_loss", "test_accuracy")]


def at_best_rates(runs: Table) -> Table:
    """Keeps the runs of each technique at the rate whose mean test accuracy is the highest."""
    accuracies = runs.groupby(RUN, sort=False)["test_accuracy"].mean()
    return at_lowest(runs, -accuracies, by=["technique"])


def headline(runs: Table) -> str:
    """Compares both orders with equal rates, each at its best rate, paired by seed."""
    best = {name: group for (name,), group in groups(at_best_rates(runs), ["technique"]).items()}
    sentences = []
    for technique, group in best.items():
        # The name has the optimizer, then the order of its rates.
        base, _, name = technique.partition("_")
        equal = best.get(f"{base}_equal")
        if name == "equal" or equal is None or len(equal) != len(group):
            continue
        interval = paired_difference(100 * group["test_accuracy"], 100 * equal["test_accuracy"])
        estimate, low, high = interval
        verdict = "" if interval.excludes_zero else ": no difference that these seeds show"
        sentences.append(
            f"{base}, {name.replace('_', ' ')}: {estimate:+.2f} points of test accuracy [{low:+.2f}, {high:+.2f}] "
            f"against equal rates{verdict}."
        )
    return " ".join(sentences) or "Nothing to compare."


def _figures(runs):
    return [
        Figure(
            "curves",
            "Each at its own best rate",
            "Mean over the seeds, band from the lowest to the highest.",
            charts.curves(
                at_best_rates(runs),
                [
                    ("train_loss", "training loss", "log"),
                    ("test_error", "test error (1 − accuracy)", "log"),
                ],
                ceilings={"test_error": 0.15, "train_loss": 1.0},
            ),
        )
    ]


def _best(group, runs):
    return "best" if group.index[0] in at_best_rates(runs).index else ""


EXPERIMENT = Experiment(
    name="layerwise",
    question="Should every layer learn at the same rate?",
    about=f"The rate of a layer is multiplied by {LAYER_DECAY:g} for each layer behind it (small in front), by "
    f"{1 / LAYER_DECAY:g} (large in front), or by nothing. Each order is searched on the same grid of rates, and the "
    "grid is wide enough for the factors to be made up for.",
    problems=_problems,
    entries=[Entry(technique) for technique in LAYERWISE],
    columns=[
        mean_column("test accuracy", "at the end, mean over the seeds", "test_accuracy", ".4f"),
        mean_column("train loss", "at the end, mean over the seeds", "train_loss", ".2e"),
        Column("best rate", "of the technique, by mean test accuracy", _best),
    ],
    headline=headline,
    figures=_figures,
    needs=("test_accuracy",),
)
