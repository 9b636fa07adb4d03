"""What a step costs beside a plain gradient step: time, FLOPs, memory, gradients, state, compilation.

FLOPs and memory are the compiler's own figures and exact. Times are medians over rounds in which the steps take turns,
each as a ratio to the plain step of its own round. The measures of a record are ratios to the plain step, but where a
unit is named:

- `wall`: the time; `milliseconds`: the same in milliseconds;
- `flops` and `memory`: of the compiled step, the memory of temporaries and outputs;
- `gradients` and `products`: gradients and Hessian-vector products of one batch a step, counted;
- `state_copies`: bytes of the state / bytes of the parameters;
- `compile_seconds`: tracing and compilation;
- `has_loop`: the program contains a loop, whose body the compiler's FLOPs count once;
- `flops_by_hand` and `memory_by_hand`: beside the same step written out, where there is one.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.costs.compiling import Compiled, compiled, num_bytes
from benchmarks.costs.timing import Progress, interleaved, median_ratio, seconds_of, silent
from benchmarks.engine import training_step
from benchmarks.engine.gradient_counts import count_gradients
from benchmarks.engine.machine import environment
from benchmarks.engine.old_lines import STEP
from benchmarks.engine.records import Record
from benchmarks.problems.network import BATCH_SIZE, WIDTHS, network
from benchmarks.techniques import TECHNIQUES
from benchmarks.techniques.penalties import COEFFICIENT
from benchmarks.techniques.technique import Plan, Technique

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


class _Step(NamedTuple):
    program: Compiled
    arguments: tuple


def measure(
    techniques: Sequence[Technique],
    *,
    widths: Sequence[int] = WIDTHS,
    batch_size: int = BATCH_SIZE,
    rounds: int = 9,
    progress: Progress = silent,
) -> list[Record]:
    """Compiles, counts and times one step of each technique, and of the steps written by hand.

    Args:
      techniques: what to measure; plain gradient descent is always measured beside them.
      widths: of the fully connected network.
      batch_size: examples a step.
      rounds: how often each step is timed.
      progress: told what is being done.
    """
    # Every figure is a ratio to it.
    if BASELINE not in [t.name for t in techniques]:
        techniques = [TECHNIQUES[BASELINE], *techniques]
    problem = network(widths, batch_size)
    # Counting steps operation by operation, so on a small network: the counts are the same.
    small = network((16, 16, 16, 10), 32)
    steps, counts = {}, {}
    for technique in techniques:
        progress(f"compiling {technique.name}")
        steps[technique.name] = _compile_technique(problem, technique)
        progress(f"counting the gradients of {technique.name}")
        counts[technique.name] = count_gradients(small, technique, _settings(technique))
    for name, twin in TWINS.items():
        if name in steps:
            progress(f"compiling {twin}")
            steps[twin] = _compile(_BY_HAND[twin](problem.loss), problem, ())
            counts[twin] = counts[name]
    timed = {
        name: lambda step=step: seconds_of(lambda: step.program.call(*step.arguments))
        for name, step in steps.items()
    }
    seconds = interleaved(timed, rounds, progress=progress)
    plain, found = steps[BASELINE].program, environment()
    rows = []
    for name, (program, (params, state, _)) in steps.items():
        gradients, products = counts[name]
        measures = {
            "wall": median_ratio(seconds[name], seconds[BASELINE]),
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            "flops": program.flops / plain.flops,
            "memory": program.memory / plain.memory,
            "gradients": gradients,
            "products": products,
            "state_copies": num_bytes(state) / num_bytes(params),
            "compile_seconds": program.seconds,
            # XLA's FLOPs of a loop are those of one turn: the table marks them.
            "has_loop": " while(" in program.call.as_text(),
        }
        if name in TWINS:
            twin = steps[TWINS[name]].program
            measures |= {
                "flops_by_hand": program.flops / twin.flops,
                "memory_by_hand": program.memory / twin.memory,
            }
        rows.append(Record(name, STEP, problem.about, measures=measures, environment=found))
    return rows


def _settings(technique):
    """Returns the settings that are measured: any would do, as no step costs more for a larger rate."""
    first = technique.named_settings(technique.grid[0])
    return {name: LEARNING_RATE if name == "learning_rate" else x for name, x in first.items()}


def _compile_technique(problem, technique):
    optimizer = technique.transform(_settings(technique), Plan(1000))

    def step(params, state, batch):
        return training_step.update(problem, technique, optimizer, params, state, batch, data=batch)

    return _compile(step, problem, optimizer.init(problem.init(jax.random.key(0))))


def _compile(step, problem, state):
    arguments = (problem.init(jax.random.key(0)), state, problem.train)
    return _Step(compiled(step, *arguments), arguments)


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
        # Any radius costs the same.
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
