"""What `curvature` compares: optimizers that keep count of the passes over the data that they cost.

A pass is a gradient on every example. A Hessian-vector product counts as two, a Gauss-Newton-vector product as 4/3, a
loss alone as 1/3: their multiplications of matrices. An anchor's pass is spread over its epoch.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
import optimistix

import optax_igr
from benchmarks.problems import autoencoder, convex
from benchmarks.techniques.optimistix_transform import stepwise
from benchmarks.techniques.pass_counting import Metered, Spent, metered, on_full_batch_every
from benchmarks.techniques.technique import BASIC, Technique

PAIR_INTERVAL = 10
PRODUCT, GAUSS_NEWTON_PRODUCT, LOSS = 2.0, 4 / 3, 1 / 3

CURVATURE = (*BASIC, "curvature_value_fn")
FULL = (*BASIC, "full_value_fn")


def technique(
    name: str,
    make: Callable[[Any, int, int], optax.GradientTransformation],
    rates: tuple[float, ...],
    about: str,
    meter: Callable[[Any, Any, int], Spent],
    extra_arguments: tuple[str, ...] = BASIC,
    epochs: int = convex.EPOCHS,
) -> Technique:
    """Makes a technique of `make(rate, steps, steps an epoch)` and `meter(before, after, steps an epoch)`."""

    def factory(rate, num_steps):
        epoch = max(1, num_steps // epochs)
        return metered(make(rate, num_steps, epoch), lambda a, b: meter(a, b, epoch))

    def eval_params(state: Any, params: Any) -> Any:
        return Metered(params, state.spent)

    return Technique(
        name,
        factory,
        rates,
        about,
        eval_params=eval_params,
        extra_arguments=extra_arguments,
    )


def _decayed(rate, epoch):
    return lambda count: rate / jnp.sqrt(1 + count / epoch)


def _constant(gradients):
    return lambda before, after, epoch: Spent(gradients / epoch)


def _with_pairs(gradients, memory_of):
    """Counts the pairs of a memory of this library."""

    def meter(before, after, epoch):
        before, after = memory_of(before), memory_of(after)
        rejected = after.rejected_count - before.rejected_count
        pairs = after.pair_count - before.pair_count + rejected
        return Spent(gradients / epoch, pairs, rejected)

    return meter


def _naive_pairs(before, after, epoch):
    # Optax keeps 1 / s'y of every pair, and no pair of the first step.
    newest = (before[0].count - 1) % len(after[0].weights_memory)
    is_pair = before[0].count > 0
    rejected = is_pair & ~(after[0].weights_memory[newest] > 0)
    return Spent(1 / epoch, is_pair, rejected)


def _full_batch(name, optimizer, passes, interval_epochs, about, epochs=convex.EPOCHS):
    """Makes a technique of an optimizer on all examples, a step of which took `passes(state)`."""

    def interval(epoch):
        return max(1, round(interval_epochs * epoch))

    def meter(before, after, epoch):
        is_due = before[0] % interval(epoch) == 0
        return Spent(jnp.where(is_due, passes(after[1]), 0.0))

    return technique(
        name,
        lambda rate, num_steps, epoch: on_full_batch_every(interval(epoch), optimizer(rate)),
        (1.0,),
        about,
        meter,
        FULL,
        epochs,
    )


def _line_searched(direction):
    search = optax.scale_by_backtracking_linesearch(15)
    return lambda rate: optax.chain(direction, optax.scale(-rate), search)


def _newton_passes(product):
    def passes(state):
        direction, _, search = state
        # The gradient, the linearization, the products, and the losses of the ratio and of the line search.
        losses = 1 + search.info.num_linesearch_steps
        return 2 + product * direction.num_products + LOSS * losses

    return passes


def _lbfgs_passes(state):
    return state[-1].info.num_linesearch_steps


def _gauss_newton(**options):
    """Supplies the outputs on all examples, which the runner has no name for."""
    direction = optax_igr.scale_by_newton_cg(curvature="gauss_newton", **options)

    def update(updates, state, params: Any = None, **extra):
        images = autoencoder.digits().train
        return direction.update(
            updates,
            state,
            params,
            outputs_fn=lambda p: autoencoder.outputs(p, images),
            output_loss_fn=lambda y: autoencoder.output_loss(y, images),
            **extra,
        )

    return optax.GradientTransformationExtraArgs(direction.init, update)


SGD = technique(
    "sgd",
    lambda rate, n, epoch: optax.sgd(_decayed(rate, epoch)),
    (0.1, 0.3, 1.0),
    "rate ∝ 1/√epoch",
    _constant(1),
)
SVRG = technique(
    "svrg",
    lambda rate, n, epoch: optax.chain(optax_igr.svrg(anchor_interval=epoch), optax.sgd(rate)),
    (0.1, 0.3),
    "variance reduction, an anchor an epoch",
    _constant(2 + 1),
    FULL,
)
# A curvature batch is ten batches, and serves for ten steps.
SQN = technique(
    "sqn",
    lambda rate, n, epoch: optax_igr.sqn(_decayed(rate, epoch), pair_interval=PAIR_INTERVAL),
    (0.03, 0.1),
    "stochastic quasi-Newton, rate ∝ 1/√epoch",
    _with_pairs(1 + PRODUCT, lambda state: state[0].memory),
    CURVATURE,
)
SLBFGS = technique(
    "slbfgs",
    lambda rate, n, epoch: optax_igr.slbfgs(
        rate, anchor_interval=epoch, pair_interval=PAIR_INTERVAL
    ),
    (0.003, 0.01, 0.03),
    "variance reduction and stochastic quasi-Newton, constant rate",
    _with_pairs(2 + 1 + PRODUCT, lambda state: state[1].memory),
    (*FULL, "curvature_value_fn"),
)
MULTIBATCH_METER = _with_pairs(1 + 2 * 0.25, lambda state: state[0].memory)
MULTIBATCH = technique(
    "multibatch",
    lambda rate, n, epoch: optax_igr.multibatch_lbfgs(rate),
    (0.03, 0.1),
    "multi-batch L-BFGS, overlap 25 %",
    MULTIBATCH_METER,
    (*BASIC, "overlap_value_fn"),
)
NAIVE = technique(
    "naive_lbfgs",
    lambda rate, n, epoch: optax.chain(optax.scale_by_lbfgs(), optax.scale_by_learning_rate(rate)),
    (0.03, 0.1),
    "optax.scale_by_lbfgs on the batches: differences of two batches' gradients",
    _naive_pairs,
    (),
)
FULL_LBFGS = _full_batch(
    "full_lbfgs", lambda rate: optax.lbfgs(), _lbfgs_passes, 0.5, "optax.lbfgs on all examples"
)
# `optimistix.BFGS` cannot run here: inside `jax.shard_map` its identity operator is refused as not symmetric, since the
# types of its input and its output differ in the mesh that they name (Optimistix 0.1.0, Lineax).
OPTIMISTIX = _full_batch(
    "optimistix_lbfgs",
    lambda rate: stepwise(optimistix.LBFGS(rtol=0.0, atol=0.0)),
    lambda state: 1.0,
    0.25,
    "optimistix.LBFGS on all examples",
)
NEWTON = _full_batch(
    "full_newton_cg",
    _line_searched(optax_igr.scale_by_newton_cg(tolerance=0.1)),
    _newton_passes(PRODUCT),
    1.5,
    "Newton-CG on all examples, then Optax's backtracking",
)
CONVEX = (SGD, SVRG, SQN, SLBFGS, MULTIBATCH, NAIVE, FULL_LBFGS, OPTIMISTIX, NEWTON)

ADAM = technique(
    "adam",
    lambda rate, n, epoch: optax.adam(rate),
    (1e-3, 3e-3, 1e-2),
    "on the batches, constant rate",
    _constant(1),
    (),
    autoencoder.EPOCHS,
)
NETWORK = (
    ADAM,
    _full_batch(
        "full_lbfgs",
        lambda rate: optax.lbfgs(),
        _lbfgs_passes,
        1.0,
        "optax.lbfgs on all examples",
        autoencoder.EPOCHS,
    ),
    _full_batch(
        "full_newton_cg",
        _line_searched(optax_igr.scale_by_newton_cg(damping=1.0, tolerance=0.1)),
        _newton_passes(PRODUCT),
        25.0,
        "Newton-CG on all examples, then Optax's backtracking",
        autoencoder.EPOCHS,
    ),
    _full_batch(
        "full_gauss_newton_cg",
        _line_searched(_gauss_newton(damping=0.1, tolerance=0.1, max_steps=30)),
        _newton_passes(GAUSS_NEWTON_PRODUCT),
        40.0,
        "Newton-CG with the Gauss-Newton matrix on all examples, then Optax's backtracking",
        autoencoder.EPOCHS,
    ),
)
