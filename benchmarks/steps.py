"""What a step costs beside a plain gradient step: time, FLOPs, memory, gradients, state, compilation.

FLOPs and memory are the compiler's own figures and exact. Times are medians over rounds in which the steps
take turns, each as a ratio to the plain step of its own round, so that a busy machine slows both.

Gradients are counted, not declared: the loss is evaluated operation by operation on parameters that pass
through a probe, whose backward rule counts gradients and whose forward derivative counts Hessian-vector
products. A gradient at a point and batch that the step has already seen is shared and not counted twice.
"""

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from benchmarks import records, training_step
from benchmarks.problems.problem import Problem
from benchmarks.technique import Technique
from benchmarks.techniques import COEFFICIENT, TECHNIQUES

WIDTHS = (784, 1024, 1024, 1024, 10)
BATCH_SIZE = 512
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

_COUNTED_STEPS = 4


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


class _Compiled(NamedTuple):
    step: Any
    arguments: tuple
    flops: float
    memory: float
    state_bytes: int
    compile_seconds: float


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
    names = [t.name for t in techniques]
    if BASELINE not in names:
        techniques = [TECHNIQUES[BASELINE], *techniques]
    problem = network(widths, batch_size)
    compiled = {}
    for technique in techniques:
        progress(f"compiling {technique.name}")
        compiled[technique.name] = _compile_technique(problem, technique)
    for technique in techniques:
        if technique.name in TWINS:
            name = TWINS[technique.name]
            progress(f"compiling {name}")
            compiled[name] = _compile(_BY_HAND[name](problem.loss), problem, ())
    seconds = _interleaved(compiled, rounds, progress)
    counts = {}
    small = network((16, 16, 16, 10), 32)
    for technique in techniques:
        progress(f"counting the gradients of {technique.name}")
        counts[technique.name] = count_gradients(small, technique, LEARNING_RATE)
    counts |= {name: counts[of] for of, name in TWINS.items() if of in counts}
    plain = compiled[BASELINE]
    parameter_bytes = _bytes(plain.arguments[0])
    costs = []
    for name, step in compiled.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds[BASELINE], strict=True)]
        twin = compiled.get(TWINS.get(name, ""))
        gradients, products = counts[name]
        costs.append(
            StepCost(
                name=name,
                wall=statistics.median(ratios),
                milliseconds=1e3 * statistics.median(seconds[name]),
                flops=step.flops / plain.flops,
                memory=step.memory / plain.memory,
                gradients=gradients,
                products=products,
                state_copies=step.state_bytes / parameter_bytes,
                compile_seconds=step.compile_seconds,
                has_loop=" while(" in step.step.as_text(),
                flops_by_hand=twin and step.flops / twin.flops,
                memory_by_hand=twin and step.memory / twin.memory,
            )
        )
    return costs


def count_gradients(
    problem: Problem, technique: Technique, learning_rate: float, num_steps: int | None = None
) -> tuple[float, float]:
    """Counts the gradients and Hessian-vector products of a step, in units of one batch.

    Args:
      problem: whose loss is watched.
      technique: whose steps are taken, one operation at a time.
      learning_rate: of these steps.
      num_steps: the length of the run that they open; None takes the problem's own.

    Returns:
      The means, each derivative weighted by its examples / the batch size: over the first steps, or, where the
      technique declares a period, over its third, when memories are filled and every branch has been taken.
    """
    ledger = _Ledger(problem.batch_size)
    counted = problem.replace(loss=ledger.watch(problem.loss))
    length = num_steps or problem.num_steps
    period = technique.period_of(length)
    first, last = (0, _COUNTED_STEPS) if period == 1 else (2 * period, 3 * period)
    params = jax.jit(problem.init)(jax.random.key(0))
    with jax.disable_jit():
        optimizer = technique.make(learning_rate, length)
        state = optimizer.init(params)
        for step in range(last):
            if step == first:
                ledger.gradients = ledger.products = 0.0
            ledger.seen.clear()
            batch = _example_batch(problem, step)
            params, state = training_step.update(
                counted, technique, optimizer, params, state, batch, data=problem.train
            )
    return ledger.gradients / (last - first), ledger.products / (last - first)


def cells(costs: Sequence[StepCost]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the table; a ≥ marks FLOPs of a loop, counted for one turn."""
    head = [
        "technique",
        "time ×",
        "ms",
        "FLOPs ×",
        "memory ×",
        "gradients",
        "Hv",
        "state copies",
        "compile s",
        "FLOPs / by hand",
        "memory / by hand",
    ]

    def ratio(value):
        return "" if value is None else f"{value:.3f}"

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
            ratio(c.flops_by_hand),
            ratio(c.memory_by_hand),
        ]
        for c in costs
    ]
    return head, rows


def write(costs: Sequence[StepCost], folder: Path) -> Path:
    """Writes one JSON line a technique, with the machine; returns the path."""
    return records.write_costs(folder / "steps.jsonl", map(dataclasses.asdict, costs))


class _Ledger:
    """Counts derivatives of a loss by a probe on its parameters."""

    def __init__(self, batch_size):
        self.batch_size = batch_size
        self.gradients = self.products = 0.0
        self.seen: set = set()
        self.batches: collections.OrderedDict = collections.OrderedDict()

    def watch(self, loss):
        def watched(params, batch):
            return loss(self._probe(batch)(params), batch)

        return watched

    def _probe(self, batch):
        weight = 1.0
        if self.batch_size is not None and batch is not None:
            weight = len(jax.tree.leaves(batch)[0]) / self.batch_size
        batch_key = _fingerprint(batch)

        @jax.custom_jvp
        def backward(params, cotangent):
            self._gradient(params, batch_key, weight)
            return cotangent

        @backward.defjvp
        def _(primals, tangents):
            self._gradient(primals[0], batch_key, weight)
            self.products += weight
            return primals[1], tangents[1]

        @jax.custom_vjp
        def probe(params):
            return params

        probe.defvjp(lambda p: (p, p), lambda p, cotangent: (backward(p, cotangent),))
        return probe

    def _gradient(self, params, batch_key, weight):
        point = _fingerprint(params)
        if point is None or batch_key is None or (point, batch_key) not in self.seen:
            self.gradients += weight
        self.seen.add((point, batch_key))


def _fingerprint(tree):
    """Returns the bytes of the leaves, or None where a leaf is being traced and has none."""
    leaves = jax.tree.leaves(tree)
    if any(isinstance(x, Tracer) for x in leaves):
        return None
    return tuple(np.asarray(x).tobytes() for x in leaves)


def _example_batch(problem, step):
    if problem.train is None or problem.batch_size is None:
        return problem.train
    first = step % problem.steps_per_epoch * problem.batch_size
    return jax.tree.map(lambda x: x[first : first + problem.batch_size], problem.train)


def network(widths: Sequence[int], batch_size: int) -> Problem:
    """Returns a fully connected ReLU network with one batch of random examples, `x` and `y`."""

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
    return Problem("step", init, loss, examples, examples, batch_size, num_steps=1, measures={})


def _compile_technique(problem, technique):
    optimizer = technique.make(LEARNING_RATE, 1000)

    def step(params, state, batch):
        return training_step.update(problem, technique, optimizer, params, state, batch, data=batch)

    params = problem.init(jax.random.key(0))
    return _compile(step, problem, optimizer.init(params))


def _compile(step, problem, state):
    arguments = (problem.init(jax.random.key(0)), state, problem.train)
    began = time.perf_counter()
    compiled = jax.jit(step).lower(*arguments).compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    analysis = compiled.cost_analysis()
    if memory is None or analysis is None:
        raise ValueError(f"the {jax.default_backend()} compiler gives no cost analysis.")
    return _Compiled(
        compiled,
        arguments,
        analysis["flops"],
        memory.temp_size_in_bytes + memory.output_size_in_bytes,
        _bytes(state),
        seconds,
    )


def _interleaved(compiled, rounds, progress):
    for step in compiled.values():
        jax.block_until_ready(step.step(*step.arguments))
    seconds = collections.defaultdict(list)
    for index in range(rounds):
        progress(f"timing, round {index + 1} of {rounds}")
        for name, step in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(step.step(*step.arguments))
            seconds[name].append(time.perf_counter() - began)
    return seconds


def _bytes(tree: chex.ArrayTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


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
