"""A fully connected network on one batch of random examples: what the costs of steps are measured on."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from benchmarks.problems.problem import Problem

WIDTHS = (784, 1024, 1024, 1024, 10)
BATCH_SIZE = 512


def network(widths: Sequence[int], batch_size: int) -> Problem:
    """Returns a fully connected ReLU network with one batch of random examples, `x` and `y`.

    Raises:
      ValueError: without a hidden layer.
    """
    if len(widths) < 3:
        raise ValueError(
            f"widths {','.join(map(str, widths))}: expected inputs, hidden layers and outputs, such as "
            f"{','.join(map(str, WIDTHS))}."
        )

    def init(key):
        keys = jax.random.split(key, len(widths) - 1)
        return [
            {"w": jax.random.normal(k, (m, n)) / jnp.sqrt(m), "b": jnp.zeros(n)}
            for k, m, n in zip(keys, widths[:-1], widths[1:], strict=True)
        ]

    def loss(params, batch):
        x = batch["x"]
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"][None])
        logits = x @ params[-1]["w"] + params[-1]["b"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    keys = jax.random.split(jax.random.key(1))
    examples = {
        "x": jax.random.normal(keys[0], (batch_size, widths[0])),
        "y": jax.random.randint(keys[1], (batch_size,), 0, widths[-1]),
    }
    return Problem(
        name="step",
        init=init,
        loss=loss,
        train=examples,
        test=examples,
        batch_size=batch_size,
        num_steps=1,
        measures={},
        about=f"MLP {'-'.join(map(str, widths))} (relu), batch {batch_size}",
    )
