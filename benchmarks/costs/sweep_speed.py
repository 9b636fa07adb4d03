"""The runner beside a plain Python loop over one jitted step: the same runs, the same batches, timed.

Starts and batches are drawn by the same programs for both, before either clock starts. The measures of a record:

- `runs` (settings times seeds), `steps` of each;
- `program_seconds`, `program_compile_seconds`: of the one program, compilation apart;
- `loop_seconds`, `loop_compile_seconds`: of the loop; scaled up where only some runs were timed;
- `largest_difference`: of the final losses between the two, relative.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.costs.timing import Progress, seconds_of, silent
from benchmarks.engine import program, runner, sampling, training_step
from benchmarks.engine.machine import environment
from benchmarks.engine.old_lines import SWEEP
from benchmarks.engine.records import Record
from benchmarks.problems import digits
from benchmarks.problems.problem import Problem
from benchmarks.techniques import TECHNIQUES
from benchmarks.techniques.technique import Plan, Technique


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
    progress: Progress = silent,
) -> list[Record]:
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
    # Below where the runs diverge: NaN is no slower, but its losses cannot be compared.
    rates = np.geomspace(0.01, 0.3, runs // seeds).tolist()
    planned = [
        runner.Run(technique, technique.named_settings(rate), seed)
        for rate in rates
        for seed in range(seeds)
    ]
    progress(f"{runs} runs as one program")
    found = runner.run_all(task, planned, num_points=1)
    # Each chunk of runs has the seconds of its own program.
    program_seconds = sum(t.seconds_per_step for t in found) * task.num_steps
    # Spread over the grid, so that all rates are among them.
    timed = planned[:: max(1, runs // loop_runs)] if loop_runs else planned
    progress(f"{len(timed)} of {runs} runs as a loop")
    losses, loop_seconds, loop_compile = _loop(task, technique, timed)
    ours = {_name(trajectory.run): trajectory.final["train_loss"] for trajectory in found}
    differences = [abs(loss / ours[_name(r)] - 1) for r, loss in zip(timed, losses, strict=True)]
    measures = {
        "runs": len(planned),
        "steps": task.num_steps,
        "program_seconds": program_seconds,
        "program_compile_seconds": found[0].compile_seconds,
        "loop_seconds": loop_seconds * len(planned) / len(timed),
        "loop_compile_seconds": loop_compile,
        "largest_difference": float(max(differences)),
    }
    return Record(
        technique.name,
        SWEEP,
        task.about,
        settings={"runs": len(planned)},
        measures=measures,
        environment=environment(),
    )


def _name(run):
    return *run.settings.values(), run.seed


def _loop(task, technique, planned):
    """The loop that people write: one jitted step, a Python loop over runs and steps."""
    plan = Plan.of(task)

    @jax.jit
    def step(params, state, settings, chosen, data):
        batch = jax.tree.map(lambda x: x[chosen], data)
        optimizer = technique.transform(settings, plan)
        return training_step.update(task, technique, optimizer, params, state, batch)

    def start(run):
        key = jax.random.key(run.seed)[None]
        params = jax.tree.map(lambda x: x[0], sampling.initial_params(task, key))
        batches = np.asarray(sampling.batches(task, key, task.num_steps))[0]
        # Arrays, as constants would be another compilation for each rate.
        settings = {name: jnp.float32(x) for name, x in run.settings.items()}
        return params, technique.transform(settings, plan).init(params), settings, batches

    starts = [start(run) for run in planned]
    params, state, settings, batches = starts[0]
    compile_seconds = seconds_of(lambda: step(params, state, settings, batches[0], task.train))
    finals = []

    def all_runs():
        for params, state, settings, batches in starts:
            for index in range(task.num_steps):
                params, state = step(params, state, settings, batches[index], task.train)
            finals.append(params)
        return finals

    seconds = seconds_of(all_runs)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *finals)
    losses = program.measure(task, stacked, "final_measures")["train_loss"]
    return losses, seconds, compile_seconds
