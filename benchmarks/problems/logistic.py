"""Logistic regression on the LIBSVM files a9a, w8a and mushrooms; convex, with an L2 term."""

from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_svmlight_file

from benchmarks.problems import data
from benchmarks.problems.classification import gradient_norms
from benchmarks.problems.problem import Problem, Target

L2 = 1e-4

# The minimum of each training loss, by `scipy.optimize.minimize(method="L-BFGS-B")` in float64 on all training rows
# of the published file, run until no coordinate of the gradient exceeds 1e-9 (216, 55 and 86 iterations).
OPTIMA = {"a9a": 0.3249814951, "w8a": 0.0616558143, "mushrooms": 0.0126039752}

# What counts as solved, as a multiple of the minimum.
TARGET_RATIO = 1.02

# The epochs in which gradient descent with momentum reaches the target at its best rate.
EPOCHS = {"a9a": 4, "w8a": 8, "mushrooms": 30}

_SPLIT_SEED = 0


def problem(
    name: str, data_dir: Path | None = None, *, batch_size: int = 128, epochs: int | None = None
) -> Problem:
    """Makes the problem of one file; a fifth of the rows is held out. Epochs: None takes `EPOCHS`."""
    content = data.read(data_dir, name)
    features, labels = parse(content)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    features, labels = features[order], labels[order]
    # Mushrooms has no test set of its own: a fifth is held out of each file.
    held_out = max(1, len(labels) // 5)
    train = {"x": features[held_out:], "y": labels[held_out:]}
    test = {"x": features[:held_out], "y": labels[:held_out]}
    dimension = features.shape[1]
    num_train = len(train["y"])
    batch_size = min(batch_size, num_train)
    return Problem(
        name=name,
        init=lambda key: {"weight": jnp.zeros(dimension), "bias": jnp.zeros(())},
        loss=_loss,
        train=train,
        test=test,
        batch_size=batch_size,
        num_steps=(epochs or EPOCHS[name]) * (num_train // batch_size),
        measures={
            "train_loss": lambda p, train, test: _loss(p, train),
            "test_loss": lambda p, train, test: _loss(p, test),
            "test_accuracy": lambda p, train, test: _accuracy(p, test),
        },
        final_measures={
            "train_loss": lambda p, train, test: _loss(p, train),
            "test_loss": lambda p, train, test: _loss(p, test),
            "test_accuracy": lambda p, train, test: _accuracy(p, test),
            "slope": gradient_norms(_loss, batch_size, 4)["slope"],
        },
        target=Target("train_loss", TARGET_RATIO * OPTIMA[name], higher_is_better=False),
        outputs=_outputs,
        output_loss=_output_loss,
        about=f"{name}, {num_train} train / {held_out} test, {dimension} features, logistic "
        f"regression, L2 {L2:g}, batch {batch_size}" + data.provenance(name, content),
    )


a9a = partial(problem, "a9a")
w8a = partial(problem, "w8a")
mushrooms = partial(problem, "mushrooms")


def parse(content: bytes) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Parses a LIBSVM file: dense features, and labels 0 and 1 for the smaller and the larger value."""
    import io

    sparse, raw = load_svmlight_file(io.BytesIO(content))
    values = np.unique(raw)
    if len(values) != 2:
        raise ValueError(f"logistic regression needs two labels, the file has {len(values)}.")
    features = jnp.asarray(np.asarray(sparse.todense()), jnp.float32)
    return features, jnp.asarray(raw == values[1], jnp.float32)


def _outputs(params, batch):
    return batch["x"] @ params["weight"] + params["bias"]


def _output_loss(logits, batch):
    signs = 2 * batch["y"] - 1
    return jnp.mean(jnp.logaddexp(0.0, -signs * logits))


def _loss(params, batch):
    penalty = L2 / 2 * jnp.sum(params["weight"] ** 2)
    return _output_loss(_outputs(params, batch), batch) + penalty


def _accuracy(params, batch):
    return jnp.mean((_outputs(params, batch) > 0) == (batch["y"] > 0.5))
