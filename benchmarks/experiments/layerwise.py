"""Should every layer learn at the same rate? Equal, small in front, large in front: each at its own best rate."""

import statistics
from typing import Any

import optax

import optax_igr
from benchmarks.engine.records import Record, groups
from benchmarks.experiments.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import digits
from benchmarks.report import figures
from benchmarks.report import run_statistics as stats
from benchmarks.report.page import mean_column
from benchmarks.techniques.technique import ADAM_RATES, SGD_RATES, Technique

# The layers of the fully connected problems; the front of three learns at 0.4² = 0.16 of the rate, or at 6.25 of it.
NUM_LAYERS = 3
DECAY = 0.4

DECAYS = {"equal": 1.0, "small_in_front": DECAY, "large_in_front": 1 / DECAY}


def depth(path: Any) -> int:
    """Returns the index of the layer in the path of a parameter of `MLP`."""
    return next(int(part) for part in map(_key, path) if str(part).isdigit())


def _key(entry: Any) -> Any:
    return getattr(entry, "key", getattr(entry, "idx", None))


def _problems(data_dir):
    problem = digits.mlp(data_dir, widths=(64, 64)).replace(num_steps=600)
    return [problem.measuring("train_loss", "test_loss", "test_accuracy")]


def _technique(base, name, make, rates):
    def layerwise(learning_rate, num_steps):
        del num_steps
        factors = optax_igr.layerwise_decay(DECAYS[name], depth, NUM_LAYERS)
        return optax.chain(make(learning_rate), factors)

    words = name.replace("_", " ")
    return Technique(f"{base}_{name}", layerwise, rates, f"{base}, rates {words}")


ENTRIES = [
    Entry(_technique(base, name, make, rates))
    for base, make, rates in (("sgd", optax.sgd, SGD_RATES), ("adam", optax.adam, ADAM_RATES))
    for name in DECAYS
]


def best_groups(runs: list[Record]) -> dict[str, list[Record]]:
    """Returns, by technique, the runs at the rate whose mean test accuracy is the highest."""
    best: dict[str, list[Record]] = {}
    for (_, technique, _), group in groups(runs).items():
        if technique not in best or _accuracy(group) > _accuracy(best[technique]):
            best[technique] = group
    return best


def _accuracy(group):
    return statistics.fmean(r.final["test_accuracy"] for r in group)


def headline(runs: list[Record]) -> str:
    """Compares both orders with equal rates, each at its best rate, paired by seed."""
    best = best_groups(runs)
    sentences = []
    for technique, group in best.items():
        base, _, name = technique.partition("_")
        equal = best.get(f"{base}_equal")
        if name == "equal" or equal is None or len(equal) != len(group):
            continue
        interval = stats.paired_difference(
            [100 * r.final["test_accuracy"] for r in group],
            [100 * r.final["test_accuracy"] for r in equal],
        )
        estimate, low, high = interval
        verdict = "" if interval.excludes_zero else ": no difference that these seeds show"
        sentences.append(
            f"{base}, {name.replace('_', ' ')}: {estimate:+.2f} points of test accuracy [{low:+.2f}, {high:+.2f}] "
            f"against equal rates{verdict}."
        )
    return " ".join(sentences) or "Nothing to compare."


def _figures(runs):
    shown = [r for group in best_groups(runs).values() for r in group]
    return [
        Figure(
            "curves",
            "Each at its own best rate",
            "Mean over the seeds, band from the lowest to the highest.",
            figures.curves(
                shown,
                [
                    ("train_loss", "training loss", "log"),
                    ("test_error", "test error (1 − accuracy)", "log"),
                ],
                ceilings={"test_error": 0.15, "train_loss": 1.0},
            ),
        )
    ]


def _best(group, runs):
    return "best" if best_groups(runs)[group[0].technique] == group else ""


EXPERIMENT = Experiment(
    name="layerwise",
    question="Should every layer learn at the same rate?",
    about=f"The rate of a layer is multiplied by {DECAY:g} for each layer behind it (small in front), by "
    f"{1 / DECAY:g} (large in front), or by nothing. Each order is searched on the same grid of rates, and the grid is "
    "wide enough for the factors to be made up for.",
    problems=_problems,
    entries=ENTRIES,
    columns=[
        mean_column("test accuracy", "at the end, mean over the seeds", "test_accuracy", ".4f"),
        mean_column("train loss", "at the end, mean over the seeds", "train_loss", ".2e"),
        Column("best rate", "of the technique, by mean test accuracy", _best),
    ],
    headline=headline,
    figures=_figures,
    needs=("test_accuracy",),
)
