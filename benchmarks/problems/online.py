"""Online games, one example a step: their score is the loss that was incurred on the way, not that at the end.

The score is no function of the last parameters. A run sums its losses (`techniques.counting`), and the score is a
measure of that sum.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems.problem import Problem

_DATA_SEED = 0


def sparse_regression(num_inputs: int, *, num_steps: int = 600, weight: float = 10.0) -> Problem:
    """Square loss where three of the inputs, all of the same size, make the output.

    The inputs are 1 or -1 over `weight`, so that each of the three contributes 1 or -1.
    """
    rng = np.random.default_rng([_DATA_SEED, num_inputs])
    x = rng.choice([-1.0, 1.0], (num_steps, num_inputs)) / weight
    relevant = weight * np.array([1.0, -1.0, 1.0])
    y = x[:, :3] @ relevant
    train = {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}
    return _game(
        f"sparse_{num_inputs}",
        lambda key: {"weight": jnp.zeros(num_inputs)},
        _square_loss,
        train,
        f"regression, 3 relevant of {num_inputs} inputs of size {1 / weight:g}, {num_steps} examples seen once",
    )


def hedge(num_experts: int, num_steps: int) -> Problem:
    """Linear loss on the simplex: experts that lose 0 or 1 at random."""
    rng = np.random.default_rng([_DATA_SEED, num_experts, num_steps])
    losses = rng.integers(0, 2, (num_steps, num_experts)).astype(np.float32)
    best = float(losses.sum(0).min())
    bound = float(np.sqrt(num_steps * np.log(num_experts) / 2))
    return _game(
        f"hedge_{num_experts}_{num_steps}",
        lambda key: jnp.full(num_experts, 1 / num_experts),
        _linear_loss,
        {"losses": jnp.asarray(losses)},
        f"{num_experts} experts that lose 0 or 1 at random, {num_steps} steps",
        domain="simplex",
        count_measures={
            "regret": lambda counts: counts["incurred"] - best,
            "bound": lambda counts: jnp.asarray(bound),
        },
    )


def _game(name, init, loss, examples, about, **attributes) -> Problem:
    return Problem(
        name=name,
        init=init,
        loss=loss,
        train=examples,
        test=examples,
        batch_size=1,
        num_steps=len(jax.tree.leaves(examples)[0]),
        # A point of the curve would cost a pass over all examples, which is as much as the whole game.
        measures={},
        final_measures={"train_loss": lambda params, train, test: loss(params, train)},
        about=about,
        **attributes,
    )


def _square_loss(params: Any, batch: Any) -> jax.Array:
    return jnp.mean((batch["x"] @ params["weight"] - batch["y"]) ** 2)


def _linear_loss(weights: Any, batch: Any) -> jax.Array:
    return jnp.mean(batch["losses"] @ weights)
