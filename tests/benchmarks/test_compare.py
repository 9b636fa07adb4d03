import dataclasses
import math

import pytest
import typer.testing

from benchmarks.cli import app as command_line
from benchmarks.engine import records
from benchmarks.experiments import optimizers
from benchmarks.report import compare


def _record(technique="sgd", rate=0.1, seed=0, losses=(4.0, 2.0, 1.0), problem="p"):
    return records.Record(
        problem=problem,
        settings="s",
        technique=technique,
        learning_rate=rate,
        seed=seed,
        num_steps=20,
        curve={"step": [0, 10, 20], "train_loss": list(losses)},
        final={"train_loss": losses[-1]},
        gradients_per_step=1.0,
        products_per_step=0.0,
        seconds_per_step=1e-3,
        compile_seconds=0.5,
        runs_in_program=5,
        environment={},
        target={"measure": "train_loss", "value": 1.5, "higher_is_better": False},
    )


def _write(path, runs):
    records.append(path, runs)
    return str(path)


def test_diff_fails_where_a_limit_is_passed_and_only_there(tmp_path):
    before = _write(tmp_path / "a.jsonl", [_record(seed=s) for s in range(3)])
    # The target of 1.5 is crossed at step 15 before, and at 10 + 10 * 0.5 / 0.6 after: 22 % later.
    slower = [_record(seed=s, losses=(4.0, 2.0, 1.4)) for s in range(3)]
    after = _write(tmp_path / "b.jsonl", slower)
    run = typer.testing.CliRunner().invoke
    limits = ["--fail", "steps_to_target:30%"]
    assert run(command_line.app, ["diff", before, after, *limits]).exit_code == 0
    limits = ["--fail", "steps_to_target:20%"]
    failed = run(command_line.app, ["diff", before, after, *limits])
    assert failed.exit_code == 1
    assert "+22.2 %" in failed.output
    assert run(command_line.app, ["diff", after, before, *limits]).exit_code == 0
    wrong = run(command_line.app, ["diff", before, after, "--fail", "speed:10%"])
    assert wrong.exit_code == 2
    assert "steps_to_target" in wrong.output + wrong.stderr


def _text(result):
    return " ".join((result.output + result.stderr).split())


def test_diff_says_what_it_does_not_compare(tmp_path):
    before = [_record(seed=0), _record(seed=1), _record("adam"), _record("adam", problem="q")]
    after = [_record(seed=0), dataclasses.replace(_record("adam", problem="q"), settings="t")]
    first = _write(tmp_path / "a.jsonl", before)
    second = _write(tmp_path / "b.jsonl.gz", after)
    result = typer.testing.CliRunner().invoke(command_line.app, ["diff", first, second])
    assert result.exit_code == 0
    assert "q is not the same: s, 20 steps | t, 20 steps." in _text(result)
    assert "only in the first file: adam at 0.1 on p, adam at 0.1 on q." in _text(result)
    assert "not the same seeds: sgd at 0.1 on p." in _text(result)


def test_diff_fails_where_there_is_nothing_to_hold_to_the_limit(tmp_path):
    run = typer.testing.CliRunner().invoke
    untargeted = _write(tmp_path / "a.jsonl", [dataclasses.replace(_record(), target=None)])
    arguments = ["diff", untargeted, untargeted]
    assert run(command_line.app, arguments).exit_code == 0
    result = run(command_line.app, [*arguments, "--fail", "steps_to_target:5%"])
    assert result.exit_code == 1
    assert "no steps_to_target to compare" in _text(result)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    result = run(command_line.app, ["diff", untargeted, str(empty)])
    assert result.exit_code == 2
    assert "has no records" in _text(result)


def test_a_target_missed_only_now_is_an_infinite_growth():
    hit, miss = _record(), _record(losses=(4.0, 3.0, 2.0))
    (lost,) = compare.differences([hit], [miss], ["steps_to_target"])
    assert lost.growth == math.inf
    (still,) = compare.differences([miss], [miss], ["steps_to_target"])
    assert still.growth == 0


def test_the_best_rate_is_that_of_the_lowest_median_and_misses_count_as_infinite():
    fast_once = [
        _record(rate=0.5, seed=s, losses=(4.0, 1.0 if s == 0 else 3.0, 2.0)) for s in range(3)
    ]
    steady = [_record(rate=0.1, seed=s) for s in range(3)]
    rate, chosen = optimizers.best(fast_once + steady)
    assert rate == 0.1
    assert [optimizers.steps(r) for r in chosen] == pytest.approx([15, 15, 15])
    rates, medians = optimizers.medians(fast_once + steady)
    assert (rates, medians) == ([0.1, 0.5], [15, math.inf])


def test_the_profile_takes_each_technique_at_its_best_rate():
    runs = [
        _record("slow", seed=0, losses=(4.0, 2.0, 1.0)),
        _record("fast", rate=0.1, losses=(4.0, 3.0, 2.0)),
        _record("fast", rate=0.2, losses=(2.0, 1.0, 0.5)),
        _record("slow", problem="q", losses=(2.0, 1.0, 0.5)),
        _record("fast", problem="q", losses=(4.0, 3.0, 2.0)),
    ]
    techniques, ratios, shares = optimizers.profile(runs)
    assert techniques == ["slow", "fast"]
    # On p fast takes 5 steps and slow 15; on q only slow arrives.
    assert shares[0][0] == 0.5
    assert shares[0][ratios >= 3 + 1e-9].min() == 1.0
    assert (shares[1] == 0.5).all()
    assert "slow has the highest profile score" in optimizers.headline(
        [dataclasses.replace(r, target=r.target) for r in runs]
    )
