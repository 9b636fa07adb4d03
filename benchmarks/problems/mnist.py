"""MNIST from its four IDX files in `--data-dir`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from flax import nnx

from benchmarks.problems import idx
from benchmarks.problems.classification import CNN, MLP, classifier
from benchmarks.problems.problem import Problem, Target


def mlp(
    data_dir: Path | None = None,
    *,
    widths: tuple[int, ...] = (128, 128),
    activation: Callable = nnx.tanh,
    batch_size: int = 128,
    epochs: int = 4,
) -> Problem:
    """A fully connected classifier of the 28 by 28 images."""
    train, test, remark = idx.load(data_dir)
    pixels = train["image"][0].size
    return _problem(
        "mnist",
        partial(MLP, (pixels, *widths, 10), activation),
        f"MLP {pixels}-{'-'.join(map(str, widths))}-10 ({activation.__name__})" + remark,
        (train, test),
        batch_size,
        epochs,
    )


def cnn(
    data_dir: Path | None = None,
    *,
    channels: tuple[int, ...] = (16, 32),
    batch_size: int = 128,
    epochs: int = 2,
) -> Problem:
    """Two convolutions and a linear layer."""
    train, test, remark = idx.load(data_dir)
    return _problem(
        "mnist_cnn",
        partial(CNN, train["image"].shape[1:], channels),
        f"CNN {'-'.join(map(str, channels))} (tanh)" + remark,
        (train, test),
        batch_size,
        epochs,
    )


def _problem(name, model, about, data, batch_size, epochs):
    train, test = data
    num_train = len(train["label"])
    # A small copy of the files, as tests make, has fewer examples than a batch.
    batch_size = min(batch_size, num_train)
    return classifier(
        name,
        model,
        train,
        test,
        batch_size=batch_size,
        num_steps=epochs * (num_train // batch_size),
        target=Target("test_accuracy", 0.97, higher_is_better=True),
        about=f"MNIST, {num_train} train / {len(test['label'])} test, {about}, batch {batch_size}",
    )
