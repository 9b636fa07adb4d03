"""Decays of the norms of the weights: the setting is their strength, below gradient descent at one rate."""

import functools

import optax

import optax_igr
from benchmarks.techniques.technique import Technique

RATE = 0.1


def decayed_by(decay):
    """Returns the factory of gradient descent with a decay of a given strength."""
    return lambda strength, plan: optax.chain(decay(strength), optax.sgd(RATE))


def _schatten(gram_steps):
    return functools.partial(optax_igr.add_schatten_decay, gram_steps=gram_steps)


def _in_ball(radius, plan):
    del plan
    ball = functools.partial(optax_igr.projection_spectral_ball, radius=radius)
    # Last in the chain: it must see the parameters after the step.
    return optax.chain(optax.sgd(RATE), optax_igr.keep_params_in(ball))


# The strengths of each, from the weakest on: the radius of a ball is stronger where it is smaller.
TECHNIQUES = [
    Technique(
        "l2",
        decayed_by(_schatten(0)),
        (1e-3, 3e-3, 1e-2, 3e-2, 0.1),
        "L2 decay",
        settings=("strength",),
    ),
    *(
        Technique(
            f"schatten_{t}",
            decayed_by(_schatten(t)),
            (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),
            f"decay of the Schatten norm of exponent {2 ** (t + 1)}",
            settings=("strength",),
        )
        for t in (1, 2, 3, 4)
    ),
    Technique(
        "spectral",
        decayed_by(optax_igr.add_spectral_decay),
        (3e-3, 1e-2, 3e-2, 0.1, 0.3),
        "decay of the spectral norm",
        settings=("strength",),
    ),
    Technique(
        "spectral_ball",
        _in_ball,
        (4.0, 3.0, 2.0, 1.5, 1.0),
        "projection onto a spectral norm",
        settings=("radius",),
    ),
]
