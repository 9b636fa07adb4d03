"""What a step costs beside a plain gradient step: time, FLOPs, memory, gradients, state, compilation.

FLOPs and memory are the compiler's own figures and exact. Times are medians over rounds in which the steps
take turns, each as a ratio to the plain step of its own round, so that a busy machine slows both.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.costs.compiling import Compiled, compiled, num_bytes
from benchmarks.engine import training_step
from benchmarks.engine.gradient_counts import count_gradients
from benchmarks.problems.network import BATCH_SIZE, WIDTHS, network
from benchmarks.techniques.own import COEFFICIENT, TECHNIQUES
from benchmarks.techniques.technique import Technique

LEARNING_RATE = 0.01
BASELINE = "sgd"

# The twin of a technique is the same step written out, without a transform.
TWINS = {"sgd_penalty": "penalty by hand", "sgd_difference_penalty": "difference by hand"}

DEFAULT = (
    "sgd",
    "sgd_penalty",
    "sgd_difference_penalty",
    "sgd_extrapolated",
    "sgd_microbatch_penalty",
    "sgd_decayed_hold_igr",
    "naive_penalty",
    "sam",
    "adam",
    "adam_penalty",
)


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of one step; ratios are to the plain gradient step.

    Attributes:
      name: the technique.
      wall: median over rounds of the ratio of the times.
      milliseconds: median time of a step.
      flops: ratio of compiled FLOPs.
      memory: ratio of temporary plus output bytes.
      gradients: gradients of one batch a step.
      products: Hessian-vector products of one batch a step.
      state_copies: bytes of the state / bytes of the parameters.
      compile_seconds: tracing and compilation.
      has_loop: the program contains a loop, whose body the compiler's FLOPs count once.
      flops_by_hand: FLOPs / those of the twin, where there is one.
      memory_by_hand: the same for temporary plus output bytes.
    """

    name: str
    wall: float
    milliseconds: float
    flops: float
    memory: float
    gradients: float
    products: float
    state_copies: float
    compile_seconds: float
    has_loop: bool = False
    flops_by_hand: float | None = None
    memory_by_hand: float | None = None


class _Step(NamedTuple):
    program: Compiled
    arguments: tuple


def measure(
    techniques: Sequence[Technique],
    *,
    widths: Sequence[int] = WIDTHS,
    batch_size: int = BATCH_SIZE,
    rounds: int = 9,
    progress: Callable[[str], None] = lambda message: None,
) -> list[StepCost]:
    """Compiles, counts and times one step of each technique, and of the steps written by hand.

    Args:
      techniques: what to measure; plain gradient descent is always measured beside them.
      widths: of the fully connected network.
      batch_size: examples a step.
      rounds: how often each step is timed.
      progress: told what is being done.
    """
    if BASELINE not in [t.name for t in techniques]:
        techniques = [TECHNIQUES[BASELINE], *techniques]
    problem = network(widths, batch_size)
    small = network((16, 16, 16, 10), 32)
    steps, counts = {}, {}
    for technique in techniques:
        progress(f"compiling {technique.name}")
        steps[technique.name] = _compile_technique(problem, technique)
        progress(f"counting the gradients of {technique.name}")
        counts[technique.name] = count_gradients(small, technique, LEARNING_RATE)
    for name, twin in TWINS.items():
        if name in steps:
            progress(f"compiling {twin}")
            steps[twin] = _compile(_BY_HAND[twin](problem.loss), problem, ())
            counts[twin] = counts[name]
    seconds = _interleaved(steps, rounds, progress)
    plain = steps[BASELINE].program
    costs = []
    for name, (program, (params, state, _)) in steps.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds[BASELINE], strict=True)]
        twin = steps[TWINS[name]].program if name in TWINS else None
        gradients, products = counts[name]
        costs.append(
            StepCost(
                name=name,
                wall=statistics.median(ratios),
                milliseconds=1e3 * statistics.median(seconds[name]),
                flops=program.flops / plain.flops,
                memory=program.memory / plain.memory,
                gradients=gradients,
                products=products,
                state_copies=num_bytes(state) / num_bytes(params),
                compile_seconds=program.seconds,
                has_loop=" while(" in program.call.as_text(),
                flops_by_hand=twin and program.flops / twin.flops,
                memory_by_hand=twin and program.memory / twin.memory,
            )
        )
    return costs


def cells(costs: Sequence[StepCost]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the table; a ≥ marks FLOPs of a loop, counted for one turn."""
    head = [
        *("technique", "time ×", "ms", "FLOPs ×", "memory ×", "gradients", "Hv"),
        *("state copies", "compile s", "FLOPs / by hand", "memory / by hand"),
    ]
    rows = [
        [
            c.name,
            f"{c.wall:.2f}",
            f"{c.milliseconds:.1f}",
            f"{'≥' if c.has_loop else ''}{c.flops:.2f}",
            f"{c.memory:.2f}",
            f"{c.gradients:.3g}",
            f"{c.products:.3g}",
            f"{c.state_copies:.2f}",
            f"{c.compile_seconds:.2f}",
            "" if c.flops_by_hand is None else f"{c.flops_by_hand:.3f}",
            "" if c.memory_by_hand is None else f"{c.memory_by_hand:.3f}",
        ]
        for c in costs
    ]
    return head, rows


def _compile_technique(problem, technique):
    optimizer = technique.make(LEARNING_RATE, 1000)

    def step(params, state, batch):
        return training_step.update(problem, technique, optimizer, params, state, batch, data=batch)

    return _compile(step, problem, optimizer.init(problem.init(jax.random.key(0))))


def _compile(step, problem, state):
    arguments = (problem.init(jax.random.key(0)), state, problem.train)
    return _Step(compiled(step, *arguments), arguments)


def _interleaved(steps, rounds, progress):
    seconds = {name: [] for name in steps}
    for index in range(rounds + 1):
        progress(f"timing, round {index} of {rounds}")
        for name, (program, arguments) in steps.items():
            began = time.perf_counter()
            jax.block_until_ready(program.call(*arguments))
            # The first round warms up.
            if index:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _penalty_by_hand(loss):
    def step(params, state, batch):
        def gradient(p):
            return jax.grad(loss)(p, batch)

        g = gradient(params)
        _, hg = jax.jvp(gradient, (params,), (g,))
        return jax.tree.map(
            lambda p, g, h: p - LEARNING_RATE * (g + 2 * COEFFICIENT * h), params, g, hg
        ), state

    return step


def _difference_by_hand(loss):
    def step(params, state, batch):
        g = jax.grad(loss)(params, batch)
        norm = jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(g)))
        radius = jnp.finfo(jnp.float32).eps ** 0.5
        shifted = jax.tree.map(lambda p, g: p + radius / norm * g, params, g)
        there = jax.grad(loss)(shifted, batch)
        factor = 2 * COEFFICIENT * norm / radius
        return jax.tree.map(
            lambda p, g, t: p - LEARNING_RATE * (g + factor * (t - g)), params, g, there
        ), state

    return step


_BY_HAND = {
    "penalty by hand": _penalty_by_hand,
    "difference by hand": _difference_by_hand,
}
