"""Do the norms of the weights buy robustness, and robustness to what: to the inputs, or to the parameters?

What is searched is the strength of each technique: the optimizer below them is the same.
"""

import jax
import jax.numpy as jnp
import optax

import optax_igr
from benchmarks.engine.table import Table
from benchmarks.experiments import robustness_charts
from benchmarks.experiments.experiment import Column, Entry, Experiment
from benchmarks.experiments.robustness_choice import (
    QUOTED_RADIUS,
    QUOTED_SCALE,
    RADII,
    SENSES,
    TOLERATED,
    chosen,
    is_at_end,
    quoted,
)
from benchmarks.problems import digits, mnist
from benchmarks.problems.classification import mean_over
from benchmarks.report.run_statistics import paired_difference
from benchmarks.techniques import TECHNIQUES
from benchmarks.techniques.technique import Technique
from benchmarks.techniques.weight_decay import RATE, decayed_by
from optax_igr import diagnostics

# The Jacobian's search and the attack take so many test images; the noise, and the curve of the training loss, so many.
NUM_SEARCHED, NUM_ATTACKED, NUM_NOISY = 32, 256, 1024

END = "*"

_DECAYS = (
    *("l2", "schatten_1", "schatten_2", "schatten_3", "schatten_4"),
    *("spectral", "spectral_ball"),
)
ENTRIES = [
    Entry(Technique("none", lambda h, plan: optax.sgd(h), (RATE,), "gradient descent alone")),
    *(Entry(TECHNIQUES[name]) for name in _DECAYS),
    Entry(
        Technique(
            "gradient_penalty",
            decayed_by(optax_igr.add_gradient_penalty),
            (0.03, 0.1, 0.3, 1.0, 3.0),
            "explicit penalty on the gradient norm",
            settings=("strength",),
        )
    ),
    Entry(
        Technique(
            "large_rate",
            lambda h, plan: optax.sgd(h),
            (0.2, 0.4, 0.8, 1.6, 3.2),
            "a larger learning rate",
        )
    ),
]

# From the weakest strength on. Of other techniques the largest setting is the last, and counts as the strongest.
GRIDS = {entry.technique.name: list(entry.technique.grid) for entry in ENTRIES}


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


def headline(runs: Table) -> str:
    """Says what each chosen technique changed in either robustness, against none."""
    found = {key: quoted(group) for key, group in chosen(runs, GRIDS).items()}
    told = []
    for problem in dict.fromkeys(problem for problem, _ in found):
        none = found.get((problem, "none"))
        verdicts: dict[str, list[str]] = {}
        for (on, name), group in found.items():
            if on != problem or name == "none" or none is None:
                continue
            if len(group) == len(none) > 1:
                verdicts.setdefault(_verdict(group, none), []).append(name)
        texts = [f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items()]
        if texts:
            told.append(f"{problem}: {'; '.join(texts)}.")
    if not told:
        names = dict.fromkeys(name for _, name in found)
        return f"{', '.join(names)} on {runs['about'].iloc[0]}."
    return (
        f"Accuracy under PGD of radius {QUOTED_RADIUS:g} (inputs) and under parameter noise "
        f"{QUOTED_SCALE:g} (parameters), against no regularisation, paired by seed at 95 %. {' '.join(told)}"
    )


def _verdict(group, none):
    signs = []
    for sense in SENSES:
        change = paired_difference(group[sense], none[sense])
        sign = "up" if change.estimate > 0 else "down"
        signs.append(f"{sense} {sign if change.excludes_zero else 'unchanged'}")
    return ", ".join(signs)


def _chosen(group, runs):
    """Returns the chosen seeds of the technique of a row; None where all strengths diverged."""
    del runs
    key = tuple(group[["problem", "technique"]].iloc[0])
    found = chosen(group, GRIDS).get(key)
    return None if found is None else quoted(found)


def _strength(group, runs):
    selected = _chosen(group, runs)
    if selected is None:
        return "diverged"
    mark = END if is_at_end(selected, runs) else ""
    return f"{selected['setting'].iloc[0]:.3g}{mark}"


def _column(title, about, name, spec=".1f", scale=1.0):
    def cell(group, runs):
        selected = _chosen(group, runs)
        return "diverged" if selected is None else format(scale * selected[name].mean(), spec)

    return Column(title, about, cell)


EXPERIMENT = Experiment(
    name="robustness",
    question="Which norm of the weights buys which robustness?",
    about="A Lipschitz bound limits what a change of the input can do; L2 decay, the Schatten norms and the spectral "
    "norm are ever tighter forms of it. The strength of each technique is the strongest that costs at most "
    f"{100 * TOLERATED:g} points of validation accuracy. Robustness to the inputs is accuracy under PGD on the margin, "
    "robustness to the parameters accuracy under multiplicative noise.",
    problems=_problems,
    entries=ENTRIES,
    columns=[
        Column(
            "strength", f"chosen on the validation split; {END} at an end of its grid", _strength
        ),
        _column(
            "test accuracy %",
            "at the end, mean over the seeds",
            "test_accuracy",
            ".2f",
            scale=100,
        ),
        _column(
            "product bound",
            "the product of the layers' spectral norms: the Lipschitz constant is no larger",
            "product_bound",
        ),
        _column(
            "largest Jacobian",
            f"found by ascent from {NUM_SEARCHED} test inputs: the Lipschitz constant is no smaller",
            "largest_jacobian",
        ),
        _column(
            f"PGD {QUOTED_RADIUS:g} %",
            "accuracy under projected ascent on the margin, in the maximum norm",
            "inputs",
        ),
        _column(
            f"noise {QUOTED_SCALE:g} %",
            "accuracy with every parameter times 1 + s N(0, 1)",
            "parameters",
        ),
    ],
    headline=headline,
    figures=lambda runs: robustness_charts.draw(runs, GRIDS),
    row_per_setting=False,
    needs=("product_bound", "pgd_accuracy", "validation_accuracy"),
)
