import math

import numpy as np
import pytest

from benchmarks.report import run_statistics as statistics


def test_the_bootstrap_interval_holds_the_middle_of_the_resampled_means():
    values = np.random.default_rng(3).normal(2.0, 1.5, 40)
    found = statistics.bootstrap(values, resamples=20_000)
    assert found.estimate == pytest.approx(values.mean())
    # The means of resamples are normal, with the variance of the values over their number.
    standard_error = values.std() / math.sqrt(len(values))
    assert found.high - found.low == pytest.approx(2 * 1.96 * standard_error, rel=0.05)
    # Drawn from a fixed seed by one rule: the intervals of RESULTS.md rest on it.
    draws = np.random.default_rng(0).integers(0, 40, (2000, 40))
    expected = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    assert statistics.bootstrap(values)[1:] == pytest.approx(expected)


@pytest.mark.parametrize("values", [[3.0], [1.0, math.inf]])
def test_what_cannot_be_resampled_has_no_width(values):
    found = statistics.bootstrap(values)
    assert found.low == found.high == found.estimate == np.mean(values)


def test_pairing_by_seed_removes_what_the_seeds_share():
    seeds = np.random.default_rng(0).normal(0.0, 10.0, 6)
    paired = statistics.paired_difference(seeds + 1.0, seeds)
    assert paired == pytest.approx((1.0, 1.0, 1.0))
    assert paired.excludes_zero
    with pytest.raises(ValueError, match="same seeds: 6, 5"):
        statistics.paired_difference(seeds, seeds[:5])


def test_quartiles_keep_misses_at_the_far_end():
    finite = [4.0, 1.0, 3.0, 2.0, 7.0]
    low, median, high = np.quantile(finite, [0.25, 0.5, 0.75])
    assert statistics.median_and_quartiles(finite) == pytest.approx((median, low, high))
    assert statistics.median_and_quartiles([1, 2, 3, math.inf, math.inf]) == (3, 2, math.inf)
    assert statistics.median_and_quartiles([math.inf] * 5) == (math.inf,) * 3


def test_steps_to_target_interpolates_the_crossing_and_a_miss_is_infinite():
    steps, accuracy = [0, 10, 20], [0.1, 0.5, 0.9]
    reach = statistics.steps_to_target
    assert reach(steps, accuracy, 0.7, higher_is_better=True) == pytest.approx(15)
    assert reach(steps, accuracy, 0.05, higher_is_better=True) == 0
    assert reach(steps, accuracy, 0.95, higher_is_better=True) == math.inf
    assert reach(steps, [4.0, 2.0, 1.0], 3.0, higher_is_better=False) == pytest.approx(5)
    assert reach(steps, [math.nan, 2.0, 1.0], 3.0, higher_is_better=False) == 10


def test_paths_are_compared_at_the_same_loss_along_a_power_law():
    loss = np.geomspace(1.0, 1e-3, 7)
    assert statistics.value_at(loss, 5 * loss**1.7, 0.02) == pytest.approx(5 * 0.02**1.7)
    assert math.isnan(statistics.value_at(loss, loss, 1e-4))


def test_a_performance_profile_counts_the_problems_solved_within_a_factor_of_the_best():
    costs = np.array([[1.0, 4.0, math.inf, math.inf], [2.0, 2.0, 5.0, math.inf]])
    ratios, shares = statistics.performance_profile(costs, [1.0, 2.0, 4.0])
    np.testing.assert_allclose(shares, [[0.25, 0.5, 0.5], [0.5, 0.75, 0.75]])
    # The integral of the steps from 1 to 4, by trapezoids on a fine grid.
    ratios, shares = statistics.performance_profile(costs)
    score = statistics.profile_score(ratios, shares)
    np.testing.assert_allclose(score, [(0.25 + 2 * 0.5) / 3, (0.5 + 2 * 0.75) / 3], atol=2e-3)


def test_the_width_of_the_rates_is_in_decades():
    rates = [1e-3, 1e-2, 1e-1, 1.0]
    assert statistics.learning_rate_width(rates, [100, 10, 10.5, math.inf]) == pytest.approx(2.0)
    assert statistics.learning_rate_width(rates, [100, 10, 20, math.inf]) == pytest.approx(1.0)
    assert statistics.learning_rate_width(rates, [math.inf] * 4) == 0.0
    assert statistics.learning_rate_width(
        rates, [0.5, 0.9, 0.95, 0.1], higher_is_better=True
    ) == pytest.approx(2.0)
