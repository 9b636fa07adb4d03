"""The gradients and Hessian-vector products of a step: counted, not declared.

The loss is evaluated operation by operation on parameters that pass through a probe, whose backward rule counts
gradients and whose forward derivative counts Hessian-vector products. A gradient at a point and batch that the step
has already seen is shared and not counted twice.
"""

import collections

import jax
import numpy as np
from jax.core import Tracer

from benchmarks.engine import training_step
from benchmarks.problems.problem import Problem
from benchmarks.techniques.technique import Plan, Settings, Technique

_COUNTED_STEPS = 4


def count_gradients(
    problem: Problem, technique: Technique, settings: Settings, num_steps: int | None = None
) -> tuple[float, float]:
    """Counts the gradients and Hessian-vector products of a step, in units of one batch.

    Args:
      problem: whose loss is watched.
      technique: whose steps are taken, one operation at a time.
      settings: of the technique.
      num_steps: the length of the run that they open; None takes the problem's own.

    Returns:
      The means, each derivative weighted by its examples / the batch size: over the first steps, or, where the
      technique declares a period, over its third, when memories are filled and every branch has been taken.
    """
    ledger = _Ledger(problem.batch_size)
    counted = problem.replace(loss=ledger.watch(problem.loss))
    plan = Plan.of(problem, num_steps)
    period = technique.period_in(plan)
    first, last = (0, _COUNTED_STEPS) if period == 1 else (2 * period, 3 * period)
    params = jax.jit(problem.init)(jax.random.key(0))
    # Operation by operation: inside a compiled step the probe would run once, when it is traced.
    with jax.disable_jit():
        optimizer = technique.transform(settings, plan)
        state = optimizer.init(params)
        for step in range(last):
            if step == first:
                ledger.gradients = ledger.products = 0.0
            # Sharing is counted within a step alone: the next one has another batch.
            ledger.seen.clear()
            batch = _example_batch(problem, step)
            params, state = training_step.update(
                counted, technique, optimizer, params, state, batch, data=problem.train
            )
    return ledger.gradients / (last - first), ledger.products / (last - first)


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
        # By content: two losses may be of the same examples under different names.
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
    # Under a transformation there is no value to compare: counted as new.
    if any(isinstance(x, Tracer) for x in leaves):
        return None
    return tuple(np.asarray(x).tobytes() for x in leaves)


def _example_batch(problem, step):
    if problem.train is None or problem.batch_size is None:
        return problem.train
    first = step % problem.steps_per_epoch * problem.batch_size
    return jax.tree.map(lambda x: x[first : first + problem.batch_size], problem.train)
