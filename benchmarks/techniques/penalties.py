"""Penalties on the gradient norm and implicit regularization, with the plain optimizers that they are added to."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_igr
from benchmarks.techniques.full_batch import penalty_on_full_batch
from benchmarks.techniques.technique import (
    ADAM_RATES,
    BASIC,
    NUM_MICROBATCHES,
    SGD_RATES,
    Technique,
    decayed,
)

SMALL_RATE, LARGE_RATE = 0.05, 0.4

# What the small rate lacks of the large one's implicit coefficient h/4: with it, both regularize alike.
COEFFICIENT = (LARGE_RATE - SMALL_RATE) / 4
SAM_RADIUS = 0.05


def _penalized(inner, **options):
    return optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT, **options), inner)


def _hold_igr(learning_rate, plan):
    schedule = decayed(learning_rate, plan)
    return optax.chain(optax_igr.hold_igr(learning_rate, schedule), optax.sgd(schedule))


def naive_penalty(coefficient: float) -> optax.GradientTransformationExtraArgs:
    """Replaces the gradient by that of the penalized loss, differentiated as it is written."""

    def update(updates, state, params=None, *, value_fn: Any = None, **extra):
        del updates, extra

        def penalized(p):
            squares = jax.tree.map(lambda g: jnp.sum(g * g), jax.grad(value_fn)(p))
            return value_fn(p) + coefficient * sum(jax.tree.leaves(squares))

        return jax.grad(penalized)(params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _sam(learning_rate, plan):
    del plan
    # Opaque mode takes the second gradient inside one update, so that a step is a step.
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(SAM_RADIUS))
    return optax.contrib.sam(optax.sgd(learning_rate), adversary, opaque_mode=True)


TECHNIQUES = [
    Technique("sgd", lambda h, plan: optax.sgd(h), SGD_RATES, "gradient descent"),
    Technique(
        "sgd_penalty",
        lambda h, plan: _penalized(optax.sgd(h)),
        SGD_RATES,
        "penalty on each batch's own gradient norm, exact",
    ),
    Technique(
        "sgd_difference_penalty",
        lambda h, plan: _penalized(optax.sgd(h), hvp="forward_difference"),
        SGD_RATES,
        "the same by a forward difference",
    ),
    Technique(
        "sgd_extrapolated",
        lambda h, plan: optax_igr.extrapolated_gradient_penalty(optax.sgd(h), COEFFICIENT),
        SGD_RATES,
        "penalty on the full-batch gradient norm, by extrapolation: one gradient a step",
        eval_params=optax_igr.extrapolation_eval_params,
    ),
    Technique(
        "sgd_full_batch_penalty",
        lambda h, plan: optax.chain(
            penalty_on_full_batch(optax_igr.add_gradient_penalty(COEFFICIENT)), optax.sgd(h)
        ),
        SGD_RATES,
        "penalty on the full-batch gradient norm, exact: a control, as dear as the data set is large",
        extra_arguments=(*BASIC, "full_value_fn"),
    ),
    Technique(
        "sgd_microbatch_penalty",
        lambda h, plan: optax.chain(
            optax_igr.add_microbatch_gradient_penalty(COEFFICIENT, NUM_MICROBATCHES), optax.sgd(h)
        ),
        SGD_RATES,
        f"penalty on the gradient norms of {NUM_MICROBATCHES} micro-batches, exact",
        extra_arguments=(*BASIC, "microbatch_value_fn"),
    ),
    Technique(
        "sgd_cancel_igr",
        lambda h, plan: optax.chain(optax_igr.cancel_igr(h), optax.sgd(h)),
        SGD_RATES,
        "gradient descent without its own implicit term: nearer to gradient flow",
    ),
    Technique(
        "sgd_decayed",
        lambda h, plan: optax.sgd(decayed(h, plan)),
        SGD_RATES,
        "gradient descent, cosine decay",
    ),
    Technique(
        "sgd_decayed_hold_igr",
        _hold_igr,
        SGD_RATES,
        "the same, with the regularization of the first rate held while the rate decays",
    ),
    Technique("adam", lambda h, plan: optax.adam(h), ADAM_RATES, "Adam"),
    Technique(
        "adam_penalty",
        lambda h, plan: _penalized(optax.adam(h)),
        ADAM_RATES,
        "Adam with the exact penalty",
    ),
    Technique(
        "sam",
        _sam,
        SGD_RATES,
        f"optax.contrib.sam, opaque, radius {SAM_RADIUS}",
        extra_arguments=("grad_fn",),
    ),
    Technique(
        "naive_penalty",
        lambda h, plan: optax.chain(naive_penalty(COEFFICIENT), optax.sgd(h)),
        SGD_RATES,
        "jax.grad of the penalized loss as it is written",
    ),
]
