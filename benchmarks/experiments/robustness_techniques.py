"""The techniques whose robustness is compared, the strengths of each, which is chosen, and what is quoted of it.

A strength is chosen on a validation split: the strongest that costs at most half a point of its accuracy. One at the
end of its grid is marked: a longer grid might choose another.
"""

import functools
import statistics

import optax

import optax_igr
from benchmarks.engine.records import Record, groups
from benchmarks.problems.classification import NOISE_SCALES
from benchmarks.techniques.technique import Technique

RATE = 0.1
TOLERATED = 0.005

# The noise and the radius that the table quotes; the figures show them all.
QUOTED_SCALE = 0.5
RADII = (0.0, 0.05, 0.1, 0.15)
QUOTED_RADIUS = 0.1


def _decayed(decay):
    return lambda strength, num_steps: optax.chain(decay(strength), optax.sgd(RATE))


def _schatten(gram_steps):
    return functools.partial(optax_igr.add_schatten_decay, gram_steps=gram_steps)


def _in_ball(radius, num_steps):
    del num_steps
    ball = functools.partial(optax_igr.projection_spectral_ball, radius=radius)
    return optax.chain(optax.sgd(RATE), optax_igr.keep_params_in(ball))


# The strengths of each from the weakest on.
TECHNIQUES = [
    Technique("none", lambda h, n: optax.sgd(h), (RATE,), "gradient descent alone"),
    Technique("l2", _decayed(_schatten(0)), (1e-3, 3e-3, 1e-2, 3e-2, 0.1), "L2 decay"),
    *(
        Technique(
            f"schatten_{t}",
            _decayed(_schatten(t)),
            (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),
            f"decay of the Schatten norm of exponent {2 ** (t + 1)}",
        )
        for t in (1, 2, 3, 4)
    ),
    Technique(
        "spectral",
        _decayed(optax_igr.add_spectral_decay),
        (3e-3, 1e-2, 3e-2, 0.1, 0.3),
        "decay of the spectral norm",
    ),
    Technique(
        "spectral_ball", _in_ball, (4.0, 3.0, 2.0, 1.5, 1.0), "projection onto a spectral norm"
    ),
    Technique(
        "gradient_penalty",
        _decayed(optax_igr.add_gradient_penalty),
        (0.03, 0.1, 0.3, 1.0, 3.0),
        "explicit penalty on the gradient norm",
    ),
    Technique(
        "large_rate", lambda h, n: optax.sgd(h), (0.2, 0.4, 0.8, 1.6, 3.2), "a larger learning rate"
    ),
]


def validated(group: list[Record]) -> float:
    """Returns the mean validation accuracy of the seeds."""
    return statistics.fmean(r.final["validation_accuracy"] for r in group)


def by_technique(runs: list[Record]) -> dict[tuple[str, str], list[list[Record]]]:
    """Returns the seeds of each strength that did not diverge, from the weakest on, by problem and technique."""
    order = {technique.name: list(technique.learning_rates) for technique in TECHNIQUES}
    found: dict[tuple[str, str], list[list[Record]]] = {}
    for (problem, name, _), group in groups(runs).items():
        if not any(r.diverged for r in group):
            found.setdefault((problem, name), []).append(group)

    def place(group):
        grid, strength = order.get(group[0].technique, []), group[0].learning_rate
        return grid.index(strength) if strength in grid else -1

    return {key: sorted(candidates, key=place) for key, candidates in found.items()}


def chosen(runs: list[Record]) -> dict[tuple[str, str], list[Record]]:
    """Returns the seeds of each problem and technique at the strongest strength that validation tolerates."""
    found = {}
    for key, candidates in by_technique(runs).items():
        least = max(map(validated, candidates)) - TOLERATED
        found[key] = [group for group in candidates if validated(group) >= least][-1]
    return found


def is_at_end(group: list[Record], runs: list[Record]) -> bool:
    """Says whether a chosen strength is the weakest or the strongest of several that were run."""
    first = group[0]
    strengths = [
        r.learning_rate
        for r in runs
        if (r.problem, r.technique, r.seed) == (first.problem, first.technique, first.seed)
    ]
    return len(strengths) > 1 and first.learning_rate in (min(strengths), max(strengths))


def quoted(record: Record) -> dict[str, float]:
    """Returns the accuracy in percent in either sense, at the quoted radius and noise."""
    return {
        "inputs": 100 * record.final["pgd_accuracy"][RADII.index(QUOTED_RADIUS)],
        "parameters": 100 * record.final["noise_accuracy"][NOISE_SCALES.index(QUOTED_SCALE)],
    }
