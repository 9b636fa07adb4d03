r"""Statistics of repeated runs: intervals, steps to target, performance profiles, widths of rates.

References:
  Agarwal et al, `Deep Reinforcement Learning at the Edge of the Statistical Precipice
  <https://arxiv.org/abs/2108.13264>`_, 2021 (bootstrap intervals)
  Dahl et al, `Benchmarking Neural Network Training Algorithms <https://arxiv.org/abs/2306.07179>`_,
  2023 (steps to target, performance profiles)
  Dolan, Moré, `Benchmarking Optimization Software with Performance Profiles
  <https://arxiv.org/abs/cs/0102001>`_, 2002
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats

from benchmarks.engine.table import Table

RESAMPLES = 2000

# Performance profiles end where a technique takes four times the steps of the best, as in AlgoPerf.
MAX_RATIO = 4.0


class Interval(NamedTuple):
    """An estimate and the interval around it."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Says whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def bootstrap(
    values: npt.ArrayLike,
    statistic: Callable[..., np.ndarray] = np.mean,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Returns a statistic over seeds with its percentile bootstrap interval.

    Args:
      values: one a seed.
      statistic: a function `(array, axis=...) -> array`.
      level: the coverage.
      resamples: draws, from a fixed seed: the same records give the same interval.
    """
    seeds = np.asarray(values, float)
    if seeds.size == 0:
        raise ValueError("bootstrap needs at least one value.")
    estimate = float(statistic(seeds, axis=0))
    # One seed has no spread to resample, and one that diverged leaves no interval.
    if seeds.size == 1 or not np.isfinite(seeds).all():
        return Interval(estimate, estimate, estimate)
    interval = scipy.stats.bootstrap(
        (seeds,),
        statistic,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(estimate, float(interval.low), float(interval.high))


def paired_difference(
    values: npt.ArrayLike, baseline: npt.ArrayLike, *, level: float = 0.95
) -> Interval:
    """Returns the mean of `values - baseline`, paired by seed, with its bootstrap interval."""
    ours, theirs = np.asarray(values, float), np.asarray(baseline, float)
    if len(ours) != len(theirs):
        raise ValueError(f"paired runs must have the same seeds: {len(ours)}, {len(theirs)}.")
    return bootstrap(ours - theirs, level=level)


def median_and_quartiles(values: npt.ArrayLike) -> Interval:
    """Returns the median and the interquartile range; infinite values keep their place in the order."""
    low, median, high = _quantiles(np.asarray(values, float), [0.25, 0.5, 0.75])
    return Interval(median, low, high)


def steps_to_target(
    steps: npt.ArrayLike, values: npt.ArrayLike, target: float, *, higher_is_better: bool
) -> float:
    """Returns the step at which a curve first reaches its target, infinity where it never does.

    Between two points of the curve the crossing is interpolated linearly.
    """
    steps = np.asarray(steps, float)
    gap = np.asarray(values, float) - target
    # One sign for both: reached where the gap is not negative.
    gap = gap if higher_is_better else -gap
    reached = np.flatnonzero(gap >= 0)
    if not reached.size:
        return math.inf
    i = reached[0]
    if i == 0 or not np.isfinite(gap[i - 1]):
        return float(steps[i])
    fraction = gap[i - 1] / (gap[i - 1] - gap[i])
    return float(steps[i - 1] + fraction * (steps[i] - steps[i - 1]))


def with_steps_to_target(runs: Table) -> Table:
    """Returns a table of runs with a column `steps_to_target`: infinity for a miss, or where there is no target."""

    def taken(curve, target):
        if not target:
            return math.inf
        return steps_to_target(
            curve["step"],
            curve[target["measure"]],
            target["value"],
            higher_is_better=target["higher_is_better"],
        )

    steps = [taken(*pair) for pair in zip(runs["curve"], runs["target"], strict=True)]
    return runs.assign(steps_to_target=steps)


def value_at(x: npt.ArrayLike, y: npt.ArrayLike, level: float) -> float:
    """Returns y where x first falls to `level`, interpolated in the logarithms; NaN where it never does.

    Compares two paths at the same loss: x is the loss and y what is compared.
    """
    along, across = np.asarray(x, float), np.asarray(y, float)
    below = np.flatnonzero(along <= level)
    if not below.size:
        return math.nan
    i = below[0]
    if i == 0 or along[i] <= 0 or min(across[i], across[i - 1]) <= 0:
        return float(across[i])
    before, here = math.log(along[i - 1]), math.log(along[i])
    fraction = (before - math.log(level)) / (before - here)
    return math.exp((1 - fraction) * math.log(across[i - 1]) + fraction * math.log(across[i]))


def performance_profile(
    costs: np.ndarray, ratios: npt.ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    r"""Returns :math:`\rho_s(\tau)`: the share of problems that technique s solves within τ times the best.

    Args:
      costs: `[technique, problem]` steps or seconds; infinity for a miss.
      ratios: the values of τ; by default 1 to `MAX_RATIO`.

    Returns:
      The ratios, and `[technique, ratio]` shares.
    """
    costs = np.asarray(costs, float)
    # Fine enough for the score to be right in its third digit.
    taus = np.linspace(1, MAX_RATIO, 301) if ratios is None else np.asarray(ratios, float)
    # Where nobody solves a problem it counts as solved by none, not as missing.
    best = costs.min(axis=0)
    relative = np.where(np.isfinite(costs), costs / np.where(np.isfinite(best), best, 1), np.inf)
    return taus, (relative[:, None, :] <= taus[None, :, None]).mean(axis=2)


def profile_score(ratios: np.ndarray, shares: np.ndarray) -> np.ndarray:
    r"""Returns :math:`\frac{1}{\tau_{max} - 1} \int_1^{\tau_{max}} \rho(\tau)\,d\tau`, between 0 and 1."""
    return np.trapezoid(shares, ratios, axis=-1) / (ratios[-1] - ratios[0])


def learning_rate_width(
    learning_rates: npt.ArrayLike,
    values: npt.ArrayLike,
    *,
    tolerance: float = 0.1,
    higher_is_better: bool = False,
) -> float:
    r"""Returns the decades of learning rate over which a technique stays close to its own best.

    Close is within `tolerance` of the best in relative terms (a cost such as steps to target), or, where
    higher is better, within that fraction of the distance from the best to zero. Neighbouring rates of
    the grid are joined: each good rate stands for the half way to its neighbours in the logarithm.
    """
    order = np.argsort(learning_rates)
    rates = np.log10(np.asarray(learning_rates, float)[order])
    ordered = np.asarray(values, float)[order]
    if not np.isfinite(ordered).any():
        return 0.0
    if higher_is_better:
        good = ordered >= np.nanmax(ordered) * (1 - tolerance)
    else:
        good = ordered <= np.nanmin(ordered) * (1 + tolerance)
    # Half way in the logarithm, since grids are geometric.
    middles = (rates[1:] + rates[:-1]) / 2
    low, high = np.r_[rates[0], middles], np.r_[middles, rates[-1]]
    return float(np.sum((high - low)[good]))


def _quantiles(values, levels):
    # NumPy interpolates inf - inf to NaN: sort, and let an infinite neighbour win where it must.
    ordered = np.sort(np.where(np.isnan(values), np.inf, values))
    positions = np.asarray(levels) * (len(ordered) - 1)
    low, high = ordered[np.floor(positions).astype(int)], ordered[np.ceil(positions).astype(int)]
    fraction = positions - np.floor(positions)
    with np.errstate(invalid="ignore"):
        mixed = low + fraction * (high - low)
    return [float(x) for x in np.where(low == high, low, mixed)]
