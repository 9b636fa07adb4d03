"""Do the norms of the weights buy robustness, and robustness to what: to the inputs, or to the parameters?

The number that the runner calls the rate is here the strength of each technique: the optimizer below them is the same.
A strength is chosen on a validation split: the strongest that costs at most half a point of its accuracy.
"""

import functools
import statistics

import altair as alt
import jax
import jax.numpy as jnp
import optax

import optax_igr
from benchmarks import statistics as stats
from benchmarks.experiment import Column, Entry, Experiment, Figure
from benchmarks.problems import digits, mnist
from benchmarks.problems.classification import NOISE_SCALES, mean_over
from benchmarks.records import Record, groups
from benchmarks.technique import Technique
from optax_igr import diagnostics

RATE = 0.1
TOLERATED = 0.005

# The noise and the radius that the table quotes; the figures show them all.
QUOTED_SCALE = 0.5
RADII = (0.0, 0.02, 0.05, 0.1, 0.15)
QUOTED_RADIUS = 0.1

# The Jacobian's search and the attack take so many test images.
NUM_SEARCHED, NUM_ATTACKED = 64, 512


def _decayed(decay):
    return lambda strength, num_steps: optax.chain(decay(strength), optax.sgd(RATE))


def _schatten(gram_steps):
    return functools.partial(optax_igr.add_schatten_decay, gram_steps=gram_steps)


def _in_ball(radius, num_steps):
    del num_steps
    ball = functools.partial(optax_igr.projection_spectral_ball, radius=radius)
    return optax.chain(optax.sgd(RATE), optax_igr.keep_params_in(ball))


# Of every technique its strengths, from the weakest on.
TECHNIQUES = [
    Technique("none", lambda h, n: optax.sgd(h), (RATE,), "gradient descent alone"),
    Technique("l2", _decayed(_schatten(0)), (3e-4, 1e-3, 3e-3, 1e-2), "L2 decay"),
    *(
        Technique(
            f"schatten_{t}",
            _decayed(_schatten(t)),
            (1e-3, 3e-3, 1e-2, 3e-2),
            f"decay of the Schatten norm of exponent {2 ** (t + 1)}",
        )
        for t in (1, 2, 3, 4)
    ),
    Technique(
        "spectral",
        _decayed(optax_igr.add_spectral_decay),
        (1e-3, 3e-3, 1e-2, 3e-2),
        "decay of the spectral norm",
    ),
    Technique("spectral_ball", _in_ball, (4.0, 3.0, 2.0, 1.5), "projection onto a spectral norm"),
    Technique(
        "gradient_penalty",
        _decayed(optax_igr.add_gradient_penalty),
        (0.01, 0.03, 0.1, 0.3),
        "explicit penalty on the gradient norm",
    ),
    Technique("large_rate", lambda h, n: optax.sgd(h), (0.2, 0.4, 0.8), "a larger learning rate"),
]


def _problems(data_dir):
    if data_dir is None:
        problem = digits.mlp(num_train=1000, widths=(64, 64))
        num_train, epochs = 700, 50
    else:
        problem = mnist.mlp(data_dir, widths=(128, 128), batch_size=50)
        num_train, epochs = 5000, 20
    # The validation split follows the training set and is as large as half of it at most.
    train, validation = (
        jax.tree.map(lambda x, part=part: x[part], problem.train)
        for part in (slice(num_train), slice(num_train, num_train + num_train // 2))
    )
    return [_with_measures(problem.replace(train=train), validation, epochs)]


def _with_measures(problem, validation, epochs):
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

    def bounds(params, test):
        return diagnostics.lipschitz_bounds(apply_fn, params, test["image"][:NUM_SEARCHED])

    measures = {
        name: problem.measures[name] for name in ("train_loss", "test_loss", "test_accuracy")
    }
    final = {
        name: problem.final_measures[name]
        for name in ("train_loss", "test_accuracy", "noise_accuracy")
    }
    return problem.replace(
        measures=measures,
        final_measures=final
        | {
            "validation_accuracy": lambda p, train, test: mean_over(accuracy, p, validation),
            "product_bound": lambda p, train, test: bounds(p, test).upper,
            "largest_jacobian": lambda p, train, test: bounds(p, test).lower,
            "pgd_accuracy": attacked,
        },
        num_steps=epochs * problem.steps_per_epoch,
        about=f"{problem.about}; trained on the first {problem.num_examples}, validated on "
        f"{len(validation['label'])}, SGD at the rate {RATE:g}",
    )


def chosen(runs: list[Record]) -> dict[str, list[Record]]:
    """Returns the seeds of each technique at its strongest strength that validation tolerates."""
    order = {technique.name: technique.learning_rates for technique in TECHNIQUES}
    strengths: dict[str, list[list[Record]]] = {}
    for (_, name, _), group in groups(runs).items():
        if not any(r.diverged for r in group):
            strengths.setdefault(name, []).append(group)

    def validated(group):
        return statistics.fmean(r.final["validation_accuracy"] for r in group)

    found = {}
    for name, candidates in strengths.items():
        best = max(map(validated, candidates))
        tolerated = [g for g in candidates if validated(g) >= best - TOLERATED]
        place = {strength: i for i, strength in enumerate(order.get(name, ()))}
        found[name] = max(tolerated, key=lambda g: place.get(g[0].learning_rate, 0))
    return found


def _quoted(record):
    return {
        "inputs": 100 * record.final["pgd_accuracy"][RADII.index(QUOTED_RADIUS)],
        "parameters": 100 * record.final["noise_accuracy"][NOISE_SCALES.index(QUOTED_SCALE)],
    }


def headline(runs: list[Record]) -> str:
    """Says what each chosen technique changed in either robustness, against none."""
    found = chosen(runs)
    if "none" not in found or len(found) < 2:
        return f"{', '.join(found)} on {runs[0].settings}."
    verdicts: dict[str, list[str]] = {}
    for name, group in found.items():
        if name == "none" or len(group) != len(found["none"]):
            continue
        signs = []
        for sense in ("inputs", "parameters"):
            pairs = ([_quoted(r)[sense] for r in g] for g in (group, found["none"]))
            change = stats.paired_difference(*pairs)
            sign = "up" if change.estimate > 0 else "down"
            signs.append(f"{sense} {sign}" if change.excludes_zero else f"{sense} unchanged")
        verdicts.setdefault(", ".join(signs), []).append(name)
    told = "; ".join(f"{', '.join(names)}: {verdict}" for verdict, names in verdicts.items())
    return (
        f"Accuracy under PGD of radius {QUOTED_RADIUS:g} (inputs) and under parameter noise "
        f"{QUOTED_SCALE:g} (parameters), against no regularisation, paired by seed at 95 %: {told}."
    )


def _figures(runs):
    found = chosen(runs)
    names = list(found)
    rows = [
        {"technique": name, "seed": r.seed} | _quoted(r)
        for name, group in found.items()
        for r in group
    ]
    colour = alt.Color("technique:N", sort=names, scale=alt.Scale(domain=names, scheme="tableau10"))
    base = alt.Chart(alt.Data(values=rows)).encode(color=colour)
    axes = {
        "x": alt.X("parameters:Q", title=f"accuracy % at parameter noise {QUOTED_SCALE:g}").scale(
            zero=False
        ),
        "y": alt.Y("inputs:Q", title=f"accuracy % under PGD of radius {QUOTED_RADIUS:g}").scale(
            zero=False
        ),
    }
    means = {name: f"mean({axis.shorthand.removesuffix(':Q')}):Q" for name, axis in axes.items()}
    agreement = base.mark_circle(opacity=0.4).encode(**axes) + base.mark_point(
        shape="diamond", size=160, filled=True
    ).encode(x=alt.X(means["x"]), y=alt.Y(means["y"]))
    return [
        Figure(
            "agreement",
            "Where the two senses of robustness agree, and where they part",
            "Each technique at its chosen strength; a dot is a seed, a diamond the mean. Up is more robust to the "
            "inputs, right to the parameters: what lies up and left of `none` buys the one with the other.",
            agreement.properties(width=420, height=320),
        ),
        Figure(
            "curves",
            "Accuracy against the radius of the attack, and against the scale of the noise",
            "Mean over the seeds, at the chosen strengths.",
            alt.hconcat(
                _curve(found, "pgd_accuracy", RADII, "radius of PGD, maximum norm", colour),
                _curve(
                    found, "noise_accuracy", NOISE_SCALES, "scale of the parameter noise", colour
                ),
            ),
        ),
    ]


def _curve(found, measure, xs, title, colour):
    rows = [
        {
            "technique": name,
            "x": x,
            "accuracy": statistics.fmean(r.final[measure][i] for r in group),
        }
        for name, group in found.items()
        for i, x in enumerate(xs)
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("x:Q", title=title),
            y=alt.Y("accuracy:Q", title="test accuracy").scale(zero=False),
            color=colour,
        )
        .properties(width=330, height=280)
    )


def _at_chosen(measure, form):
    def cell(group, runs):
        selected = chosen(runs).get(group[0].technique)
        if selected is None:
            return "diverged"
        return form.format(statistics.fmean(measure(r) for r in selected))

    return cell


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
        _column("strength", "chosen on the validation split", lambda r: r.learning_rate, "{:.3g}"),
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
            lambda r: _quoted(r)["inputs"],
        ),
        _column(
            f"noise {QUOTED_SCALE:g} %",
            "accuracy with every parameter times 1 + s N(0, 1)",
            lambda r: _quoted(r)["parameters"],
        ),
    ],
    headline=headline,
    figures=_figures,
    row_per_rate=False,
)
