"""Multiplicative updates: in the l1 ball, and on the simplex."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_igr
from benchmarks.techniques.technique import ADAM_RATES, SGD_RATES, Plan, Technique

# The l1 norm of the three relevant weights of `sparse_regression`, and a radius that the classifiers do not reach.
TOTAL = 30.0
LARGE_TOTAL = 300.0

# A bias is neither sparse nor in the ball of the weights.
BIAS_RATE = 0.5

MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)


def _eg_plus_minus(total: float, name: str) -> Technique:
    def make(learning_rate: Any, plan: Plan) -> optax.GradientTransformation:
        del plan
        links: dict[Any, Any] = {
            "weight": optax_igr.eg_plus_minus(learning_rate, total=total),
            "bias": optax.sgd(BIAS_RATE),
        }
        return optax.partition(links, lambda params: jax.tree.map_with_path(_kind, params))

    return Technique(
        name, make, tuple(0.0125 * 2.0**k for k in range(12)), f"EG± with the total {total:g}"
    )


def _kind(path, leaf):
    del leaf
    last = str(getattr(path[-1], "key", "")) if path else ""
    # By name: a bias of one model has the shape of a weight of another.
    return "bias" if last in ("bias", "b") else "weight"


def _scale_by_theory(multiple: Any, num_steps: int) -> optax.GradientTransformation:
    """Scales by the learning rate of the theorem, sqrt(8 ln N / T), times `multiple`."""

    def scale(losses: jax.Array) -> jax.Array:
        return -multiple * jnp.sqrt(8 * math.log(losses.size) / num_steps) * losses

    return optax.stateless(lambda updates, params: jax.tree.map(scale, updates))


def _hedge(name: str, about: str, **options: Any) -> Technique:
    return Technique(
        name,
        lambda multiple, plan: optax.chain(
            _scale_by_theory(multiple, plan.num_steps), optax_igr.exponentiate_simplex(**options)
        ),
        MULTIPLES,
        about,
        settings=("multiple",),
        domain="simplex",
    )


TECHNIQUES = [
    _eg_plus_minus(TOTAL, "eg_plus_minus"),
    _eg_plus_minus(LARGE_TOTAL, "eg_plus_minus_300"),
    Technique(
        "sgd_hypentropy",
        lambda h, plan: optax.chain(optax.sgd(h), optax_igr.exponentiate_hypentropy()),
        SGD_RATES,
        "signed weights in the hypentropy geometry",
    ),
    # A zero weight stays zero: a bias that starts there is never learned.
    Technique(
        "adam_signed",
        lambda h, plan: optax.chain(optax.adam(h), optax_igr.exponentiate_signed()),
        ADAM_RATES,
        "Adam's step in the exponent, each weight of the sign that it started with",
    ),
    _hedge("hedge", "EG on the simplex"),
    _hedge("hedge_fixed_share", "the same, fixed share 1e-3", fixed_share=1e-3),
]
