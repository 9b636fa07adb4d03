"""Whether a technique can run on a problem: said before anything runs, with the reason."""

import jax
import jax.numpy as jnp

from benchmarks.engine import training_step
from benchmarks.problems.problem import Problem
from benchmarks.techniques.technique import NUM_MICROBATCHES, Plan, Technique

_OUTPUTS = {"outputs_fn", "output_loss_fn", "full_outputs_fn", "full_output_loss_fn"}


def why_not(technique: Technique, problem: Problem, *, trace: bool = True) -> str | None:
    """Returns why a technique cannot run on a problem; None where it can.

    What the two say of themselves is compared first. Then, with `trace`, one step is traced and none is taken: an error
    of the technique, such as that of a weight which it has no operator for, is the reason.
    """
    # What a technique declares has a better message than what a trace would raise.
    asked = set(technique.extra_arguments)
    if technique.deterministic and problem.batch_size is not None:
        return "a deterministic minimizer needs steps that all see the same batch"
    if technique.domain != problem.domain:
        return f"it is for {technique.domain} parameters, and those of the problem are {problem.domain}"
    if asked & _OUTPUTS and problem.outputs is None:
        return "it needs the outputs of a model, and the problem has a loss alone"
    size = problem.batch_size or problem.num_examples or 0
    if "microbatch_value_fn" in asked and size < NUM_MICROBATCHES:
        return f"it needs batches of at least {NUM_MICROBATCHES} examples"
    if not trace:
        return None
    try:
        _trace_a_step(technique, problem)
    except (ValueError, TypeError) as error:
        # The rest of a message is often a trace that says nothing to the reader.
        return str(error).splitlines()[0]
    return None


def _trace_a_step(technique, problem):
    batch = data = problem.train
    if data is not None and problem.batch_size is not None:
        batch = jax.tree.map(lambda x: x[: problem.batch_size], data)
    plan = Plan.of(problem)

    def step(settings, key):
        params = problem.init(key)
        optimizer = technique.transform(settings, plan)
        state = optimizer.init(params)
        return training_step.update(problem, technique, optimizer, params, state, batch, data=data)

    first = technique.named_settings(technique.grid[0])
    # Numbers of the runner's dtype, not constants: so they are in a run.
    jax.eval_shape(step, {name: jnp.float32(x) for name, x in first.items()}, jax.random.key(0))
