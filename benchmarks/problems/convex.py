"""Linear classifiers with a known minimum, in float64: how far down a method gets, not only how fast.

The synthetic data are those of Moritz et al: 5000 samples of 100 features, half of the entries zero, the first
feature constant, labels by a random plane with a little noise.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems import data
from benchmarks.problems.logistic import parse
from benchmarks.problems.problem import Problem

EPOCHS = 15

_SEED = 0


def squared_hinge(
    data_dir: Path | None = None, *, batch_size: int = 20, l2: float = 1e-3
) -> Problem:
    """Half the squared hinge on the synthetic data; its Hessian jumps, and its condition is 75."""
    del data_dir
    about = "synthetic, squared hinge"
    return _problem("hinge", "squared_hinge", *synthetic(), batch_size, l2, about)


def logistic(data_dir: Path | None = None, *, batch_size: int = 100, l2: float = 1e-3) -> Problem:
    """Logistic regression on the same."""
    del data_dir
    about = "synthetic, logistic"
    return _problem("logistic", "logistic", *synthetic(), batch_size, l2, about)


def a9a(data_dir: Path | None = None, *, batch_size: int = 128, l2: float = 1e-3) -> Problem:
    """Logistic regression on all of a9a."""
    features, labels = parse(data.read(data_dir, "a9a"))
    signs = 2 * np.asarray(labels) - 1
    return _problem("a9a", "logistic", np.asarray(features), signs, batch_size, l2, "a9a, logistic")


def synthetic(num_samples: int = 5000, size: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features and the labels, 1 and -1."""
    rng = np.random.default_rng(_SEED)
    features = rng.normal(size=(num_samples, size)) * (rng.random((num_samples, size)) < 0.5)
    features[:, 0] = 1
    noise = 0.05 * rng.normal(size=num_samples)
    return features, np.where(features @ rng.normal(size=size) + noise >= 0, 1.0, -1.0)


def minimum(kind: str, rows: np.ndarray, l2: float, num_steps: int = 50) -> float:
    """Returns the least loss, by Newton's method on the rows label × features, in float64."""
    weight = np.zeros(rows.shape[1])
    for _ in range(num_steps):
        margins = rows @ weight
        if kind == "squared_hinge":
            slopes, curvatures = -np.maximum(0, 1 - margins), (margins < 1).astype(float)
        else:
            probability = 1 / (1 + np.exp(margins))
            slopes, curvatures = -probability, probability * (1 - probability)
        gradient = rows.T @ slopes / len(rows) + l2 * weight
        hessian = (rows * curvatures[:, None]).T @ rows / len(rows) + l2 * np.eye(len(weight))
        # No line search: the losses are convex and Newton's method converges from zero.
        step = np.linalg.solve(hessian, gradient)
        weight = weight - step
        if np.linalg.norm(step) < 1e-13:
            break
    margins = rows @ weight
    return float(np.mean(_NUMPY_LOSSES[kind](margins)) + l2 / 2 * weight @ weight)


_NUMPY_LOSSES = {
    "squared_hinge": lambda m: np.maximum(0, 1 - m) ** 2 / 2,
    "logistic": lambda m: np.logaddexp(0, -m),
}

_LOSSES = {
    "squared_hinge": lambda m: jnp.maximum(0, 1 - m) ** 2 / 2,
    "logistic": lambda m: jnp.logaddexp(0, -m),
}


def _problem(name, kind, features, signs, batch_size, l2, about):
    # Differences from the minimum below 1e-7 do not exist in float32.
    jax.config.update("jax_enable_x64", True)
    rows = np.asarray(features, np.float64) * np.asarray(signs, np.float64)[:, None]
    least = minimum(kind, rows, l2)
    loss = partial(_loss, kind, l2)
    measures = {
        "train_loss": lambda p, train, test: loss(p, train),
        "suboptimality": lambda p, train, test: jnp.maximum(loss(p, train) - least, 1e-17),
    }
    train = jnp.asarray(rows)
    return Problem(
        name=name,
        init=lambda key: jnp.zeros(rows.shape[1], jnp.float64),
        loss=loss,
        train=train,
        test=None,
        batch_size=batch_size,
        num_steps=EPOCHS * (len(rows) // batch_size),
        measures=measures,
        final_measures=measures,
        curvature_batch_size=10 * batch_size,
        about=f"{about}, {len(rows)} rows of {rows.shape[1]}, L2 {l2:g}, batch {batch_size}, float64",
    )


def _loss(kind, l2, weight, rows):
    return jnp.mean(_LOSSES[kind](rows @ weight)) + l2 / 2 * jnp.sum(weight**2)
