"""The gradients and Hessian-vector products of a step: counted, not declared.

The loss is evaluated operation by operation on parameters that pass through a probe, whose backward rule counts
gradients and whose forward derivative counts Hessian-vector products. A gradient at a point and batch that the step
has already seen is shared and not counted twice. A linearization counts as one product, however often it is used: a
technique that solves a system with it says by `Technique.spent` what that takes.
"""

import jax
import numpy as np

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
            # A callback may still be on its way.
            jax.effects_barrier()
    return ledger.gradients / (last - first), ledger.products / (last - first)


class _Ledger:
    """Counts derivatives of a loss by a probe on its parameters."""

    def __init__(self, batch_size):
        self.batch_size = batch_size
        self.gradients = self.products = 0.0
        self.seen: set = set()

    def watch(self, loss):
        def watched(params, batch):
            return loss(self._probe(batch)(params), batch)

        return watched

    def _probe(self, batch):
        weight = 1.0
        if self.batch_size is not None and batch is not None:
            weight = len(jax.tree.leaves(batch)[0]) / self.batch_size

        # A callback runs where the derivative is computed, and sees the numbers. Python alone would count what is only
        # traced, such as a check of whether a loss has a derivative, and would not know at which point.
        def count(point, examples, products):
            self._count(point, examples, float(products), weight)

        @jax.custom_jvp
        def backward(params, cotangent):
            jax.debug.callback(count, params, batch, 0)
            return cotangent

        @backward.defjvp
        def _(primals, tangents):
            jax.debug.callback(count, primals[0], batch, 1)
            return primals[1], tangents[1]

        @jax.custom_vjp
        def probe(params):
            return params

        probe.defvjp(lambda p: (p, p), lambda p, cotangent: (backward(p, cotangent),))
        return probe

    def _count(self, point, examples, products, weight):
        self.products += products * weight
        # By content: two losses may be of the same examples under different names.
        place = tuple(np.asarray(x).tobytes() for x in jax.tree.leaves((point, examples)))
        if place not in self.seen:
            self.gradients += weight
        self.seen.add(place)


def _example_batch(problem, step):
    if problem.train is None or problem.batch_size is None:
        return problem.train
    first = step % problem.steps_per_epoch * problem.batch_size
    return jax.tree.map(lambda x: x[first : first + problem.batch_size], problem.train)
