"""A technique's runs, all rates and all seeds of them, as one compiled program.

The runs are one leading axis under `jax.vmap`, split over every device; the steps are a loop inside it. On a CPU
each core is a device (`use_every_core`): XLA leaves small batched products to one core.
The loop stops for each point of the curve, so that a progress bar moves, a measure costs no step its
time, and the measures are compiled once for all techniques of a problem.

Leaves of the state that no run changes on its own (step counts, above all) stay outside the batch:
under `jax.vmap` a `lax.cond` on a batched predicate would take both of its branches at every step.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.problems.problem import Problem
from benchmarks.technique import NUM_MICROBATCHES, Technique

MEMORY_LIMIT = 2 * 2**30

# On a CPU the parameters of the runs that a device takes together stay in its cache: with 200 small runs at once
# each step streams all of them from memory, and a run costs half as much again.
CACHED_PARAMETERS = 2 * 2**20

# A run whose loss exceeds this multiple of its first has diverged, as one that is not finite has.
DIVERGED = 1e3

# Sets the draws of curvature batches apart from those of the epochs' orders.
_CURVATURE_STREAM = 2**31 - 1


class Carry(NamedTuple):
    """What one run hands from step to step."""

    params: chex.ArrayTree
    state: optax.OptState
    order: chex.Array


@dataclasses.dataclass(frozen=True)
class Run:
    """One trajectory's name: a technique at a learning rate from a seed."""

    technique: Technique
    learning_rate: float
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


def trajectories(
    problem: Problem,
    technique: Technique,
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    *,
    num_steps: int | None = None,
    num_points: int = 25,
    memory_limit: int = MEMORY_LIMIT,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[Trajectory]:
    """Runs a technique at each of the rates from each of the seeds.

    Args:
      problem: what is minimised.
      technique: by what.
      learning_rates: one or more.
      seeds: each fixes a start and the order of the batches, the same for every technique and rate.
      num_steps: None takes the problem's own.
      num_points: the number of intervals of the curve.
      memory_limit: bytes of a program; where they do not suffice the runs are split into chunks.
      progress: told the fraction done.

    Returns:
      One trajectory a run, rates outermost.
    """
    runs = [Run(technique, rate, seed) for rate in learning_rates for seed in seeds]
    return run_all(
        problem,
        runs,
        num_steps=num_steps,
        num_points=num_points,
        memory_limit=memory_limit,
        progress=progress,
    )


def run_all(
    problem: Problem,
    runs: Sequence[Run],
    *,
    num_steps: int | None = None,
    num_points: int = 25,
    memory_limit: int = MEMORY_LIMIT,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[Trajectory]:
    """Runs a list of runs of one technique; see `trajectories`."""
    num_steps = num_steps or problem.num_steps
    points = np.unique(np.linspace(0, num_steps, num_points + 1).round().astype(int))
    size = _cached_size(problem, len(runs))
    while True:
        program = Program(problem, runs[0].technique, size, num_steps)
        if size == 1 or program.memory <= memory_limit:
            break
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
    if jax.default_backend() != "cpu":
        return num_runs
    params = jax.eval_shape(problem.init, jax.random.key(0))
    each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    chunks = -(-num_runs * each // (CACHED_PARAMETERS * jax.device_count()))
    return -(-num_runs // max(1, min(chunks, -(-num_runs // jax.device_count()))))


class Program:
    """The compiled steps of `size` runs of a technique."""

    def __init__(self, problem: Problem, technique: Technique, size: int, num_steps: int):
        self.problem, self.technique, self.num_steps = problem, technique, num_steps
        self.mesh = _mesh(min(size, jax.device_count()))
        self.size = -(-size // self.mesh.size) * self.mesh.size
        rates = jax.ShapeDtypeStruct((self.size,), jnp.float32)
        keys = jax.eval_shape(_keys, jax.ShapeDtypeStruct((self.size,), jnp.uint32))
        params = jax.eval_shape(lambda keys: initial_params(problem, keys), keys)
        begin = functools.partial(_begin, problem, technique, num_steps)
        step = functools.partial(_step, problem, technique, num_steps)
        self.axes = _carry_axes(begin, step, problem, params, rates, keys)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.data, self.test = jax.device_put((problem.train, problem.test), everywhere)

        def advance(first, last, carry, rates, keys, data):
            def loop(carry, rate, key):
                return jax.lax.fori_loop(
                    first, last, lambda t, c: step(t, c, rate, key, data), carry
                )

            return jax.vmap(loop, (self.axes, 0, 0), self.axes)(carry, rates, keys)

        specs = _specs(self.axes)
        runs = PartitionSpec("runs")
        whole = PartitionSpec()
        self.begin = jax.jit(
            jax.shard_map(
                jax.vmap(begin, (0, 0), self.axes),
                mesh=self.mesh,
                in_specs=(runs, runs),
                out_specs=specs,
                check_vma=False,
            )
        )
        advance = jax.shard_map(
            advance,
            mesh=self.mesh,
            in_specs=(whole, whole, specs, runs, runs, whole),
            out_specs=specs,
            check_vma=False,
        )
        carry = jax.eval_shape(jax.vmap(begin, (0, 0), self.axes), rates, params)
        began = time.perf_counter()
        self.advance = (
            jax.jit(advance, donate_argnums=2).lower(0, 0, carry, rates, keys, self.data).compile()
        )
        self.compile_seconds = time.perf_counter() - began
        memory = self.advance.memory_analysis()
        self.memory = memory.temp_size_in_bytes + memory.argument_size_in_bytes if memory else 0

    def run(self, runs: Sequence[Run], points, progress) -> list[Trajectory]:
        """Runs the program from the start and measures it at the points."""
        problem = self.problem
        padded = list(runs) + [runs[-1]] * (self.size - len(runs))
        sharding = NamedSharding(self.mesh, PartitionSpec("runs"))
        rates = jnp.asarray([r.learning_rate for r in padded], jnp.float32, device=sharding)
        keys = jax.device_put(_keys(jnp.asarray([r.seed for r in padded], jnp.uint32)), sharding)
        carry = self.begin(rates, initial_params(problem, keys))
        eval_params = jax.jit(jax.vmap(self.technique.eval_params, (self.axes.state, 0)))

        def measured(which):
            compiled = _measures(tuple(getattr(problem, which).items()), self.mesh)
            evaluated = eval_params(carry.state, carry.params)
            return jax.device_get(compiled(evaluated, self.data, self.test))

        curve = [measured("measures")]
        seconds = 0.0
        for first, last in itertools.pairwise(points):
            began = time.perf_counter()
            carry = self.advance(int(first), int(last), carry, rates, keys, self.data)
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


def measure(problem: Problem, params: chex.ArrayTree, which: str) -> dict[str, np.ndarray]:
    """Measures parameters with a leading axis of runs: `which` is `measures` or `final_measures`."""
    compiled = _measures(tuple(getattr(problem, which).items()), _mesh(1))
    return jax.device_get(compiled(params, problem.train, problem.test))


@functools.lru_cache(maxsize=8)
def _measures(measures, mesh):
    def one(params, train, test):
        return {name: fn(params, train, test) for name, fn in measures}

    runs, whole = PartitionSpec("runs"), PartitionSpec()
    return jax.jit(
        jax.shard_map(
            jax.vmap(one, (0, None, None)),
            mesh=mesh,
            in_specs=(runs, whole, whole),
            out_specs=runs,
            check_vma=False,
        )
    )


def _mesh(num_devices):
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((num_devices,), ("runs",), (AxisType.Auto,), devices=devices)


def initial_params(problem: Problem, keys: chex.PRNGKey) -> chex.ArrayTree:
    """Returns the starts of the runs with these keys."""
    return _compiled_init(problem.init)(keys)


@functools.lru_cache(maxsize=8)
def _compiled_init(init):
    # Apart from the state: drawing random numbers compiles slowly, and once does for all techniques.
    return jax.jit(jax.vmap(lambda key: init(jax.random.fold_in(key, 0))))


def _begin(problem, technique, num_steps, rate, params):
    state = technique.make(rate, num_steps).init(params)
    return Carry(params, state, jnp.arange(problem.num_examples or 1))


def _step(problem, technique, num_steps, count, carry, rate, key, data):
    batch, order = _batch(problem, technique, count, carry.order, key, data)
    optimizer = technique.make(rate, num_steps)

    def curvature_key():
        return jax.random.fold_in(jax.random.fold_in(key, _CURVATURE_STREAM), count)

    params, state = update(
        problem,
        technique,
        optimizer,
        carry.params,
        carry.state,
        batch,
        data=data,
        curvature_key=curvature_key,
    )
    return Carry(params, state, order)


def update(
    problem: Problem,
    technique: Technique,
    optimizer: optax.GradientTransformation,
    params: chex.ArrayTree,
    state: optax.OptState,
    batch: Any,
    *,
    data: Any = None,
    curvature_key: Callable[[], chex.PRNGKey] = lambda: jax.random.key(0),
) -> tuple[Any, Any]:
    """Takes one step: the gradient, the extra arguments that the technique asks for, the update.

    The curvature batch is drawn inside its loss, so that a technique that seldom asks seldom draws. The overlap is the
    first part of the batch: for a pair it counts that both of its gradients are taken on the same examples.
    """

    def value_fn(p):
        return problem.loss(p, batch)

    def microbatch_value_fn(p, index):
        size = len(jax.tree.leaves(batch)[0]) // NUM_MICROBATCHES
        part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size), batch)
        return problem.loss(p, part)

    def curvature_value_fn(p):
        size = problem.curvature_batch_size
        if size is None or data is None:
            return value_fn(p)
        # Asked for here: a key that is folded and never used crashes the compiled program (JAX 0.10.2, CPU).
        key = curvature_key()
        chosen = jax.random.choice(key, problem.num_examples or 1, (size,), replace=False)
        return problem.loss(p, jax.tree.map(lambda x: x[chosen], data))

    def overlap_value_fn(p):
        if batch is None:
            return value_fn(p)
        size = max(1, round(problem.overlap * len(jax.tree.leaves(batch)[0])))
        return problem.loss(p, jax.tree.map(lambda x: x[:size], batch))

    value, grad = jax.value_and_grad(value_fn)(params)
    offered = {
        "value": value,
        "grad": grad,
        "value_fn": value_fn,
        "grad_fn": lambda p, index: jax.grad(value_fn)(p),
        "obj_fn": value_fn,
        "full_value_fn": lambda p: problem.loss(p, data),
        "microbatch_value_fn": microbatch_value_fn,
        "curvature_value_fn": curvature_value_fn,
        "overlap_value_fn": overlap_value_fn,
    }
    extra = {name: offered[name] for name in technique.extra_arguments}
    optimizer = optax.with_extra_args_support(optimizer)
    updates, state = optimizer.update(grad, state, params, **extra)
    return optax.apply_updates(params, updates), state


def _batch(problem, technique, count, order, key, data):
    """Returns the examples of step `count`, each epoch in a new order."""
    if data is None or problem.batch_size is None:
        return data, order
    epoch, position = count // problem.steps_per_epoch, count % problem.steps_per_epoch
    shuffled = functools.partial(jax.random.permutation, jax.random.fold_in(key, epoch + 1))
    order = jax.lax.cond(position == 0, lambda o: shuffled(len(o)), lambda o: o, order)
    chosen = jax.lax.dynamic_slice_in_dim(order, position * problem.batch_size, problem.batch_size)
    batch = jax.tree.map(lambda x: x[chosen], data)
    return (batch if problem.shift is None else problem.shift(batch, count)), order


def _keys(seeds):
    return jax.vmap(jax.random.key)(seeds)


def _carry_axes(begin, step, problem, params, rates, keys):
    """Finds the leaves of the carry that `jax.vmap` batches: 0 where it does and None elsewhere.

    A leaf that starts unbatched may be batched by a step, so steps are traced until nothing changes.
    """
    found: list[Any] = []

    @jax.custom_batching.custom_vmap
    def probe(leaves):
        return leaves

    @probe.def_vmap
    def _(axis_size, in_batched, leaves):
        found.append(in_batched[0])
        return leaves, in_batched[0]

    def batched_leaves(fn, axes, *arguments):
        def probed(*args):
            leaves, structure = jax.tree.flatten(fn(*args))
            return jax.tree.unflatten(structure, probe(leaves))

        found.clear()
        carry = jax.eval_shape(jax.vmap(probed, axes), *arguments)
        batched = found[0] if found else [False] * len(jax.tree.leaves(carry))
        return carry, jax.tree.structure(carry), list(batched)

    carry, structure, batched = batched_leaves(begin, (0, 0), rates, params)
    while True:
        axes = jax.tree.unflatten(structure, [0 if b else None for b in batched])
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), carry)
        arguments = jax.tree.unflatten(
            structure,
            [
                full if b else single
                for full, single, b in zip(
                    jax.tree.leaves(carry), jax.tree.leaves(one), batched, strict=True
                )
            ],
        )
        count = jax.ShapeDtypeStruct((), jnp.int32)
        _, _, after = batched_leaves(
            step, (None, axes, 0, 0, None), count, arguments, rates, keys, problem.train
        )
        grown = [a or b for a, b in zip(batched, after, strict=True)]
        if grown == batched:
            return axes
        batched = grown


def _specs(axes):
    return jax.tree.map(
        lambda axis: PartitionSpec() if axis is None else PartitionSpec("runs"),
        axes,
        is_leaf=lambda x: x is None,
    )


def _number(value):
    return value.tolist() if isinstance(value, np.ndarray) else float(value)
