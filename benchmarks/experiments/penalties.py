"""The main job: what a penalty on the gradient norm changes, and what a large learning rate does unasked.

Gradient descent at rate h follows, to first order in h, the loss plus h/4 times the squared gradient norm. The
explicit penalties here have the coefficient that the small rate lacks of the large one's.
"""

import math

import numpy as np

from benchmarks.engine.table import RUN, Table, groups
from benchmarks.experiments.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import PROBLEMS
from benchmarks.problems.classification import NOISE_SCALES
from benchmarks.report import charts, figures
from benchmarks.report.presentation import mean_column, value_column
from benchmarks.report.run_statistics import Interval, bootstrap, paired_difference, value_at
from benchmarks.techniques import TECHNIQUES
from benchmarks.techniques.penalties import COEFFICIENT, LARGE_RATE, SMALL_RATE

ADAM_RATE = 1e-3

# The scale of parameter noise that the table quotes; the figure shows them all.
QUOTED_SCALE = 0.5


def _problems(data_dir):
    return [PROBLEMS["digits" if data_dir is None else "mnist"](data_dir)]


def common_loss(runs: Table) -> float:
    """Returns the lowest training loss that every run reached: there, paths are compared."""
    lowest = [min(curve["train_loss"]) for curve in runs.loc[~runs["diverged"], "curve"]]
    return max(lowest, default=math.nan)


def at_common_loss(group: Table, runs: Table, measure: str) -> np.ndarray:
    """Returns a measure of each seed where its training loss first falls to the common one."""
    level = common_loss(runs)
    return np.array([value_at(c["train_loss"], c[measure], level) for c in group["curve"]])


def _at_noise(group):
    """Returns the accuracy in percent at the quoted noise, by seed."""
    return 100 * group["noise_accuracy"].str[NOISE_SCALES.index(QUOTED_SCALE)].astype(float)


def effects(runs: Table) -> list[tuple[str, dict[str, Interval]]]:
    """Compares every technique and rate with the first, paired by seed.

    Returns:
      Of each measure a title, and by label the difference with its 95 % interval.
    """
    # The first of the entries: gradient descent at the small rate.
    reference, *others = groups(runs).values()
    compared = [
        group
        for group in others
        if len(group) == len(reference)
        and not (group["diverged"].any() or reference["diverged"].any())
    ]
    measures = {
        "test accuracy, change in points": lambda group: 100 * group["test_accuracy"],
        f"the same at parameter noise {QUOTED_SCALE:g}": _at_noise,
        # Compared as logarithms: a half and a double are the same change.
        "‖g_b‖² at equal loss, change in %": lambda group: (
            100 * np.log(at_common_loss(group, runs, "squared_norm_batch"))
        ),
    }
    found = []
    for title, measure in measures.items():
        intervals = {
            group["label"].iloc[0]: paired_difference(measure(group), measure(reference))
            for group in compared
        }
        if "%" in title:
            intervals = {
                label: Interval(*(100 * math.expm1(x / 100) for x in interval))
                for label, interval in intervals.items()
            }
        found.append((title, intervals))
    return found


def headline(runs: Table) -> str:
    """Says what the exact penalty and the large rate changed against the small rate, with intervals."""
    key, large = f"sgd_penalty {SMALL_RATE:g}", f"sgd {LARGE_RATE:g}"
    (_, accuracy), (_, noise), (_, norm) = effects(runs)
    if runs["label"].iloc[0] != f"sgd {SMALL_RATE:g}" or key not in accuracy:
        return f"{', '.join(runs['technique'].unique())} on {runs['about'].iloc[0]}."

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


def _noise_rows(runs):
    kept = runs.loc[~runs["diverged"], [*RUN, "label", "noise_accuracy"]]
    long = kept.assign(x=[list(NOISE_SCALES)] * len(kept)).explode(["noise_accuracy", "x"])
    long = long.astype({"noise_accuracy": float, "x": float})
    rows = charts.spread(long, [*RUN, "label", "x"], "noise_accuracy")
    return rows[["label", "x", "mean", "low", "high"]]


def _figures(runs):
    noise = charts.band(
        runs, _noise_rows(runs), "scale s of the noise: θᵢ (1 + s·N(0, 1))", "test accuracy"
    ).properties(width=2 * figures.WIDTH)
    return [
        Figure(
            "effects",
            f"What each technique changes against {runs['label'].iloc[0]}",
            "Mean over the seeds with its 95 % bootstrap interval, paired by seed: every technique has the same starts "
            "and batches. An interval that crosses the dashed line shows no difference.",
            charts.effects(runs, effects(runs), 0.0),
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
            charts.relative_paths(
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
            charts.curves(
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
            charts.scatter(
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
    # Above an eighth of the first loss all paths still begin alike.
    top, bottom = runs["curve"].iloc[0]["train_loss"][0] / 8, common_loss(runs)
    if not 0 < bottom < top:
        return []
    return [top * (bottom / top) ** (i / 16) for i in range(17)]


def _accuracy(group, runs):
    del runs
    estimate, low, high = bootstrap(100 * group["test_accuracy"])
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def _noise(group, runs):
    del runs
    return f"{_at_noise(group).mean():.1f}"


def _norm_at_common_loss(group, runs):
    return f"{at_common_loss(group, runs, 'squared_norm_batch').mean():.2e}"


def _gradients(group, runs):
    del runs
    gradients, products = group[["gradients_per_step", "products_per_step"]].iloc[0]
    return f"{gradients:.3g} + {products:.3g} Hv" if products else f"{gradients:.3g}"


EXPERIMENT = Experiment(
    name="penalties",
    question="What does a penalty on the gradient norm change?",
    about="Gradient descent with learning rate h follows the loss plus h/4 times the squared norm of its gradient: "
    f"a large rate regularizes by itself. The explicit penalties have the coefficient {COEFFICIENT:.4g} that makes the "
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
        mean_column(
            "µs a step",
            "wall time of a step of one run, all seeds in one program, without compilation",
            "seconds_per_step",
            ".0f",
            scale=1e6,
        ),
        value_column(
            "compile s", "compilation of the program of all its runs", "compile_seconds", ".1f"
        ),
    ],
    headline=headline,
    figures=_figures,
    needs=("test_accuracy", "noise_accuracy"),
)
