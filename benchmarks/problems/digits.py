"""Scikit-learn's bundled digits: 1,797 images of 8 by 8 pixels; nothing to download."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

from benchmarks.problems.classification import CNN, MLP, classifier
from benchmarks.problems.problem import Problem, Target

_SPLIT_SEED = 0


def mlp(
    data_dir: Path | None = None,
    *,
    num_train: int = 600,
    widths: tuple[int, ...] = (128, 128),
    activation: Callable = nnx.tanh,
    batch_size: int = 32,
    epochs: int = 100,
) -> Problem:
    """A tanh classifier; smooth, since the theory of implicit regularisation fails at kinks."""
    del data_dir
    model = partial(MLP, (64, *widths, 10), activation)
    about = f"MLP 64-{'-'.join(map(str, widths))}-10 ({activation.__name__})"
    return _problem("digits", model, about, num_train, batch_size, epochs)


def cnn(
    data_dir: Path | None = None,
    *,
    num_train: int = 600,
    channels: tuple[int, ...] = (8, 16),
    batch_size: int = 32,
    epochs: int = 40,
) -> Problem:
    """Two convolutions and a linear layer."""
    del data_dir
    model = partial(CNN, (8, 8), channels)
    about = f"CNN {'-'.join(map(str, channels))} (tanh)"
    return _problem("digits_cnn", model, about, num_train, batch_size, epochs)


def _problem(name, model, about, num_train, batch_size, epochs):
    pixels, targets = map(np.asarray, load_digits(return_X_y=True))
    # The file is ordered by writer: without this the test set would be other hands.
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(targets))
    images = jnp.asarray(pixels[order].reshape(-1, 8, 8) / 16.0, jnp.float32)
    labels = jnp.asarray(targets[order], jnp.int32)
    return classifier(
        name,
        model,
        {"image": images[:num_train], "label": labels[:num_train]},
        {"image": images[num_train:], "label": labels[num_train:]},
        batch_size=batch_size,
        num_steps=epochs * (num_train // batch_size),
        target=Target("test_accuracy", 0.95, higher_is_better=True),
        about=f"scikit-learn digits, {num_train} train / {len(labels) - num_train} test, {about}, "
        f"batch {batch_size}",
    )
