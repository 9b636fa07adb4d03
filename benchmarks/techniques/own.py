"""Every technique and peer by name, as data, with the grid that its learning rate is searched on.

A technique is a factory `(learning_rate, num_steps) -> transform`: the number of steps is there for the
schedules. To add one, add a line to `OWN`; an experiment may also bring techniques of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_igr
from benchmarks.techniques.peers import PEERS
from benchmarks.techniques.technique import (
    ADAM_RATES,
    BASIC,
    NUM_MICROBATCHES,
    SGD_RATES,
    Technique,
    decayed,
)

SMALL_RATE, LARGE_RATE = 0.05, 0.4

# What the small rate lacks of the large one's implicit coefficient h/4: with it, both regularise alike.
COEFFICIENT = (LARGE_RATE - SMALL_RATE) / 4
SAM_RADIUS = 0.05


def _penalised(inner):
    return optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT), inner)


def _microbatch_penalised(inner):
    return optax.chain(
        optax_igr.add_microbatch_gradient_penalty(COEFFICIENT, NUM_MICROBATCHES), inner
    )


def _extrapolated(inner):
    return optax_igr.extrapolated_gradient_penalty(inner, COEFFICIENT)


def _hold_igr(learning_rate, num_steps):
    schedule = decayed(learning_rate, num_steps)
    return optax.chain(optax_igr.hold_igr(learning_rate, schedule), optax.sgd(schedule))


def on_full_batch(transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Lets a penalty see the loss on the whole training set: what extrapolation does for nothing."""
    transform = optax.with_extra_args_support(transform)

    def update(updates, state, params=None, *, full_value_fn: Any = None, **extra):
        full = jax.grad(full_value_fn)(params)
        penalised, state = transform.update(
            full, state, params, **extra | {"grad": full, "value_fn": full_value_fn}
        )
        return jax.tree.map(lambda u, p, g: u + p - g, updates, penalised, full), state

    return optax.GradientTransformationExtraArgs(transform.init, update)


def naive_penalty(coefficient: float) -> optax.GradientTransformationExtraArgs:
    """Replaces the gradient by that of the penalised loss, differentiated as it is written."""

    def update(updates, state, params=None, *, value_fn: Any = None, **extra):
        del updates, extra

        def penalised(p):
            squares = jax.tree.map(lambda g: jnp.sum(g * g), jax.grad(value_fn)(p))
            return value_fn(p) + coefficient * sum(jax.tree.leaves(squares))

        return jax.grad(penalised)(params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _sam(learning_rate, num_steps):
    del num_steps
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(SAM_RADIUS))
    return optax.contrib.sam(optax.sgd(learning_rate), adversary, opaque_mode=True)


OWN = [
    Technique("sgd", lambda h, n: optax.sgd(h), SGD_RATES, "gradient descent"),
    Technique(
        "sgd_penalty",
        lambda h, n: _penalised(optax.sgd(h)),
        SGD_RATES,
        "penalty on each batch's own gradient norm, exact",
    ),
    Technique(
        "sgd_difference_penalty",
        lambda h, n: optax.chain(
            optax_igr.add_gradient_penalty(COEFFICIENT, hvp="forward_difference"), optax.sgd(h)
        ),
        SGD_RATES,
        "the same by a forward difference",
    ),
    Technique(
        "sgd_extrapolated",
        lambda h, n: _extrapolated(optax.sgd(h)),
        SGD_RATES,
        "penalty on the full-batch gradient norm, by extrapolation: one gradient a step",
        eval_params=optax_igr.extrapolation_eval_params,
    ),
    Technique(
        "sgd_full_batch_penalty",
        lambda h, n: optax.chain(
            on_full_batch(optax_igr.add_gradient_penalty(COEFFICIENT)), optax.sgd(h)
        ),
        SGD_RATES,
        "penalty on the full-batch gradient norm, exact: a control, as dear as the data set is large",
        extra_arguments=(*BASIC, "full_value_fn"),
    ),
    Technique(
        "sgd_microbatch_penalty",
        lambda h, n: _microbatch_penalised(optax.sgd(h)),
        SGD_RATES,
        f"penalty on the gradient norms of {NUM_MICROBATCHES} micro-batches, exact",
        extra_arguments=(*BASIC, "microbatch_value_fn"),
    ),
    Technique(
        "sgd_decayed",
        lambda h, n: optax.sgd(decayed(h, n)),
        SGD_RATES,
        "gradient descent, cosine decay",
    ),
    Technique(
        "sgd_decayed_hold_igr",
        _hold_igr,
        SGD_RATES,
        "the same, with the regularisation of the first rate held while the rate decays",
    ),
    Technique("adam", lambda h, n: optax.adam(h), ADAM_RATES, "Adam"),
    Technique(
        "adam_penalty",
        lambda h, n: _penalised(optax.adam(h)),
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
        lambda h, n: optax.chain(naive_penalty(COEFFICIENT), optax.sgd(h)),
        SGD_RATES,
        "jax.grad of the penalised loss as it is written",
    ),
]

TECHNIQUES: Mapping[str, Technique] = {technique.name: technique for technique in (*OWN, *PEERS)}


def named(names: Sequence[str]) -> list[Technique]:
    """Returns the techniques of these names; an unknown one is a `ValueError` that lists all."""
    unknown = [name for name in names if name not in TECHNIQUES]
    if unknown:
        raise ValueError(
            f"unknown technique {', '.join(map(repr, unknown))}; choose from {', '.join(TECHNIQUES)}."
        )
    return [TECHNIQUES[name] for name in names]
