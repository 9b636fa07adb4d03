import dataclasses
import gzip
import math

import pytest

from benchmarks.engine import records


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
        learning_rate=0.1 + 1e-12,
        curve={"step": [0, 12345678], "train_loss": [1.23456789, math.inf]},
        final={"train_loss": -9.87654321e-13, "noise_accuracy": [0.123456789, math.nan]},
    )
    source, target = tmp_path / "records.jsonl", tmp_path / "kept" / "digits.jsonl.gz"
    records.append(source, [run])
    records.pack(source, target)
    (kept,) = records.read(target)
    assert kept.key == run.key
    assert kept.curve == {"step": [0, 12345678], "train_loss": [1.23457, math.inf]}
    assert kept.final["train_loss"] == -9.87654e-13
    assert kept.final["noise_accuracy"][0] == 0.123457
    assert dataclasses.replace(kept, curve=run.curve, final=run.final) == run


def test_seeds_are_grouped_by_technique_and_rate():
    runs = [_record(1), _record(0), _record(0, learning_rate=0.2)]
    grouped = records.groups(runs)
    assert list(grouped) == [("p", "sgd", 0.1), ("p", "sgd", 0.2)]
    assert [r.seed for r in grouped["p", "sgd", 0.1]] == [0, 1]
