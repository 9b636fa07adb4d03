"""The optimizers that the library's techniques are compared with, as data: Optax's, and one of Optimistix.

A method that finds its own rate has a grid of one, its published default: it has no width of rates to show. The
minimisers of Optimistix compare the losses of different steps, so they run where all steps see the same batch.
"""

import optax
import optimistix

from benchmarks.techniques.optimistix_transform import minimiser_step
from benchmarks.techniques.technique import ADAM_RATES, BASIC, SGD_RATES, Technique, decayed

# The rates of momentum are lower by its amplification 1 / (1 - 0.9) = 10.
MOMENTUM_RATES = tuple(rate / 8 for rate in SGD_RATES)
OWN_RATE = (1.0,)

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4


TECHNIQUES = [
    Technique(
        "momentum",
        lambda h, n: optax.sgd(h, momentum=MOMENTUM),
        MOMENTUM_RATES,
        "heavy ball, 0.9",
    ),
    Technique(
        "nesterov",
        lambda h, n: optax.sgd(h, momentum=MOMENTUM, nesterov=True),
        MOMENTUM_RATES,
        "Nesterov's momentum, 0.9",
    ),
    Technique(
        "adamw",
        lambda h, n: optax.adamw(h, weight_decay=WEIGHT_DECAY),
        ADAM_RATES,
        "AdamW, decay 1e-4",
    ),
    Technique(
        "adamw_decayed",
        lambda h, n: optax.adamw(decayed(h, n), weight_decay=WEIGHT_DECAY),
        ADAM_RATES,
        "AdamW, decay 1e-4, cosine decay of the rate",
    ),
    Technique(
        "prodigy", lambda h, n: optax.contrib.prodigy(h), OWN_RATE, "Prodigy: finds its own rate"
    ),
    Technique(
        "dadapt_adamw",
        lambda h, n: optax.contrib.dadapt_adamw(h),
        OWN_RATE,
        "D-Adaptation of AdamW: finds its own rate",
    ),
    Technique(
        "mechanize",
        lambda h, n: optax.contrib.mechanize(optax.sgd(h)),
        OWN_RATE,
        "Mechanic around gradient descent: finds its own rate",
    ),
    Technique(
        "dog", lambda h, n: optax.contrib.dog(h), OWN_RATE, "distance over gradients: its own rate"
    ),
    Technique(
        "dowg",
        lambda h, n: optax.contrib.dowg(h),
        OWN_RATE,
        "distance over weighted gradients: its own rate",
    ),
    Technique("momo", lambda h, n: optax.contrib.momo(h), SGD_RATES, "model-based momentum"),
    Technique(
        "schedule_free_adamw",
        lambda h, n: optax.contrib.schedule_free_adamw(h),
        ADAM_RATES,
        "schedule-free AdamW",
        eval_params=optax.contrib.schedule_free_eval_params,
    ),
    Technique(
        "muon", lambda h, n: optax.contrib.muon(h), ADAM_RATES, "Muon, Adam on what is no matrix"
    ),
    Technique(
        "sophia",
        lambda h, n: optax.contrib.sophia(h),
        ADAM_RATES,
        "Sophia, Hutchinson's diagonal",
        extra_arguments=("obj_fn",),
    ),
    Technique(
        "lbfgs",
        lambda h, n: optax.lbfgs(),
        OWN_RATE,
        "L-BFGS with a zoom line search on the batch",
        extra_arguments=BASIC,
    ),
    Technique(
        "optimistix_cg",
        lambda h, n: minimiser_step(optimistix.NonlinearCG(rtol=0.0, atol=0.0)),
        OWN_RATE,
        "Optimistix's nonlinear conjugate gradients, one trial point a step",
        deterministic=True,
    ),
]
