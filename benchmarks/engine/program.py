"""The steps of many runs of one technique as one compiled program, and the measures taken between them.

The runs are one leading axis under `jax.vmap`, split over the devices; the steps are a loop inside it. The loop stops
for each point of the curve, so that a progress bar moves, a measure costs no step its time, and the measures are
compiled once for all techniques of a problem.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.engine import sampling, training_step
from benchmarks.engine.carry_axes import carry_axes
from benchmarks.engine.training_step import Given
from benchmarks.problems.problem import Problem
from benchmarks.techniques.technique import Plan, Settings, Technique

# How an array lies on the devices: whole on each, or split by its leading axis of runs.
_WHOLE, _RUNS = PartitionSpec(), PartitionSpec("runs")


@dataclasses.dataclass(frozen=True)
class Run:
    """One trajectory's name: a technique at its settings from a seed."""

    technique: Technique
    settings: Settings
    seed: int


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What a run gave: its curve, its final measures, and the cost that it shared with its program.

    Attributes:
      run: whose trajectory it is.
      curve: by measure, the values after `curve["step"]` steps.
      final: by measure, the value after the last step.
      seconds_per_step: wall time of the program's steps / (steps x runs), without compilation.
      compile_seconds: of the program of the steps.
      runs_in_program: how many runs were compiled together.
    """

    run: Run
    curve: dict[str, list[float]]
    final: dict[str, Any]
    seconds_per_step: float
    compile_seconds: float
    runs_in_program: int


class Program:
    """The compiled steps of `size` runs of a technique."""

    def __init__(self, problem: Problem, technique: Technique, size: int, num_steps: int):
        self.problem, self.technique, self.num_steps = problem, technique, num_steps
        plan = Plan.of(problem, num_steps)
        self.mesh = _mesh(min(size, jax.device_count()))
        # Every device takes the same number of runs, so the last ones may be repeated.
        self.size = -(-size // self.mesh.size) * self.mesh.size
        # Once for all steps: a copy at every call would cost more than small steps.
        self.data, self.test = jax.device_put(
            (problem.train, problem.test), NamedSharding(self.mesh, _WHOLE)
        )
        begin = functools.partial(training_step.begin, technique, plan)
        step = functools.partial(training_step.step, problem, technique, plan)
        setting = jax.ShapeDtypeStruct((self.size,), jnp.float32)
        settings = dict.fromkeys(technique.settings, setting)
        seeds = jax.ShapeDtypeStruct((self.size,), jnp.uint32)
        # Shapes alone: the starts are drawn when the program runs.
        start, given = jax.eval_shape(self._drawn, settings, seeds)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        self.axes = carry_axes(begin, start, step, (count, given, problem.train), (None, 0, None))

        def advance(first, last, carry, given, data):
            def loop(carry, given):
                # The bounds are arguments, so that one compilation serves every stretch of the curve.
                return jax.lax.fori_loop(
                    first, last, lambda count, carry: step(carry, count, given, data), carry
                )

            return jax.vmap(loop, (self.axes, 0), self.axes)(carry, given)

        begin = jax.vmap(begin, (0, 0), self.axes)
        specs = _specs(self.axes)
        self.begin = _split(begin, self.mesh, (_RUNS, _RUNS), specs)
        of_advance = (_WHOLE, _WHOLE, specs, _RUNS, _WHOLE)
        steps = _split(advance, self.mesh, of_advance, specs, donate_argnums=2)
        began = time.perf_counter()
        self.advance = steps.lower(0, 0, jax.eval_shape(begin, *start), given, self.data).compile()
        self.compile_seconds = time.perf_counter() - began
        # Not every backend tells what a program needs: then it is not split.
        memory = self.advance.memory_analysis()
        self.memory = memory.temp_size_in_bytes + memory.argument_size_in_bytes if memory else 0

    def run(self, runs: Sequence[Run], points, progress) -> list[Trajectory]:
        """Runs the program from the start and measures it at the points."""
        problem = self.problem
        padded = list(runs) + [runs[-1]] * (self.size - len(runs))
        sharding = NamedSharding(self.mesh, _RUNS)
        settings = {
            name: jnp.asarray([r.settings[name] for r in padded], jnp.float32, device=sharding)
            for name in self.technique.settings
        }
        seeds = jnp.asarray([r.seed for r in padded], jnp.uint32, device=sharding)
        start, given = self._drawn(settings, seeds)
        carry = self.begin(*start)
        # Some techniques are measured elsewhere than where they step, at an average for example.
        eval_params = jax.jit(jax.vmap(self.technique.eval_params, (self.axes.state, 0)))

        def measured(which):
            compiled = _measures(tuple(getattr(problem, which).items()), self.mesh)
            evaluated = eval_params(carry.state, carry.params)
            return jax.device_get(compiled(evaluated, self.data, self.test))

        curve = [measured("measures")]
        seconds = 0.0
        for first, last in itertools.pairwise(points):
            began = time.perf_counter()
            carry = self.advance(int(first), int(last), carry, given, self.data)
            # JAX returns before the steps are done; without this the clock would stop too early.
            jax.block_until_ready(carry)
            seconds += time.perf_counter() - began
            curve.append(measured("measures"))
            progress(last / self.num_steps)
        final = measured("final_measures")
        return [
            Trajectory(
                run=run,
                curve={"step": points.tolist()}
                | {name: [_number(point[name][i]) for point in curve] for name in curve[0]},
                final={name: _number(value[i]) for name, value in final.items()},
                seconds_per_step=seconds / max(1, points[-1]) / len(runs),
                compile_seconds=self.compile_seconds,
                runs_in_program=len(runs),
            )
            for i, run in enumerate(runs)
        ]

    def _drawn(self, settings, seeds):
        """Returns what the runs begin with, and what they take to every step."""
        keys = sampling.keys(seeds)
        batches = sampling.batches(self.problem, keys, self.num_steps)
        start = settings, sampling.initial_params(self.problem, keys)
        return start, Given(settings, keys, batches)


def measure(problem: Problem, params: chex.ArrayTree, which: str) -> dict[str, np.ndarray]:
    """Measures parameters with a leading axis of runs: `which` is `measures` or `final_measures`."""
    compiled = _measures(tuple(getattr(problem, which).items()), _mesh(1))
    return jax.device_get(compiled(params, problem.train, problem.test))


@functools.lru_cache(maxsize=8)
def _measures(measures, mesh):
    def one(params, train, test):
        return {name: fn(params, train, test) for name, fn in measures}

    measured = jax.vmap(one, (0, None, None))
    return _split(measured, mesh, (_RUNS, _WHOLE, _WHOLE), _RUNS)


def _split(fn, mesh, in_specs, out_specs, **options):
    """Compiles a function of many runs for the devices, each with its share of the runs."""
    split = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(split, **options)


def _mesh(num_devices):
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((num_devices,), ("runs",), (AxisType.Auto,), devices=devices)


def _specs(axes):
    return jax.tree.map(
        lambda axis: _WHOLE if axis is None else _RUNS,
        axes,
        is_leaf=lambda x: x is None,
    )


def _number(value):
    return value.tolist() if isinstance(value, np.ndarray) else float(value)
