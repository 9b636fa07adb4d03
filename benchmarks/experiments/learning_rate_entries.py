"""The problems and the techniques that the initial learning rate is varied on.

One problem comes with other batches and other lengths of the run too: what a rate has to be depends on both.
"""

from pathlib import Path

import optax
from flax import nnx

import optax_igr
from benchmarks.experiments.experiment import Entry
from benchmarks.problems import digits, logistic, mnist, shakespeare
from benchmarks.problems.problem import Problem
from benchmarks.techniques.own import TECHNIQUES
from benchmarks.techniques.technique import ADAM_RATES, BASIC, Technique, decayed

RATES = tuple(10.0**k for k in range(-6, 3))

# The setting that needs no search, found on digits with seeds from 100 on. Alignments over two hundred steps: those of
# single steps settle at a rate that is too small (see `adapt_scale`).
SETTING = {
    "scale_rate": 0.8,
    "ema": 0.995,
    "decay": 0.001,
    "first_step": "cauchy",
    "warmup_steps": 5,
    "max_relative_update": 0.1,
}

SHIFTED = "digits_shift"

# By name, the batch size and the number of steps of the three-layer network on digits.
SETUPS = {
    "digits_batch_8": (8, 600),
    "digits_batch_16": (16, 600),
    "digits_batch_128": (128, 600),
    "digits_short": (32, 150),
    "digits_long": (32, 2400),
}


def _adapted(inner, **options):
    return optax_igr.adapt_scale(inner, **SETTING | options)


def _decayed(inner, num_steps):
    return optax.chain(inner, optax.scale_by_schedule(decayed(1.0, num_steps)))


ADAM_DECAYED = Technique(
    "adam_decayed",
    lambda h, n: optax.adam(decayed(h, n)),
    ADAM_RATES,
    "Adam, cosine decay: the reference, at the best of its grid",
    extra_arguments=BASIC,
)
REFERENCE = ADAM_DECAYED.name

HEAVY_BALL = "heavy_ball_adapted"
HEAVY_BALL_REFERENCE = "heavy_ball_decayed"

OWN = [
    Technique(
        "egdd", lambda h, n: optax_igr.egdd(h), RATES, "EGDD with the defaults of its authors"
    ),
    Technique(
        "sgd_gain",
        lambda h, n: optax.chain(optax_igr.scale_by_gain(h), optax.sgd(h)),
        RATES,
        "the raw rule: one gain a parameter, with the rate itself as the gain's",
    ),
    Technique(
        "sgd_adapted",
        lambda h, n: _decayed(_adapted(optax.sgd(h)), n),
        RATES,
        "gradient descent under a cosine decay, its scale learned in the same way",
    ),
    Technique(
        "adam_adapted",
        lambda h, n: _decayed(_adapted(optax.adam(h)), n),
        RATES,
        "Adam under a cosine decay, its scale learned from five measured steps, relative updates capped",
    ),
    Technique(
        "adam_adapted_constant",
        lambda h, n: _adapted(optax.adam(h)),
        RATES,
        "the same without the decay",
    ),
    Technique(
        "adam_adapted_uncapped",
        lambda h, n: _decayed(_adapted(optax.adam(h), max_relative_update=None), n),
        RATES,
        "the same without the cap, which is for an outlier among the measured",
    ),
    Technique(
        "adam_capped",
        lambda h, n: optax_igr.adapt_scale(optax.adam(h), 0.03, max_relative_update=0.1),
        RATES,
        "Adam, its scale learned, with a cap on the relative update in place of measured steps",
    ),
    Technique(
        HEAVY_BALL_REFERENCE,
        lambda h, n: optax.sgd(decayed(h, n), momentum=0.9),
        tuple(0.01 * 3.0**k for k in range(5)),
        "heavy ball, cosine decay, at the best of its grid",
        extra_arguments=BASIC,
    ),
    Technique(
        HEAVY_BALL,
        lambda h, n: _decayed(_adapted(optax.sgd(h, momentum=0.9)), n),
        RATES,
        "heavy ball under a cosine decay, its scale learned in the same way",
    ),
]

_PEERS = ("mechanize", "schedule_free_adamw", "prodigy", "dadapt_adamw", "dog", "dowg")

ENTRIES = [
    Entry(ADAM_DECAYED),
    *(Entry(TECHNIQUES[name], RATES) for name in ("sgd", "adam", "adamw_decayed")),
    *(Entry(technique) for technique in OWN),
    *(Entry(TECHNIQUES[name], RATES) for name in _PEERS),
]


def problems(data_dir: Path | None) -> list[Problem]:
    """Returns the problems, those on files where there are files."""
    three = digits.mlp(widths=(64, 64), activation=nnx.relu)
    seven = digits.mlp(widths=(32,) * 6, activation=nnx.relu)
    chosen = [
        three.replace(name="digits_three", num_steps=600),
        seven.replace(name="digits_seven", num_steps=600),
    ]
    if data_dir is not None:
        small = {"length": 32, "width": 32, "num_heads": 2, "num_steps": 300}
        chosen.insert(0, logistic.a9a(data_dir).replace(num_steps=500))
        chosen.append(shakespeare.transformer(data_dir, **small))
    for name, (batch_size, num_steps) in SETUPS.items():
        varied = digits.mlp(widths=(64, 64), activation=nnx.relu, batch_size=batch_size)
        chosen.append(varied.replace(name=name, num_steps=num_steps))
    if data_dir is not None:
        large = mnist.mlp(data_dir, widths=(64, 64), activation=nnx.relu, batch_size=64)
        chosen.append(large.replace(name="mnist_three", num_steps=600))
    chosen.append(shifted(three, 600))
    return [problem.measuring("train_loss", "test_loss", "test_accuracy") for problem in chosen]


def shifted(problem: Problem, num_steps: int) -> Problem:
    """Returns a classifier whose labels are permuted from the middle of the run on.

    The training loss is that on the permuted labels: before the middle it says nothing.
    """

    def permuted(data, by=1):
        return data | {"label": (data["label"] + by) % 10}

    def shift(batch, step):
        return permuted(batch, step >= num_steps // 2)

    def measure(params, train, test):
        del test
        return problem.loss(params, permuted(train))

    return problem.replace(
        name=SHIFTED,
        num_steps=num_steps,
        measures={"train_loss": measure},
        final_measures={"train_loss": measure},
        shift=shift,
        target=None,
        about=f"{problem.about}, every label raised by one (modulo ten) from step {num_steps // 2} on",
    )
