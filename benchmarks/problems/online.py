r"""Online games, one example a step: their score is the loss on the way, not the loss at the end.

A technique takes part through `counted`, which adds up the losses that its steps incur; what the runner
measures is then `{"params", "incurred"}`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.problems.problem import Measure, Problem
from benchmarks.techniques.technique import Technique

_DATA_SEED = 0


class IncurredState(NamedTuple):
    """The sum of the losses before each step."""

    incurred: jax.Array


def add_up_losses() -> optax.GradientTransformationExtraArgs:
    """Leaves the updates as they are and sums the extra argument `value`."""

    def init(params: Any) -> IncurredState:
        del params
        return IncurredState(jnp.zeros([], jnp.float32))

    def update(updates: Any, state: Any, params: Any = None, *, value: Any = None, **unused: Any):
        del params, unused
        return updates, IncurredState(state.incurred + value)

    return optax.GradientTransformationExtraArgs(init, update)


def counted(technique: Technique) -> Technique:
    """Returns the technique with its losses summed on the way."""

    def make(learning_rate: Any, num_steps: int) -> optax.GradientTransformation:
        return optax.chain(add_up_losses(), technique.make(learning_rate, num_steps))

    def eval_params(state: Any, params: Any) -> Any:
        inner = technique.eval_params(state[1], params)
        return {"params": inner, "incurred": state[0].incurred}

    return dataclasses.replace(technique, make=make, eval_params=eval_params)


def on_params(measures: Mapping[str, Measure]) -> dict[str, Measure]:
    """Lets measures of parameters be taken on what `counted` hands over."""

    def lift(measure: Measure) -> Callable:
        return lambda counted, train, test: measure(counted["params"], train, test)

    return {name: lift(measure) for name, measure in measures.items()}


def sparse_regression(num_inputs: int, *, num_steps: int = 600, weight: float = 10.0) -> Problem:
    """Square loss where three of the inputs, all of the same size, make the output.

    The inputs are 1 or -1 over `weight`, so that each of the three contributes 1 or -1.
    """
    rng = np.random.default_rng([_DATA_SEED, num_inputs])
    x = rng.choice([-1.0, 1.0], (num_steps, num_inputs)) / weight
    relevant = weight * np.array([1.0, -1.0, 1.0])
    y = x[:, :3] @ relevant
    train = {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}
    return Problem(
        name=f"sparse_{num_inputs}",
        init=lambda key: {"weight": jnp.zeros(num_inputs)},
        loss=_square_loss,
        train=train,
        test=train,
        batch_size=1,
        num_steps=num_steps,
        measures={"incurred": _incurred},
        final_measures={
            "incurred": _incurred,
            **on_params({"train_loss": _on_train(_square_loss)}),
        },
        about=f"regression, 3 relevant of {num_inputs} inputs of size {1 / weight:g}, {num_steps} examples seen once",
    )


def hedge(num_experts: int, num_steps: int) -> Problem:
    """Linear loss on the simplex: experts that lose 0 or 1 at random."""
    rng = np.random.default_rng([_DATA_SEED, num_experts, num_steps])
    losses = rng.integers(0, 2, (num_steps, num_experts)).astype(np.float32)
    train = {"losses": jnp.asarray(losses)}
    best = float(losses.sum(0).min())
    bound = float(np.sqrt(num_steps * np.log(num_experts) / 2))
    return Problem(
        name=f"hedge_{num_experts}_{num_steps}",
        init=lambda key: jnp.full(num_experts, 1 / num_experts),
        loss=_linear_loss,
        train=train,
        test=train,
        batch_size=1,
        num_steps=num_steps,
        measures={"incurred": _incurred},
        final_measures={
            "regret": lambda counted, train, test: _incurred(counted, train, test) - best,
            "bound": lambda counted, train, test: jnp.asarray(bound),
            **on_params({"train_loss": _on_train(_linear_loss)}),
        },
        about=f"{num_experts} experts that lose 0 or 1 at random, {num_steps} steps",
    )


def _incurred(counted: Any, train: Any, test: Any) -> jax.Array:
    del train, test
    return counted["incurred"]


def _on_train(loss: Callable) -> Measure:
    return lambda params, train, test: loss(params, train)


def _square_loss(params: Any, batch: Any) -> jax.Array:
    return jnp.mean((batch["x"] @ params["weight"] - batch["y"]) ** 2)


def _linear_loss(weights: Any, batch: Any) -> jax.Array:
    return jnp.mean(batch["losses"] @ weights)
