"""Step sizes that are learned or measured, for a coordinate, a layer or the whole tree; and the searched references."""

from typing import Any

import optax

import optax_igr
from benchmarks.techniques.technique import ADAM_RATES, SGD_RATES, Plan, Technique, decayed

# Eight decades: what is learned should not depend on where it starts.
RATES = tuple(10.0**k for k in range(-6, 3))

# The setting that needs no search, found on digits with seeds from 100 on. Alignments over two hundred steps: those of
# single steps settle at a rate that is too small (see `adapt_scale`).
ADAPTED = {
    "scale_rate": 0.8,
    "ema": 0.995,
    "decay": 0.001,
    "first_step": "cauchy",
    "warmup_steps": 5,
    "max_relative_update": 0.1,
}

# The layers of the fully connected problems. The front of three learns at 0.4² = 0.16 of the rate, or at 6.25 of it.
NUM_LAYERS = 3
LAYER_DECAY = 0.4
LAYER_DECAYS = {"equal": 1.0, "small_in_front": LAYER_DECAY, "large_in_front": 1 / LAYER_DECAY}


def _adapted(inner, **options):
    return optax_igr.adapt_scale(inner, **ADAPTED | options)


def _decayed(inner, plan: Plan):
    # Behind the adaptation: a rate that decays inside it would be learned back.
    return optax.chain(inner, optax.scale_by_schedule(decayed(1.0, plan)))


def layer_depth(path: Any) -> int:
    """Returns the index of the layer in the path of a parameter: the first number in it.

    Raises:
      ValueError: where the path has no number.
    """
    parts = [getattr(entry, "key", getattr(entry, "idx", None)) for entry in path]
    numbers = [int(text) for text in map(str, parts) if text.isdigit()]
    if not numbers:
        raise ValueError(f"{'.'.join(map(str, parts)) or 'the parameter'} is in no numbered layer.")
    return numbers[0]


def _layerwise(base, order, make, rates):
    def factory(learning_rate, plan):
        del plan
        factors = optax_igr.layerwise_decay(LAYER_DECAYS[order], layer_depth, NUM_LAYERS)
        return optax.chain(make(learning_rate), factors)

    return Technique(f"{base}_{order}", factory, rates, f"{base}, rates {order.replace('_', ' ')}")


LAYERWISE = [
    _layerwise(base, order, make, rates)
    for base, make, rates in (("sgd", optax.sgd, SGD_RATES), ("adam", optax.adam, ADAM_RATES))
    for order in LAYER_DECAYS
]

TECHNIQUES = [
    Technique(
        "adam_decayed",
        lambda h, plan: optax.adam(decayed(h, plan)),
        ADAM_RATES,
        "Adam, cosine decay: the reference, at the best of its grid",
    ),
    Technique(
        "egdd", lambda h, plan: optax_igr.egdd(h), RATES, "EGDD with the defaults of its authors"
    ),
    Technique(
        "sgd_gain",
        lambda h, plan: optax.chain(optax_igr.scale_by_gain(h), optax.sgd(h)),
        RATES,
        "the raw rule: one gain a parameter, with the rate itself as the gain's",
    ),
    Technique(
        "sgd_adapted",
        lambda h, plan: _decayed(_adapted(optax.sgd(h)), plan),
        RATES,
        "gradient descent under a cosine decay, its scale learned in the same way",
    ),
    Technique(
        "adam_adapted",
        lambda h, plan: _decayed(_adapted(optax.adam(h)), plan),
        RATES,
        "Adam under a cosine decay, its scale learned from five measured steps, relative updates capped",
    ),
    Technique(
        "adam_adapted_constant",
        lambda h, plan: _adapted(optax.adam(h)),
        RATES,
        "the same without the decay",
    ),
    Technique(
        "adam_adapted_uncapped",
        lambda h, plan: _decayed(_adapted(optax.adam(h), max_relative_update=None), plan),
        RATES,
        "the same without the cap, which is for an outlier among the measured",
    ),
    Technique(
        "adam_capped",
        lambda h, plan: optax_igr.adapt_scale(optax.adam(h), 0.03, max_relative_update=0.1),
        RATES,
        "Adam, its scale learned, with a cap on the relative update in place of measured steps",
    ),
    Technique(
        "heavy_ball_decayed",
        lambda h, plan: optax.sgd(decayed(h, plan), momentum=0.9),
        tuple(0.01 * 3.0**k for k in range(5)),
        "heavy ball, cosine decay, at the best of its grid",
    ),
    Technique(
        "heavy_ball_adapted",
        lambda h, plan: _decayed(_adapted(optax.sgd(h, momentum=0.9)), plan),
        RATES,
        "heavy ball under a cosine decay, its scale learned in the same way",
    ),
    Technique(
        "sgd_cauchy",
        lambda h, plan: optax.chain(optax_igr.scale_by_cauchy_step(), optax.sgd(h)),
        (0.1, 0.3, 1.0),
        "gradient descent by a multiple of the Cauchy step",
    ),
    Technique(
        "sgd_curvature_limited",
        lambda h, plan: optax.chain(optax.sgd(h), optax_igr.limit_by_curvature()),
        SGD_RATES,
        "gradient descent, steps beyond the minimum along them shortened",
    ),
    *LAYERWISE,
]
