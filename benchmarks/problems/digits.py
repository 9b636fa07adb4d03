"""Scikit-learn's bundled digits: 1,797 images of 8 by 8 pixels; nothing to download."""

from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

from benchmarks.problems.classification import MLP, classification
from benchmarks.problems.problem import Problem, Target

_SPLIT_SEED = 0


def mlp(
    data_dir: Path | None = None,
    *,
    num_train: int = 600,
    widths: tuple[int, ...] = (128, 128),
    batch_size: int = 32,
    epochs: int = 100,
) -> Problem:
    """A tanh classifier; smooth, since the theory of implicit regularisation fails at kinks."""
    del data_dir
    digits = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.target))
    images = jnp.asarray(digits.images[order] / 16.0, jnp.float32)
    labels = jnp.asarray(digits.target[order], jnp.int32)
    train = {"image": images[:num_train], "label": labels[:num_train]}
    test = {"image": images[num_train:], "label": labels[num_train:]}
    return classification(
        "digits",
        partial(MLP, (64, *widths, 10), nnx.tanh),
        train,
        test,
        batch_size=batch_size,
        num_steps=epochs * (num_train // batch_size),
        target=Target("test_accuracy", 0.95, higher_is_better=True),
        about=f"scikit-learn digits, {num_train} train / {len(labels) - num_train} test, "
        f"MLP 64-{'-'.join(map(str, widths))}-10 (tanh), batch {batch_size}",
    )
