"""Do the norms of the weights buy robustness, and robustness to what: to the inputs, or to the parameters?

The number that the runner calls the rate is here the strength of each technique: the optimizer below them is the same.
A strength is chosen on a validation split: the strongest that costs at most half a point of its accuracy. One at the
end of its grid is marked: a longer grid might choose another.
"""

import functools
import statistics

import altair as alt
import jax
import jax.numpy as jnp
import optax

import optax_igr
from benchmarks import figures
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
RADII = (0.0, 0.05, 0.1, 0.15)
QUOTED_RADIUS = 0.1

# The Jacobian's search and the attack take so many test images; the noise, and the curve of the training loss, so many.
NUM_SEARCHED, NUM_ATTACKED, NUM_NOISY = 32, 256, 1024

# A figure follows a technique over the strengths that cost at most this much of validation accuracy.
SHOWN = 0.02

END = "*"


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
    Technique("l2", _decayed(_schatten(0)), (1e-3, 3e-3, 1e-2, 3e-2, 0.1), "L2 decay"),
    *(
        Technique(
            f"schatten_{t}",
            _decayed(_schatten(t)),
            (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),
            f"decay of the Schatten norm of exponent {2 ** (t + 1)}",
        )
        for t in (1, 2, 3, 4)
    ),
    Technique(
        "spectral",
        _decayed(optax_igr.add_spectral_decay),
        (3e-3, 1e-2, 3e-2, 0.1, 0.3),
        "decay of the spectral norm",
    ),
    Technique(
        "spectral_ball", _in_ball, (4.0, 3.0, 2.0, 1.5, 1.0), "projection onto a spectral norm"
    ),
    Technique(
        "gradient_penalty",
        _decayed(optax_igr.add_gradient_penalty),
        (0.03, 0.1, 0.3, 1.0, 3.0),
        "explicit penalty on the gradient norm",
    ),
    Technique(
        "large_rate", lambda h, n: optax.sgd(h), (0.2, 0.4, 0.8, 1.6, 3.2), "a larger learning rate"
    ),
]


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


def validated(group: list[Record]) -> float:
    """Returns the mean validation accuracy of the seeds."""
    return statistics.fmean(r.final["validation_accuracy"] for r in group)


def by_technique(runs: list[Record]) -> dict[tuple[str, str], list[list[Record]]]:
    """Returns the seeds of each strength that did not diverge, from the weakest on, by problem and technique."""
    order = {technique.name: list(technique.learning_rates) for technique in TECHNIQUES}
    found: dict[tuple[str, str], list[list[Record]]] = {}
    for (problem, name, _), group in groups(runs).items():
        if not any(r.diverged for r in group):
            found.setdefault((problem, name), []).append(group)

    def place(group):
        grid, strength = order.get(group[0].technique, []), group[0].learning_rate
        return grid.index(strength) if strength in grid else -1

    return {key: sorted(candidates, key=place) for key, candidates in found.items()}


def chosen(runs: list[Record]) -> dict[tuple[str, str], list[Record]]:
    """Returns the seeds of each problem and technique at the strongest strength that validation tolerates."""
    found = {}
    for key, candidates in by_technique(runs).items():
        least = max(map(validated, candidates)) - TOLERATED
        found[key] = [group for group in candidates if validated(group) >= least][-1]
    return found


def is_at_end(group: list[Record], runs: list[Record]) -> bool:
    """Says whether a chosen strength is the weakest or the strongest of several that were run."""
    first = group[0]
    strengths = [
        r.learning_rate
        for r in runs
        if (r.problem, r.technique, r.seed) == (first.problem, first.technique, first.seed)
    ]
    return len(strengths) > 1 and first.learning_rate in (min(strengths), max(strengths))


def _quoted(record):
    return {
        "inputs": 100 * record.final["pgd_accuracy"][RADII.index(QUOTED_RADIUS)],
        "parameters": 100 * record.final["noise_accuracy"][NOISE_SCALES.index(QUOTED_SCALE)],
    }


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
        change = stats.paired_difference(*([_quoted(r)[sense] for r in g] for g in (group, none)))
        sign = "up" if change.estimate > 0 else "down"
        signs.append(f"{sense} {sign if change.excludes_zero else 'unchanged'}")
    return ", ".join(signs)


def _figures(runs):
    names = list(dict.fromkeys(r.technique for r in runs))
    problems = list(dict.fromkeys(r.problem for r in runs))
    style = figures.named_style(names)
    return [
        Figure(
            "agreement",
            "Where the two senses of robustness agree, and where they part",
            "A line follows a technique from its weakest strength on, while it costs at most "
            f"{100 * SHOWN:g} points of validation accuracy, a dot the mean over the seeds; a diamond is the chosen "
            "strength, its cross the least and the greatest seed. The dashed lines meet at `none`. Up and right of it "
            "both senses agree; up and left, a technique buys robustness to the inputs with that to the parameters.",
            alt.hconcat(*(_agreement(runs, problem, style[0]) for problem in problems)),
        ),
        Figure(
            "curves",
            "Accuracy against the radius of the attack, and against the scale of the noise",
            "Mean over the seeds, at the chosen strengths.",
            alt.vconcat(*(_curves(runs, problem, style) for problem in problems)),
        ),
    ]


def _agreement(runs, problem, colour):
    found = {name: group for (on, name), group in chosen(runs).items() if on == problem}
    paths = []
    for (on, name), candidates in by_technique(runs).items():
        if on == problem:
            best = max(map(validated, candidates))
            shown = [group for group in candidates if validated(group) >= best - SHOWN]
            paths += [_mean_row(name, group) | {"order": i} for i, group in enumerate(shown)]
    marks = [_mean_row(name, group) | _ends(group) for name, group in found.items()]
    axis = alt.Axis(tickCount=6)
    x = alt.X("parameters:Q", title=f"accuracy % at parameter noise {QUOTED_SCALE:g}", axis=axis)
    y = alt.Y("inputs:Q", title=f"accuracy % under PGD of radius {QUOTED_RADIUS:g}")
    tooltip = ["label:N", "strength:Q", "parameters:Q", "inputs:Q", "accuracy:Q"]
    path = (
        alt.Chart(alt.Data(values=paths))
        .mark_line(point=alt.OverlayMarkDef(size=18), strokeWidth=1, opacity=0.6)
        .encode(x=x.scale(zero=False), y=y.scale(zero=False), color=colour, order="order:Q")
    )
    base = alt.Chart(alt.Data(values=marks)).encode(color=colour, tooltip=tooltip)
    layers = [
        path,
        base.mark_rule(opacity=0.5).encode(x="parameters_low:Q", x2="parameters_high:Q", y=y),
        base.mark_rule(opacity=0.5).encode(y="inputs_low:Q", y2="inputs_high:Q", x=x),
        base.mark_point(shape="diamond", size=150, filled=True, opacity=1).encode(x=x, y=y),
        base.mark_text(align="left", dx=9, dy=-9, fontSize=11).encode(x=x, y=y, text="label:N"),
    ]
    if "none" in found:
        none = alt.Chart(alt.Data(values=[_mean_row("none", found["none"])]))
        cross = {"color": "#777", "strokeDash": [4, 3]}
        layers = [none.mark_rule(**cross).encode(x=x), none.mark_rule(**cross).encode(y=y), *layers]
    return alt.layer(*layers).properties(width=470, height=370, title=problem)


def _mean_row(name, group):
    means = {
        sense: statistics.fmean(_quoted(r)[sense] for r in group) for sense in _quoted(group[0])
    }
    accuracy = 100 * statistics.fmean(r.final["test_accuracy"] for r in group)
    return {"label": name, "strength": group[0].learning_rate, "accuracy": accuracy} | means


def _ends(group):
    return {
        f"{sense}_{end}": pick(_quoted(r)[sense] for r in group)
        for sense in _quoted(group[0])
        for end, pick in (("low", min), ("high", max))
    }


def _curves(runs, problem, style):
    found = {name: group for (on, name), group in chosen(runs).items() if on == problem}
    return alt.hconcat(
        _curve(found, "pgd_accuracy", RADII, f"{problem}: radius of PGD, maximum norm", style),
        _curve(
            found, "noise_accuracy", NOISE_SCALES, f"{problem}: scale of the parameter noise", style
        ),
    )


def _curve(found, measure, xs, title, style):
    colour, dash = style
    rows = [
        {"label": name, "x": x, "y": statistics.fmean(r.final[measure][i] for r in group)}
        for name, group in found.items()
        for i, x in enumerate(xs)
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("x:Q", title=title),
            y=alt.Y("y:Q", title="test accuracy").scale(zero=False),
            color=colour,
            strokeDash=dash,
            tooltip=["label:N", "x:Q", "y:Q"],
        )
        .properties(width=figures.WIDTH, height=figures.HEIGHT)
    )


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
