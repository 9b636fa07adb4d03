"""Do the norms of the weights buy robustness, and robustness to what: to the inputs, or to the parameters?

The number that the runner calls the rate is here the strength of each technique: the optimizer below them is the same.
"""

import statistics

import jax
import jax.numpy as jnp

from benchmarks.engine.records import Record
from benchmarks.experiments import robustness_charts
from benchmarks.experiments.experiment import Column, Entry, Experiment
from benchmarks.experiments.robustness_techniques import (
    QUOTED_RADIUS,
    QUOTED_SCALE,
    RADII,
    RATE,
    TECHNIQUES,
    TOLERATED,
    chosen,
    is_at_end,
    quoted,
)
from benchmarks.problems import digits, mnist
from benchmarks.problems.classification import mean_over
from benchmarks.report import run_statistics as stats
from optax_igr import diagnostics

# The Jacobian's search and the attack take so many test images; the noise, and the curve of the training loss, so many.
NUM_SEARCHED, NUM_ATTACKED, NUM_NOISY = 32, 256, 1024

END = "*"


def _problems(data_dir):
    found = [_with_measures(digits.mlp(num_train=1000, widths=(64, 64)), 700, epochs=30)]
    if data_dir is not None:
        problem = mnist.mlp(data_dir, widths=(64, 64), batch_size=50)
        found.append(_with_measures(problem, 5000, epochs=6))
    return found


def _with_measures(problem, num_train, epochs):
    # The validation split follows the training set and is as large as half of it at most.
    train, validation = (
        jax.tree.map(lambda x, part=part: x[part], problem.train)
        for part in (slice(num_train), slice(num_train, num_train + num_train // 2))
    )

    def apply_fn(params, images):
        return problem.outputs(params, {"image": images})

    def accuracy(params, batch):
        return jnp.mean(jnp.argmax(problem.outputs(params, batch), axis=-1) == batch["label"])

    def attacked(params, train, test):
        del train
        images, labels = (test[name][:NUM_ATTACKED] for name in ("image", "label"))
        return diagnostics.input_robustness(
            apply_fn, params, images, labels, jnp.asarray(RADII), bounds=(0.0, 1.0)
        ).pgd_accuracy

    def head(data):
        return jax.tree.map(lambda x: x[:NUM_NOISY], data)

    def bounds(params, test):
        return diagnostics.lipschitz_bounds(apply_fn, params, test["image"][:NUM_SEARCHED])

    return problem.replace(
        train=train,
        measures={
            "train_loss": lambda p, train, test: problem.measures["train_loss"](
                p, head(train), test
            )
        },
        final_measures={
            "train_loss": problem.final_measures["train_loss"],
            "test_accuracy": problem.final_measures["test_accuracy"],
            "validation_accuracy": lambda p, train, test: mean_over(accuracy, p, validation),
            "product_bound": lambda p, train, test: bounds(p, test).upper,
            "largest_jacobian": lambda p, train, test: bounds(p, test).lower,
            "pgd_accuracy": attacked,
            "noise_accuracy": lambda p, train, test: problem.final_measures["noise_accuracy"](
                p, train, head(test)
            ),
        },
        target=None,
        num_steps=epochs * (num_train // problem.batch_size),
        about=f"{problem.about}; trained on the first {num_train}, validated on the next "
        f"{len(validation['label'])}, SGD at the rate {RATE:g}",
    )


def headline(runs: list[Record]) -> str:
    """Says what each chosen technique changed in either robustness, against none."""
    found = chosen(runs)
    problems = list(dict.fromkeys(problem for problem, _ in found))
    told = []
    for problem in problems:
        none = found.get((problem, "none"))
        verdicts: dict[str, list[str]] = {}
        for (on, name), group in found.items():
            if on == problem and name != "none" and none and len(group) == len(none) > 1:
                verdicts.setdefault(_verdict(group, none), []).append(name)
        texts = [f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items()]
        if texts:
            told.append(f"{problem}: {'; '.join(texts)}.")
    if not told:
        names = dict.fromkeys(name for _, name in found)
        return f"{', '.join(names)} on {runs[0].settings}."
    return (
        f"Accuracy under PGD of radius {QUOTED_RADIUS:g} (inputs) and under parameter noise "
        f"{QUOTED_SCALE:g} (parameters), against no regularisation, paired by seed at 95 %. {' '.join(told)}"
    )


def _verdict(group, none):
    signs = []
    for sense in ("inputs", "parameters"):
        change = stats.paired_difference(*([quoted(r)[sense] for r in g] for g in (group, none)))
        sign = "up" if change.estimate > 0 else "down"
        signs.append(f"{sense} {sign if change.excludes_zero else 'unchanged'}")
    return ", ".join(signs)


def _at_chosen(measure, form):
    def cell(group, runs):
        selected = chosen(runs).get((group[0].problem, group[0].technique))
        if selected is None:
            return "diverged"
        return form.format(statistics.fmean(measure(r) for r in selected))

    return cell


def _strength(group, runs):
    selected = chosen(runs).get((group[0].problem, group[0].technique))
    if selected is None:
        return "diverged"
    return f"{selected[0].learning_rate:.3g}{END if is_at_end(selected, runs) else ''}"


def _column(title, about, measure, form="{:.1f}"):
    return Column(title, about, _at_chosen(measure, form))


EXPERIMENT = Experiment(
    name="robustness",
    question="Which norm of the weights buys which robustness?",
    about="A Lipschitz bound limits what a change of the input can do; L2 decay, the Schatten norms and the spectral "
    "norm are ever tighter forms of it. The strength of each technique is the strongest that costs at most "
    f"{100 * TOLERATED:g} points of validation accuracy. Robustness to the inputs is accuracy under PGD on the margin, "
    "robustness to the parameters accuracy under multiplicative noise.",
    problems=_problems,
    entries=[Entry(technique) for technique in TECHNIQUES],
    columns=[
        Column(
            "strength", f"chosen on the validation split; {END} at an end of its grid", _strength
        ),
        _column(
            "test accuracy %",
            "at the end, mean over the seeds",
            lambda r: 100 * r.final["test_accuracy"],
            "{:.2f}",
        ),
        _column(
            "product bound",
            "the product of the layers' spectral norms: the Lipschitz constant is no larger",
            lambda r: r.final["product_bound"],
        ),
        _column(
            "largest Jacobian",
            f"found by ascent from {NUM_SEARCHED} test inputs: the Lipschitz constant is no smaller",
            lambda r: r.final["largest_jacobian"],
        ),
        _column(
            f"PGD {QUOTED_RADIUS:g} %",
            "accuracy under projected ascent on the margin, in the maximum norm",
            lambda r: quoted(r)["inputs"],
        ),
        _column(
            f"noise {QUOTED_SCALE:g} %",
            "accuracy with every parameter times 1 + s N(0, 1)",
            lambda r: quoted(r)["parameters"],
        ),
    ],
    headline=headline,
    figures=robustness_charts.draw,
    row_per_rate=False,
    needs=("product_bound", "pgd_accuracy", "validation_accuracy"),
)
