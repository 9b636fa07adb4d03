"""The runner beside a plain Python loop over one jitted step: the same runs, the same batches, timed.

Starts and batches are drawn by the same programs for both, before either clock starts.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.engine import program, runner, sampling, training_step
from benchmarks.problems import digits
from benchmarks.problems.problem import Problem
from benchmarks.techniques.own import TECHNIQUES
from benchmarks.techniques.technique import Technique


@dataclasses.dataclass(frozen=True)
class SweepSpeed:
    """The seconds of a sweep both ways.

    Attributes:
      runs: rates times seeds.
      steps: of each run.
      program_seconds: of the one program, compilation apart.
      program_compile_seconds: its compilation.
      loop_seconds: of the loop, compilation apart; extrapolated where only some runs were timed.
      loop_compile_seconds: its compilation.
      largest_difference: of the final losses between the two ways, relative.
    """

    runs: int
    steps: int
    program_seconds: float
    program_compile_seconds: float
    loop_seconds: float
    loop_compile_seconds: float
    largest_difference: float

    @property
    def speedup(self) -> float:
        """How many times faster the program runs, compilation apart."""
        return self.loop_seconds / self.program_seconds

    @property
    def speedup_with_compilation(self) -> float:
        """The same with both compilations."""
        program = self.program_seconds + self.program_compile_seconds
        return (self.loop_seconds + self.loop_compile_seconds) / program


def cells(found: Sequence[SweepSpeed]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the table."""
    head = ["runs", "program s", "compile s", "loop s", "speed-up", "with compilation", "ms a run"]
    rows = [
        [
            str(f.runs),
            f"{f.program_seconds:.2f}",
            f"{f.program_compile_seconds:.2f}",
            f"{f.loop_seconds:.2f}",
            f"{f.speedup:.2f}",
            f"{f.speedup_with_compilation:.2f}",
            f"{1e3 * f.program_seconds / f.runs:.1f}",
        ]
        for f in found
    ]
    return head, rows


def problem(epochs: int) -> Problem:
    """Digits with all but a tenth to train on, batch 64."""
    made = digits.mlp(num_train=1600, batch_size=64, epochs=epochs)
    loss = made.measures["train_loss"]
    return made.replace(measures={"train_loss": loss}, final_measures={"train_loss": loss})


def measure(
    numbers: Sequence[int],
    *,
    epochs: int = 20,
    technique: Technique = TECHNIQUES["sgd"],
    loop_runs: int | None = None,
    seeds: int = 5,
    progress: Callable[[str], None] = lambda message: None,
) -> list[SweepSpeed]:
    """Times a sweep of each number of runs both ways.

    Args:
      numbers: multiples of `seeds`.
      epochs: of each run.
      technique: the optimizer.
      loop_runs: how many of the runs the loop is timed on, its time scaled up to all; None is all.
      seeds: of each rate.
      progress: told what is being done.

    Raises:
      ValueError: for a number that is no multiple of `seeds`.
    """
    for number in numbers:
        if number < 1 or number % seeds:
            raise ValueError(f"{number} runs are no multiple of the {seeds} seeds of each rate.")
    return [_measure(n, epochs, technique, loop_runs, seeds, progress) for n in numbers]


def _measure(runs, epochs, technique, loop_runs, seeds, progress):
    task = problem(epochs)
    rates = np.geomspace(0.01, 0.3, runs // seeds).tolist()
    planned = [runner.Run(technique, rate, seed) for rate in rates for seed in range(seeds)]
    progress(f"{runs} runs as one program")
    found = runner.run_all(task, planned, num_points=1)
    # Each chunk of runs has the seconds of its own program.
    program_seconds = sum(t.seconds_per_step for t in found) * task.num_steps
    timed = planned[:: max(1, runs // loop_runs)] if loop_runs else planned
    progress(f"{len(timed)} of {runs} runs as a loop")
    losses, loop_seconds, loop_compile = _loop(task, technique, timed)
    ours = {(t.run.learning_rate, t.run.seed): t.final["train_loss"] for t in found}
    differences = [
        abs(loss / ours[r.learning_rate, r.seed] - 1) for r, loss in zip(timed, losses, strict=True)
    ]
    return SweepSpeed(
        len(planned),
        task.num_steps,
        program_seconds,
        found[0].compile_seconds,
        loop_seconds * len(planned) / len(timed),
        loop_compile,
        float(max(differences)),
    )


def _loop(task, technique, planned):
    """The loop that people write: one jitted step, a Python loop over runs and steps."""

    @jax.jit
    def step(params, state, rate, chosen, data):
        batch = jax.tree.map(lambda x: x[chosen], data)
        optimizer = technique.make(rate, task.num_steps)
        return training_step.update(task, technique, optimizer, params, state, batch)

    def start(run):
        key = jax.random.key(run.seed)[None]
        params = jax.tree.map(lambda x: x[0], sampling.initial_params(task, key))
        batches = np.asarray(sampling.batches(task, key, task.num_steps))[0]
        rate = jnp.float32(run.learning_rate)
        return params, technique.make(rate, task.num_steps).init(params), rate, batches

    starts = [start(run) for run in planned]
    params, state, rate, batches = starts[0]
    began = time.perf_counter()
    jax.block_until_ready(step(params, state, rate, batches[0], task.train))
    compile_seconds = time.perf_counter() - began
    finals = []
    began = time.perf_counter()
    for params, state, rate, batches in starts:
        for index in range(task.num_steps):
            params, state = step(params, state, rate, batches[index], task.train)
        finals.append(params)
    jax.block_until_ready(finals)
    seconds = time.perf_counter() - began
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *finals)
    losses = program.measure(task, stacked, "final_measures")["train_loss"]
    return losses, seconds, compile_seconds
