"""One step of one run: its batch, its gradient, the extra arguments that the technique asks for, the update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import optax

from benchmarks.problems.problem import Problem
from benchmarks.techniques.technique import NUM_MICROBATCHES, Plan, Settings, Technique

# Sets the draws of curvature batches apart from those of the epochs' orders.
_CURVATURE_STREAM = 2**31 - 1


class Carry(NamedTuple):
    """What one run hands from step to step."""

    params: chex.ArrayTree
    state: optax.OptState


class Given(NamedTuple):
    """What one run takes to every step.

    Attributes:
      settings: of its technique, by name.
      key: of its draws.
      batches: the examples of each step, or None where every step takes all.
    """

    settings: Settings
    key: chex.PRNGKey
    batches: chex.Array | None


def begin(technique: Technique, plan: Plan, settings: Settings, params: chex.ArrayTree) -> Carry:
    """Returns the carry before the first step."""
    return Carry(params, technique.transform(settings, plan).init(params))


def step(
    problem: Problem,
    technique: Technique,
    plan: Plan,
    carry: Carry,
    count: chex.Array,
    given: Given,
    data: Any,
) -> Carry:
    """Takes step `count` on its batch of the data."""
    batch = data
    if given.batches is not None:
        examples = jax.lax.dynamic_index_in_dim(given.batches, count, keepdims=False)
        # The data stay whole and the step picks its examples: batches made beforehand would not fit.
        batch = jax.tree.map(lambda x: x[examples], data)
        batch = batch if problem.shift is None else problem.shift(batch, count)

    def curvature_key():
        return jax.random.fold_in(jax.random.fold_in(given.key, _CURVATURE_STREAM), count)

    # Made inside the step, from traced settings: so one program serves all of a grid.
    optimizer = technique.transform(given.settings, plan)
    return Carry(
        *update(
            problem,
            technique,
            optimizer,
            carry.params,
            carry.state,
            batch,
            data=data,
            curvature_key=curvature_key,
        )
    )


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
    # A technique names what it wants. What nobody calls is not traced, so an offer costs nothing.
    offered: dict[str, Any] = {
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
    if problem.outputs is not None and problem.output_loss is not None:
        outputs, output_loss = problem.outputs, problem.output_loss
        offered |= {
            "outputs_fn": lambda p: outputs(p, batch),
            "output_loss_fn": lambda y: output_loss(y, batch),
            "full_outputs_fn": lambda p: outputs(p, data),
            "full_output_loss_fn": lambda y: output_loss(y, data),
        }
    extra = {name: offered[name] for name in technique.extra_arguments}
    optimizer = optax.with_extra_args_support(optimizer)
    updates, state = optimizer.update(grad, state, params, **extra)
    return optax.apply_updates(params, updates), state
