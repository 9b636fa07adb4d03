import dataclasses

import pytest

from benchmarks.costs.elementwise import ElementwiseCost
from benchmarks.costs.step_costs import StepCost
from benchmarks.costs.sweep_speed import SweepSpeed
from benchmarks.engine import records
from benchmarks.experiments import results

ENVIRONMENT = {"machine": "Linux x86_64, 2 cores", "device": "cpu", "jax": "0.10.2", "commit": "1a"}


def _write(path, *rows):
    records.write_rows(path, [row | {"environment": ENVIRONMENT} for row in rows])


def test_costs_of_steps_and_speeds_of_sweeps_have_sections_with_their_machine(tmp_path):
    folder = tmp_path / "recorded"
    cost = StepCost("sam", 2.064, 9.1, 2.0, 1.6, 2.0, 0.0, 0.0, 1.5)
    _write(folder / "steps.jsonl", dataclasses.asdict(cost) | {"of_a_later_version": 1})
    elementwise = ElementwiseCost("egdd", "adam", 1.954, 21.9, 19.0, 0.0, 3.0, 10_000_000)
    _write(folder / "elementwise.jsonl.gz", dataclasses.asdict(elementwise))
    speeds = [
        SweepSpeed(40, 500, 2.0, 3.0, 6.0, 0.25, 1e-6),
        SweepSpeed(400, 500, 20.0, 3.0, 60.0, 0.25, 2e-6),
    ]
    _write(folder / "sweep_speed.gpu.jsonl.gz", *map(dataclasses.asdict, speeds))
    results.write(tmp_path / "RESULTS.md", folder)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| sam | 2.06 | 9.1 | 2.00 | 1.60 | 2 | 0 |" in text
    assert "| egdd | 1.95 | adam | 21.9 | 19.0 | 0.00 | 3.0 |" in text
    assert "10,000,000 parameters in float32" in text
    assert "| 400 | 20.00 | 3.00 | 60.00 | 3.00 | 2.62 | 50.0 |" in text
    assert "500 steps each; their final losses differ by at most 2e-06 relatively" in text
    assert text.index("What does a step cost?") < text.index("How fast is a sweep?")
    machine = "Linux x86_64, 2 cores, cpu; jax 0.10.2; commit 1a."
    assert f"Records: `recorded/steps.jsonl`. {machine}\n" in text
    assert f"Records: `recorded/sweep_speed.gpu.jsonl.gz`. {machine}\n" in text


def test_a_file_that_names_no_experiment_or_has_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no \.jsonl"):
        results.write(tmp_path / "RESULTS.md", tmp_path)
    path = tmp_path / "penalties.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match=r"penalties\.jsonl has no records"):
        results.write(tmp_path / "RESULTS.md", tmp_path)
    _write(tmp_path / "steps.jsonl", {"name": "sgd"})
    with pytest.raises(ValueError, match=r"steps\.jsonl, line 1, is no cost of steps"):
        results.read(tmp_path / "steps.jsonl", "steps")
    (tmp_path / "steps.jsonl").unlink()
    path.rename(tmp_path / "penaltys.jsonl")
    with pytest.raises(ValueError, match=r"penaltys\.jsonl names none of penalties, .*flows"):
        results.write(tmp_path / "RESULTS.md", tmp_path)
    assert not (tmp_path / "RESULTS.md").exists()
