import dataclasses
import gzip
import json
import math

import pytest

from benchmarks.engine import records
from benchmarks.engine.table import groups, table
from tests.benchmarks.helpers import record


def _record(seed=0, **changes):
    made = record(
        seed=seed,
        loss=math.inf,
        measures={"noise_accuracy": [0.5, math.nan]},
        environment={"machine": "nan"},
    )
    return dataclasses.replace(made, **changes)


def test_records_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "run" / "records.jsonl"
    written = [_record(0), _record(1, measures={"train_loss": 0.25})]
    records.append(path, written[:1])
    records.append(path, written[1:])
    first, second = records.read(path)
    assert second == written[1]
    assert first.curve == written[0].curve
    assert first.environment == {"machine": "nan"}
    assert first.measures["train_loss"] == math.inf
    assert math.isnan(first.measures["noise_accuracy"][1])
    assert list(table([first, second])["diverged"]) == [True, False]


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
    path.write_text('{"problem": "p"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"records\.jsonl, line 1"):
        records.read(path)
    for line in (b"[1]\n", b'"text"\n', b"{\n", b"\xff\n"):
        path.write_bytes(line)
        with pytest.raises(ValueError, match=r"records\.jsonl, line 1, is not a record"):
            records.read(path)


def test_compressed_records_are_read_and_appended_to_alike_and_repeat_byte_by_byte(tmp_path):
    plain, packed, again = (tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.gz"))
    for path in (plain, packed):
        records.append(path, [_record(0)])
        records.append(path, [_record(1)])
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert [r.seed for r in records.read(packed)] == [0, 1]
    records.append(again, [_record(0), _record(1)])
    assert again.read_bytes() == packed.read_bytes()
    assert sorted(tmp_path.iterdir()) == [plain, packed, again]
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"b\.jsonl\.gz is not a whole gzip file"):
        records.read(packed)


def test_packing_rounds_what_was_measured_and_keeps_what_identifies_the_run(tmp_path):
    run = _record(
        settings={"learning_rate": 0.1 + 1e-12},
        curve={"step": [0, 12345678], "train_loss": [1.23456789, math.inf]},
        measures={"train_loss": -9.87654321e-13, "noise_accuracy": [0.123456789, math.nan]},
    )
    source, target = tmp_path / "records.jsonl", tmp_path / "kept" / "digits.jsonl.gz"
    records.append(source, [run])
    records.pack(source, target)
    (kept,) = records.read(target)
    assert kept.key == run.key
    assert kept.curve == {"step": [0, 12345678], "train_loss": [1.23457, math.inf]}
    assert kept.measures["train_loss"] == -9.87654e-13
    assert kept.measures["noise_accuracy"][0] == 0.123457
    assert dataclasses.replace(kept, curve=run.curve, measures=run.measures) == run


def test_seeds_are_grouped_by_technique_and_settings():
    runs = [_record(1), _record(0), _record(0, settings={"learning_rate": 0.2})]
    grouped = groups(table(runs))
    assert list(grouped) == [("p", "sgd", "0.1"), ("p", "sgd", "0.2")]
    assert list(grouped["p", "sgd", "0.1"]["seed"]) == [0, 1]
    with pytest.raises(ValueError, match="sgd: curve cannot be the name of a measure"):
        table([_record(measures={"curve": 1.0})])


def test_lines_of_earlier_versions_are_read_as_what_they_are_now(tmp_path):
    run = {
        "problem": "p",
        "settings": "s",
        "technique": "sgd",
        "learning_rate": 0.1,
        "seed": 0,
        "num_steps": 20,
        "curve": {"step": [0, 10, 20], "train_loss": [4.0, 2.0, "inf"]},
        "final": {"train_loss": "inf", "noise_accuracy": [0.5, "nan"]},
        "gradients_per_step": 1.0,
        "products_per_step": "nan",
        "seconds_per_step": 1e-3,
        "compile_seconds": 0.5,
        "runs_in_program": 5,
        "environment": {"machine": "nan"},
        "target": None,
    }
    cost = {"name": "sam", "wall": 2.0, "environment": {"jax": "0.10.2"}}
    sweep = {"runs": 40, "program_seconds": 2.0, "environment": {}}
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in (run, cost, sweep)), encoding="utf-8")
    of_run, of_cost, of_sweep = records.read(path)
    assert of_run.key == _record(0).key
    assert of_run.curve == _record(0).curve
    # What was no number is no measure.
    assert "products_per_step" not in of_run.measures
    assert of_run.measures["seconds_per_step"] == 1e-3
    assert (of_cost.technique, of_cost.measures) == ("sam", {"wall": 2.0})
    assert of_cost.environment == {"jax": "0.10.2"}
    assert dict(of_sweep.settings) == {"runs": 40}
