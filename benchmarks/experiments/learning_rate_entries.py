"""The problems and the techniques that the initial learning rate is varied on.

One problem comes with other batches and other lengths of the run too: what a rate has to be depends on both.
"""

from pathlib import Path

from flax import nnx

from benchmarks.experiments.experiment import Entry
from benchmarks.problems import digits, logistic, mnist, shakespeare
from benchmarks.problems.problem import Problem
from benchmarks.techniques import TECHNIQUES
from benchmarks.techniques.step_size import RATES

SHIFTED = "digits_shift"

# By name, the batch size and the number of steps of the three-layer network on digits.
SETUPS = {
    "digits_batch_8": (8, 600),
    "digits_batch_16": (16, 600),
    "digits_batch_128": (128, 600),
    "digits_short": (32, 150),
    "digits_long": (32, 2400),
}


REFERENCE = "adam_decayed"
HEAVY_BALL = "heavy_ball_adapted"
HEAVY_BALL_REFERENCE = "heavy_ball_decayed"

# The references search grids of their own.
_SEARCHED = (REFERENCE, HEAVY_BALL_REFERENCE)
_NAMES = (
    *(REFERENCE, "sgd", "adam", "adamw_decayed", "egdd", "sgd_gain", "sgd_adapted"),
    *("adam_adapted", "adam_adapted_constant", "adam_adapted_uncapped", "adam_capped"),
    *(HEAVY_BALL_REFERENCE, HEAVY_BALL),
    *("mechanize", "schedule_free_adamw", "prodigy", "dadapt_adamw", "dog", "dowg"),
)

ENTRIES = [Entry(TECHNIQUES[name], None if name in _SEARCHED else RATES) for name in _NAMES]


def problems(data_dir: Path | None) -> list[Problem]:
    """Returns the problems, those on files where there are files."""
    three = digits.mlp(widths=(64, 64), activation=nnx.relu)
    seven = digits.mlp(widths=(32,) * 6, activation=nnx.relu)
    chosen = [
        three.replace(name="digits_three", num_steps=600),
        seven.replace(name="digits_seven", num_steps=600),
    ]
    if data_dir is not None:
        # A sweep of nineteen techniques at nine rates: the transformer has to be small.
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
