"""Runs of a technique, at all settings and seeds, split into programs that fit the devices.

On a CPU each core is a device (`use_every_core`): XLA leaves small batched products to one core.
"""

import contextlib
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np

from benchmarks.engine.program import Program, Run, Trajectory
from benchmarks.problems.problem import Problem

MEMORY_LIMIT = 2 * 2**30

# On a CPU the parameters of the runs that a device takes together stay in its cache: with 200 small runs at once
# each step streams all of them from memory, and a run costs half as much again.
CACHED_PARAMETERS = 2 * 2**20


def run_all(
    problem: Problem,
    runs: Sequence[Run],
    *,
    num_steps: int | None = None,
    num_points: int = 25,
    memory_limit: int = MEMORY_LIMIT,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[Trajectory]:
    """Runs a list of runs of one technique.

    Args:
      problem: what is minimized.
      runs: of one technique. A seed fixes a start and the order of the batches, the same for every technique.
      num_steps: None takes the problem's own.
      num_points: the number of intervals of the curve.
      memory_limit: bytes of a program; where they do not suffice the runs are split into chunks.
      progress: told the fraction done.

    Returns:
      One trajectory a run, in their order.
    """
    num_steps = num_steps or problem.num_steps
    # Rounding may make two points equal where the run is shorter than the curve.
    points = np.unique(np.linspace(0, num_steps, num_points + 1).round().astype(int))
    size = _cached_size(problem, len(runs))
    while True:
        program = Program(problem, runs[0].technique, size, num_steps)
        if size == 1 or program.memory <= memory_limit:
            break
        # The memory of a program grows with its runs, not quite in proportion: measured again.
        size = max(1, min(size - 1, int(size * memory_limit / program.memory)))
    done: list[Trajectory] = []
    for first in range(0, len(runs), size):
        chunk = list(runs[first : first + size])
        # A last, shorter chunk repeats a run: another shape would be another compilation.
        padded = chunk + [chunk[-1]] * (size - len(chunk))

        def chunk_progress(fraction, first=first, chunk=chunk):
            progress((first + fraction * len(chunk)) / len(runs))

        done += program.run(padded, points, chunk_progress)[: len(chunk)]
    return done


def use_every_core() -> None:
    """Makes each CPU core a device of its own, unless JAX has started or the number of devices is set already."""
    chosen = getattr(jax.config, "jax_num_cpu_devices", -1) >= 0
    if chosen or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    # Raised where the devices are in use already.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", _num_cores())


def _num_cores():
    # Not on every system; a container may have fewer cores than its machine.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cached_size(problem, num_runs):
    """Returns the size of equal chunks whose parameters stay in the caches; all runs but on a CPU."""
    # An accelerator gains from every further run, until its memory is full.
    if jax.default_backend() != "cpu":
        return num_runs
    params = jax.eval_shape(problem.init, jax.random.key(0))
    each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    chunks = -(-num_runs * each // (CACHED_PARAMETERS * jax.device_count()))
    return -(-num_runs // max(1, min(chunks, -(-num_runs // jax.device_count()))))
