"""MNIST from its four IDX files in `--data-dir`."""

from functools import partial
from pathlib import Path

from flax import nnx

from benchmarks.problems import idx
from benchmarks.problems.classification import MLP, classification
from benchmarks.problems.problem import Problem, Target


def mlp(
    data_dir: Path | None = None,
    *,
    widths: tuple[int, ...] = (256, 256),
    batch_size: int = 128,
    epochs: int = 10,
) -> Problem:
    """A tanh classifier of the 28 by 28 images."""
    train, test = idx.load(data_dir)
    num_train, pixels = len(train["label"]), train["image"][0].size
    return classification(
        "mnist",
        partial(MLP, (pixels, *widths, 10), nnx.tanh),
        train,
        test,
        batch_size=min(batch_size, num_train),
        num_steps=epochs * max(1, num_train // batch_size),
        target=Target("test_accuracy", 0.97, higher_is_better=True),
        about=f"MNIST, {num_train} train / {len(test['label'])} test, "
        f"MLP {pixels}-{'-'.join(map(str, widths))}-10 (tanh), batch {batch_size}",
    )
