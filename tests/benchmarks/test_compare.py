import math

import pytest

from benchmarks.engine import records
from benchmarks.engine.table import table
from benchmarks.experiments import optimizers
from benchmarks.report import compare
from benchmarks.report.run_statistics import with_steps_to_target
from tests.benchmarks.helpers import invoke, record

TARGET = {"measure": "train_loss", "value": 1.5, "higher_is_better": False}


def _record(technique="sgd", rate=0.1, seed=0, losses=(4.0, 2.0, 1.0), **changes):
    curve = {"step": [0, 10, 20], "train_loss": list(losses)}
    changes = {"target": TARGET, **changes}
    return record(technique, rate, seed, loss=losses[-1], curve=curve, **changes)


def _write(path, runs):
    records.append(path, runs)
    return str(path)


def test_diff_fails_where_a_limit_is_passed_and_only_there(tmp_path):
    before = _write(tmp_path / "a.jsonl", [_record(seed=s) for s in range(3)])
    # The target of 1.5 is crossed at step 15 before, and at 10 + 10 * 0.5 / 0.6 after: 22 % later.
    slower = [_record(seed=s, losses=(4.0, 2.0, 1.4)) for s in range(3)]
    after = _write(tmp_path / "b.jsonl", slower)
    limits = ["--fail", "steps_to_target:30%"]
    assert invoke("diff", before, after, *limits).exit_code == 0
    limits = ["--fail", "steps_to_target:20%"]
    failed = invoke("diff", before, after, *limits)
    assert failed.exit_code == 1
    assert "+22.2 %" in failed.words
    assert invoke("diff", after, before, *limits).exit_code == 0
    wrong = invoke("diff", before, after, "--fail", "speed:10%")
    assert wrong.exit_code == 2
    assert "steps_to_target" in wrong.words


def test_diff_says_what_it_does_not_compare(tmp_path):
    before = [_record(seed=0), _record(seed=1), _record("adam"), _record("adam", problem="q")]
    after = [_record(seed=0), _record("adam", problem="q", about="t")]
    first = _write(tmp_path / "a.jsonl", before)
    second = _write(tmp_path / "b.jsonl.gz", after)
    result = invoke("diff", first, second)
    assert result.exit_code == 0
    assert "q is not the same: s, 20 steps | t, 20 steps." in result.words
    assert "only in the first file: adam at 0.1 on p, adam at 0.1 on q." in result.words
    assert "not the same seeds: sgd at 0.1 on p." in result.words


def test_diff_fails_where_there_is_nothing_to_hold_to_the_limit(tmp_path):
    untargeted = _write(tmp_path / "a.jsonl", [_record(target=None)])
    arguments = ["diff", untargeted, untargeted]
    assert invoke(*arguments).exit_code == 0
    result = invoke(*arguments, "--fail", "steps_to_target:5%")
    assert result.exit_code == 1
    assert "no steps_to_target to compare" in result.words
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", encoding="utf-8")
    result = invoke("diff", untargeted, str(empty))
    assert result.exit_code == 2
    assert "has no records" in result.words


def test_a_target_missed_only_now_is_an_infinite_growth():
    hit, miss = _record(), _record(losses=(4.0, 3.0, 2.0))
    (lost,) = compare.differences(table([hit]), table([miss]), ["steps_to_target"])
    assert lost.growth == math.inf
    (still,) = compare.differences(table([miss]), table([miss]), ["steps_to_target"])
    assert still.growth == 0


def test_the_best_rate_is_that_of_the_lowest_median_and_misses_count_as_infinite():
    fast_once = [
        _record(rate=0.5, seed=s, losses=(4.0, 1.0 if s == 0 else 3.0, 2.0)) for s in range(3)
    ]
    steady = [_record(rate=0.1, seed=s) for s in range(3)]
    runs = table(fast_once + steady)
    best = optimizers.at_best_rates(runs)
    assert list(best["setting"]) == [0.1] * 3
    assert list(best["steps_to_target"]) == pytest.approx([15, 15, 15])
    medians = optimizers.medians(with_steps_to_target(runs))
    assert list(medians) == [math.inf, 15]


def test_the_profile_takes_each_technique_at_its_best_rate():
    runs = table(
        [
            _record("slow", seed=0, losses=(4.0, 2.0, 1.0)),
            _record("fast", rate=0.1, losses=(4.0, 3.0, 2.0)),
            _record("fast", rate=0.2, losses=(2.0, 1.0, 0.5)),
            _record("slow", problem="q", losses=(2.0, 1.0, 0.5)),
            _record("fast", problem="q", losses=(4.0, 3.0, 2.0)),
        ]
    )
    techniques, ratios, shares = optimizers.profile(runs)
    assert techniques == ["slow", "fast"]
    # On p fast takes 5 steps and slow 15; on q only slow arrives.
    assert shares[0][0] == 0.5
    assert shares[0][ratios >= 3 + 1e-9].min() == 1.0
    assert (shares[1] == 0.5).all()
    assert "slow has the highest profile score" in optimizers.headline(runs)
