"""The main job: what a penalty on the gradient norm changes, and what a large learning rate does unasked.

Gradient descent at rate h follows, to first order in h, the loss plus h/4 times the squared gradient norm. The
explicit penalties here have the coefficient that the small rate lacks of the large one's.
"""

import math
import statistics

from benchmarks.engine.records import Record, groups
from benchmarks.experiments.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import PROBLEMS
from benchmarks.problems.classification import NOISE_SCALES
from benchmarks.report import figures
from benchmarks.report import run_statistics as stats
from benchmarks.report.page import mean_column
from benchmarks.techniques.own import COEFFICIENT, LARGE_RATE, SMALL_RATE, TECHNIQUES

ADAM_RATE = 1e-3

# The scale of parameter noise that the table quotes; the figure shows them all.
QUOTED_SCALE = 0.5


def _problems(data_dir):
    return [PROBLEMS["digits" if data_dir is None else "mnist"](data_dir)]


def common_loss(runs: list[Record]) -> float:
    """Returns the lowest training loss that every run reached: there, paths are compared."""
    lowest = [min(r.curve["train_loss"]) for r in runs if not r.diverged]
    return max(lowest, default=math.nan)


def at_common_loss(group: list[Record], runs: list[Record], measure: str) -> list[float]:
    """Returns a measure of each seed where its training loss first falls to the common one."""
    level = common_loss(runs)
    return [stats.value_at(r.curve["train_loss"], r.curve[measure], level) for r in group]


def effects(runs: list[Record]) -> list[tuple[str, dict[tuple[str, float], stats.Interval]]]:
    """Compares every technique and rate with the first, paired by seed.

    Returns:
      Of each measure a title, and by technique and rate the difference with its 95 % interval.
    """
    found = {(technique, rate): group for (_, technique, rate), group in groups(runs).items()}
    reference = next(iter(found.values()))
    noise = NOISE_SCALES.index(QUOTED_SCALE)
    measures = {
        "test accuracy, change in points": lambda g: [100 * r.final["test_accuracy"] for r in g],
        f"the same at parameter noise {QUOTED_SCALE:g}": lambda g: [
            100 * r.final["noise_accuracy"][noise] for r in g
        ],
        "‖g_b‖² at equal loss, change in %": lambda g: [
            100 * math.log(x) for x in at_common_loss(g, runs, "squared_norm_batch")
        ],
    }
    compared = []
    for title, measure in measures.items():
        intervals = {
            key: stats.paired_difference(measure(group), measure(reference))
            for key, group in found.items()
            if group is not reference
            and len(group) == len(reference)
            and not any(r.diverged for r in (*group, *reference))
        }
        if "%" in title:
            intervals = {
                key: stats.Interval(*(100 * math.expm1(x / 100) for x in interval))
                for key, interval in intervals.items()
            }
        compared.append((title, intervals))
    return compared


def headline(runs: list[Record]) -> str:
    """Says what the exact penalty and the large rate changed against the small rate, with intervals."""
    key, large = ("sgd_penalty", SMALL_RATE), ("sgd", LARGE_RATE)
    first = next(iter(groups(runs)))
    (_, accuracy), (_, noise), (_, norm) = effects(runs)
    if first[1:] != ("sgd", SMALL_RATE) or key not in accuracy:
        names = ", ".join(dict.fromkeys(r.technique for r in runs))
        return f"{names} on {runs[0].settings}."

    def says(interval, unit, digits=2):
        estimate, low, high = (f"{x:+.{digits}f}" for x in interval)
        verdict = "" if interval.excludes_zero else ", not distinguishable from none"
        return f"{estimate} {unit} [{low}, {high}]{verdict}"

    sentence = (
        f"Against SGD at the rate {SMALL_RATE:g} alone, the penalty changes test accuracy by "
        f"{says(accuracy[key], 'points')}, accuracy under parameter noise by "
        f"{says(noise[key], 'points')}, and the mean squared gradient of a batch at the same training loss by "
        f"{says(norm[key], '%', 0)}."
    )
    if large in accuracy:
        sentence += (
            f" The rate {LARGE_RATE:g} with no penalty changes them by {says(accuracy[large], 'points')}, "
            f"{says(noise[large], 'points')} and {says(norm[large], '%', 0)}."
        )
    return sentence


def _figures(runs):
    rows = []
    names = figures.labels(runs)
    for (_, technique, rate), group in groups(runs).items():
        for i, scale in enumerate(NOISE_SCALES):
            values = [r.final["noise_accuracy"][i] for r in group if not r.diverged]
            if values:
                label = names[technique, rate]
                rows.append({"label": label, "x": scale} | figures.spread(values))
    noise = figures.band(
        runs, rows, "scale s of the noise: θᵢ (1 + s·N(0, 1))", "test accuracy"
    ).properties(width=2 * figures.WIDTH)
    return [
        Figure(
            "effects",
            f"What each technique changes against {names[next(iter(groups(runs)))[1:]]}",
            "Mean over the seeds with its 95 % bootstrap interval, paired by seed: every technique has the same starts "
            "and batches. An interval that crosses the dashed line shows no difference.",
            figures.effects(runs, effects(runs), 0.0),
        ),
        Figure(
            "robustness",
            "Test accuracy under noise on the parameters",
            "Each parameter is multiplied by 1 + s times a standard normal number; the mean of several draws.",
            noise,
        ),
        Figure(
            "paths",
            "At the same loss: which norm did the penalty lower?",
            "Training runs from left to right; a ratio below one is flatter than the first technique at the same loss. "
            "A penalty within the batch acts on the mean squared gradient of the batches (middle), one within the "
            "micro-batches on that of their parts (right), and extrapolation from the last batch on the full gradient "
            "alone (left). The full gradient of a constant rate is mostly the noise of its own iterates, and larger "
            "steps make more of it.",
            figures.relative_paths(
                runs,
                [
                    ("squared_norm_full", "‖E g‖², ratio"),
                    ("squared_norm_batch", "mean ‖g_b‖² over batches, ratio"),
                    ("squared_norm_microbatch", "mean ‖g_b‖² over micro-batches, ratio"),
                ],
                along="train_loss",
                along_title="training loss",
                levels=_levels(runs),
            ),
        ),
        Figure(
            "curves",
            "Loss, accuracy and slope over the steps",
            "The slope is the norm of the full training gradient.",
            figures.curves(
                runs,
                [
                    ("train_loss", "training loss", "log"),
                    ("test_error", "test error (1 − accuracy)", "log"),
                    ("slope", "slope ‖∇L‖", "log"),
                ],
                ceilings={"test_error": 0.15, "train_loss": 1.0},
            ),
        ),
        Figure(
            "flatness",
            "Does a smaller gradient go with a higher accuracy?",
            "R_IG is the squared norm of the full training gradient over the number of parameters, at the end. "
            "A dot is a seed, a diamond the mean. A smaller loss has a smaller gradient too: compare with the first "
            "figure.",
            figures.scatter(
                runs,
                "mean_squared_gradient",
                "test_accuracy",
                "R_IG = ‖∇L‖² / m at the end",
                "test accuracy at the end",
                x_scale="log",
            ),
        ),
    ]


def _levels(runs):
    """Returns losses from an eighth of that at the start down to the common one."""
    top, bottom = runs[0].curve["train_loss"][0] / 8, common_loss(runs)
    if not 0 < bottom < top:
        return []
    return [top * (bottom / top) ** (i / 16) for i in range(17)]


def _accuracy(group, runs):
    del runs
    estimate, low, high = stats.bootstrap([100 * r.final["test_accuracy"] for r in group])
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def _noise(group, runs):
    del runs
    index = NOISE_SCALES.index(QUOTED_SCALE)
    return f"{100 * statistics.fmean(r.final['noise_accuracy'][index] for r in group):.1f}"


def _norm_at_common_loss(group, runs):
    return f"{statistics.fmean(at_common_loss(group, runs, 'squared_norm_batch')):.2e}"


def _gradients(group, runs):
    del runs
    products = group[0].products_per_step
    text = f"{group[0].gradients_per_step:.3g}"
    return f"{text} + {products:.3g} Hv" if products else text


EXPERIMENT = Experiment(
    name="penalties",
    question="What does a penalty on the gradient norm change?",
    about="Gradient descent with learning rate h follows the loss plus h/4 times the squared norm of its gradient: "
    f"a large rate regularises by itself. The explicit penalties have the coefficient {COEFFICIENT:.4g} that makes the "
    f"total at the small rate {SMALL_RATE:g} equal to that at the large rate {LARGE_RATE:g}. The theory predicts "
    "smaller gradients at the same loss, better test accuracy, and parameters that bear more noise.",
    problems=_problems,
    entries=[
        Entry(TECHNIQUES["sgd"], (SMALL_RATE, LARGE_RATE)),
        Entry(TECHNIQUES["sgd_penalty"], (SMALL_RATE,)),
        Entry(TECHNIQUES["sgd_microbatch_penalty"], (SMALL_RATE,)),
        Entry(TECHNIQUES["sgd_extrapolated"], (SMALL_RATE,)),
        Entry(TECHNIQUES["sgd_decayed"], (LARGE_RATE,)),
        Entry(TECHNIQUES["sgd_decayed_hold_igr"], (LARGE_RATE,)),
        Entry(TECHNIQUES["adam"], (ADAM_RATE,)),
        Entry(TECHNIQUES["adam_penalty"], (ADAM_RATE,)),
    ],
    columns=[
        Column(
            "test accuracy %",
            "at the end: mean over the seeds and its 95 % bootstrap interval",
            _accuracy,
        ),
        mean_column("train loss", "at the end, mean over the seeds", "train_loss", ".2e"),
        mean_column("test loss", "at the end, mean over the seeds", "test_loss", ".4f"),
        mean_column(
            "R_IG",
            "‖∇L‖² / m on the whole training set, at the end",
            "mean_squared_gradient",
            ".1e",
        ),
        mean_column("slope", "‖∇L‖ on the whole training set, at the end", "slope", ".1e"),
        Column(
            "‖g_b‖² at equal loss",
            "mean squared gradient of a batch where the training loss first falls to the lowest "
            "value that all runs reached",
            _norm_at_common_loss,
        ),
        Column(
            f"accuracy % at noise {QUOTED_SCALE:g}",
            "test accuracy with every parameter times 1 + s N(0, 1), mean over draws and seeds",
            _noise,
        ),
        Column(
            "gradients a step",
            "counted gradients of a batch, and Hessian-vector products (Hv, about two gradients each)",
            _gradients,
        ),
        Column(
            "µs a step",
            "wall time of a step of one run, all seeds in one program, without compilation",
            lambda group, runs: f"{1e6 * statistics.fmean(r.seconds_per_step for r in group):.0f}",
        ),
        Column(
            "compile s",
            "compilation of the program of all its runs",
            lambda group, runs: f"{group[0].compile_seconds:.1f}",
        ),
    ],
    headline=headline,
    figures=_figures,
    needs=("test_accuracy", "noise_accuracy"),
)
