"""A small deep autoencoder of scikit-learn's digits: smooth, not convex, badly conditioned."""

import functools
import itertools
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from benchmarks.problems.problem import Problem

NAME = "autoencoder"
EPOCHS = 800
WIDTHS = (64, 32, 8, 32, 64)
# The code and the output are linear.
_LINEAR = (1, 3)


def digits(
    data_dir: Path | None = None,
    *,
    num_train: int = 500,
    batch_size: int = 50,
    epochs: int = EPOCHS,
) -> Problem:
    """Half the squared error of a tanh autoencoder with a code of eight numbers."""
    del data_dir
    measures = {"train_loss": lambda p, train, test: loss(p, train)}
    return Problem(
        name=NAME,
        init=init,
        loss=loss,
        train=pixels(num_train),
        test=None,
        batch_size=batch_size,
        num_steps=epochs * (num_train // batch_size),
        measures=measures,
        final_measures=measures,
        outputs=outputs,
        output_loss=output_loss,
        about=f"scikit-learn digits, autoencoder {'-'.join(map(str, WIDTHS))} (tanh), {num_train} images, batch "
        f"{batch_size}",
    )


@functools.cache
def pixels(num_train: int) -> np.ndarray:
    """Returns the first images, from 0 to 1, as rows."""
    images = np.asarray(load_digits(return_X_y=True)[0])
    return np.asarray(images[:num_train] / 16.0, np.float32)


def init(key: chex.PRNGKey) -> chex.ArrayTree:
    """Draws the weights with variance 1 / inputs."""
    pairs = list(itertools.pairwise(WIDTHS))
    return [
        {"w": jax.random.normal(k, (m, n), jnp.float32) / m**0.5, "b": jnp.zeros(n, jnp.float32)}
        for k, (m, n) in zip(jax.random.split(key, len(pairs)), pairs, strict=True)
    ]


def outputs(params: Any, images: jax.Array) -> jax.Array:
    """Returns the reconstruction."""
    x = images
    for index, layer in enumerate(params):
        x = x @ layer["w"] + layer["b"][None]
        x = x if index in _LINEAR else jnp.tanh(x)
    return x


def output_loss(reconstruction: jax.Array, images: jax.Array) -> jax.Array:
    """Returns half the squared error of an image, on average."""
    return jnp.sum((reconstruction - images) ** 2) / (2 * len(images))


def loss(params: Any, images: jax.Array) -> jax.Array:
    """Returns the loss of the parameters."""
    return output_loss(outputs(params, images), images)
