"""Curvature and variance reduction: on batches, and on all examples; each keeps count of the passes that it takes.

A pass is a gradient on every example; see `Spent` for what else costs. An anchor's pass is spread over its epoch.
"""

from typing import Any

import jax.numpy as jnp
import optax
import optimistix

import optax_igr
from benchmarks.techniques.full_batch import on_full_batch_every
from benchmarks.techniques.optimistix_transform import minimiser_step
from benchmarks.techniques.technique import BASIC, Plan, Spent, Technique

PAIR_INTERVAL = 10
PRODUCT, GAUSS_NEWTON_PRODUCT, LOSS = 2.0, 4 / 3, 1 / 3

CURVATURE = (*BASIC, "curvature_value_fn")
FULL = (*BASIC, "full_value_fn")
OUTPUTS = ("outputs_fn", "output_loss_fn")
FULL_OUTPUTS = ("full_outputs_fn", "full_output_loss_fn")

# The default of `newton_cg`, named here since the passes depend on it.
MAX_STEPS = 20


def inverse_root(rate: Any, plan: Plan) -> optax.Schedule:
    """Returns the rate that falls like one over the root of the epochs."""
    return lambda count: rate / jnp.sqrt(1 + count / plan.steps_per_epoch)


def constant_spent(gradients: float) -> Any:
    """Returns a `Technique.spent` of steps that all take so many gradients of their batch."""
    return lambda before, after, plan: Spent(gradients / plan.steps_per_epoch)


def spent_with_pairs(gradients: float, memory_of: Any) -> Any:
    """Returns a `Technique.spent` that also counts the pairs of a memory of this library."""

    def spent(before, after, plan):
        before, after = memory_of(before), memory_of(after)
        rejected = after.rejected_count - before.rejected_count
        pairs = after.pair_count - before.pair_count + rejected
        return Spent(gradients / plan.steps_per_epoch, pairs, rejected)

    return spent


def _naive_spent(before, after, plan):
    # Optax keeps 1 / s'y of every pair, and no pair of the first step.
    newest = (before[0].count - 1) % len(after[0].weights_memory)
    is_pair = before[0].count > 0
    rejected = is_pair & ~(after[0].weights_memory[newest] > 0)
    return Spent(1 / plan.steps_per_epoch, is_pair, rejected)


def full_batch(
    name: str, optimizer: Any, passes: Any, interval_epochs: float, about: str, extra: Any = FULL
) -> Technique:
    """Makes a technique of `optimizer(rate)` on all examples, a step of which took `passes(state)`."""

    def interval(plan):
        return max(1, round(interval_epochs * plan.steps_per_epoch))

    def spent(before, after, plan):
        # The count of `on_full_batch_every`: between its steps nothing is spent.
        is_due = before[0] % interval(plan) == 0
        return Spent(jnp.where(is_due, passes(after[1]), 0.0))

    return Technique(
        name,
        lambda rate, plan: on_full_batch_every(interval(plan), optimizer(rate)),
        (1.0,),
        about,
        extra_arguments=extra,
        period=interval,
        spent=spent,
    )


def line_searched(direction: optax.GradientTransformationExtraArgs) -> Any:
    """Returns `rate -> optimizer`: a direction, then Optax's backtracking along it."""
    search = optax.scale_by_backtracking_linesearch(15)

    def optimizer(rate):
        along: Any = optax.chain(optax.scale(-rate), search)

        def init(params):
            return direction.init(params), *along.init(params)

        def update(updates, state, params: Any = None, **extra):
            updates, first = direction.update(updates, state[0], params, **extra)
            # The search refuses what its loss does not name, so the outputs are for the direction alone.
            shared = {name: x for name, x in extra.items() if name not in OUTPUTS}
            updates, rest = along.update(updates, state[1:], params, **shared)
            return updates, (first, *rest)

        return optax.GradientTransformationExtraArgs(init, update)

    return optimizer


def newton_passes(product: float) -> Any:
    """Returns `passes(state)` of Newton-CG with a line search, by the cost of one of its products."""

    def passes(state):
        direction, _, search = state
        # The gradient, the linearization, the products, and the losses of the ratio and of the line search.
        losses = 1 + search.info.num_linesearch_steps
        return 2 + product * direction.num_products + LOSS * losses

    return passes


def lbfgs_passes(state: Any) -> Any:
    """Returns the passes of a step of `optax.lbfgs`: every trial of its line search takes a gradient."""
    return state[-1].info.num_linesearch_steps


def _newton_spent(product):
    def spent(before, after, plan):
        del before
        return Spent((2 + product * after[0].num_products + LOSS) / plan.steps_per_epoch)

    return spent


TECHNIQUES = [
    Technique(
        "svrg",
        lambda rate, plan: optax.chain(
            optax_igr.svrg(anchor_interval=plan.steps_per_epoch), optax.sgd(rate)
        ),
        (0.1, 0.3),
        "variance reduction, an anchor an epoch",
        extra_arguments=FULL,
        period=lambda plan: plan.steps_per_epoch,
        spent=constant_spent(2 + 1),
    ),
    # A curvature batch is ten batches, and serves for ten steps.
    Technique(
        "sqn",
        lambda rate, plan: optax_igr.sqn(inverse_root(rate, plan), pair_interval=PAIR_INTERVAL),
        (0.03, 0.1),
        "stochastic quasi-Newton, rate ∝ 1/√epoch",
        extra_arguments=CURVATURE,
        period=PAIR_INTERVAL,
        spent=spent_with_pairs(1 + PRODUCT, lambda state: state[0].memory),
    ),
    Technique(
        "slbfgs",
        lambda rate, plan: optax_igr.slbfgs(
            rate, anchor_interval=plan.steps_per_epoch, pair_interval=PAIR_INTERVAL
        ),
        (0.003, 0.01, 0.03),
        "variance reduction and stochastic quasi-Newton, constant rate",
        extra_arguments=(*FULL, "curvature_value_fn"),
        period=lambda plan: max(PAIR_INTERVAL, plan.steps_per_epoch),
        spent=spent_with_pairs(2 + 1 + PRODUCT, lambda state: state[1].memory),
    ),
    Technique(
        "multibatch",
        lambda rate, plan: optax_igr.multibatch_lbfgs(rate),
        (0.03, 0.1),
        "multi-batch L-BFGS, overlap 25 %",
        extra_arguments=(*BASIC, "overlap_value_fn"),
        spent=spent_with_pairs(1 + 2 * 0.25, lambda state: state[0].memory),
    ),
    Technique(
        "naive_lbfgs",
        lambda rate, plan: optax.chain(optax.scale_by_lbfgs(), optax.scale_by_learning_rate(rate)),
        (0.03, 0.1),
        "optax.scale_by_lbfgs on the batches: differences of two batches' gradients",
        extra_arguments=(),
        spent=_naive_spent,
    ),
    Technique(
        "newton_cg",
        lambda rate, plan: optax_igr.newton_cg(rate, max_steps=MAX_STEPS),
        (0.1, 0.3, 1.0),
        "Newton-CG on each batch",
        spent=_newton_spent(PRODUCT),
    ),
    Technique(
        "gauss_newton_cg",
        lambda rate, plan: optax_igr.newton_cg(rate, max_steps=MAX_STEPS, curvature="gauss_newton"),
        (0.1, 0.3, 1.0),
        "Newton-CG with the Gauss-Newton matrix of each batch",
        extra_arguments=(*BASIC, *OUTPUTS),
        spent=_newton_spent(GAUSS_NEWTON_PRODUCT),
    ),
    full_batch(
        "full_lbfgs", lambda rate: optax.lbfgs(), lbfgs_passes, 0.5, "optax.lbfgs on all examples"
    ),
    # `optimistix.BFGS` cannot run here: inside `jax.shard_map` its identity operator is refused as not symmetric, since
    # the types of its input and its output differ in the mesh that they name (Optimistix 0.1.0, Lineax).
    full_batch(
        "optimistix_lbfgs",
        lambda rate: minimiser_step(optimistix.LBFGS(rtol=0.0, atol=0.0)),
        lambda state: 1.0,
        0.25,
        "optimistix.LBFGS on all examples",
    ),
    full_batch(
        "full_newton_cg",
        line_searched(optax_igr.scale_by_newton_cg(tolerance=0.1)),
        newton_passes(PRODUCT),
        1.5,
        "Newton-CG on all examples, then Optax's backtracking",
    ),
    full_batch(
        "full_gauss_newton_cg",
        line_searched(
            optax_igr.scale_by_newton_cg(
                curvature="gauss_newton", damping=0.1, tolerance=0.1, max_steps=30
            )
        ),
        newton_passes(GAUSS_NEWTON_PRODUCT),
        40.0,
        "Newton-CG with the Gauss-Newton matrix on all examples, then Optax's backtracking",
        (*FULL, *FULL_OUTPUTS),
    ),
]
