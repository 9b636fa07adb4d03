import dataclasses
import math

import pytest

from benchmarks import records


def _record(seed=0, **changes):
    made = records.Record(
        problem="p",
        settings="s",
        technique="sgd",
        learning_rate=0.1,
        seed=seed,
        num_steps=2,
        curve={"step": [0, 2], "train_loss": [1.0, math.inf]},
        final={"train_loss": math.inf, "noise_accuracy": [0.5, math.nan]},
        gradients_per_step=1.0,
        products_per_step=0.0,
        seconds_per_step=1e-3,
        compile_seconds=0.5,
        runs_in_program=5,
        environment={"machine": "nan"},
    )
    return dataclasses.replace(made, **changes)


def test_records_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "run" / "records.jsonl"
    written = [_record(0), _record(1, final={"train_loss": 0.25})]
    records.append(path, written[:1])
    records.append(path, written[1:])
    first, second = records.read(path)
    assert second == written[1]
    assert first.curve == written[0].curve
    assert first.environment == {"machine": "nan"}
    assert first.final["train_loss"] == math.inf
    assert math.isnan(first.final["noise_accuracy"][1])
    assert first.diverged
    assert not second.diverged


def test_a_line_torn_by_an_interruption_is_skipped_and_then_overwritten(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append(path, [_record(0), _record(1)])
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    assert [r.seed for r in records.read(path)] == [0]
    records.append(path, [_record(2)])
    assert [r.seed for r in records.read(path)] == [0, 2]


def test_a_line_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"problem": "p"}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl, line 1"):
        records.read(path)


def test_seeds_are_grouped_by_technique_and_rate():
    runs = [_record(1), _record(0), _record(0, learning_rate=0.2)]
    grouped = records.groups(runs)
    assert list(grouped) == [("p", "sgd", 0.1), ("p", "sgd", 0.2)]
    assert [r.seed for r in grouped["p", "sgd", 0.1]] == [0, 1]
