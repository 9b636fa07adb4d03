import pytest

from benchmarks.engine import records
from benchmarks.engine.old_lines import STEP, SWEEP
from benchmarks.engine.records import Record
from benchmarks.experiments import PRESENTATIONS
from benchmarks.report import markdown

ENVIRONMENT = {"machine": "Linux x86_64, 2 cores", "device": "cpu", "jax": "0.10.2", "commit": "1a"}


def _cost(technique, problem=STEP, settings=None, **measures):
    return Record(
        technique, problem, settings=settings or {}, measures=measures, environment=ENVIRONMENT
    )


def _speed(runs, program, loop, difference):
    return _cost(
        "sgd",
        SWEEP,
        {"runs": runs},
        runs=runs,
        steps=500,
        program_seconds=program,
        program_compile_seconds=3.0,
        loop_seconds=loop,
        loop_compile_seconds=0.25,
        largest_difference=difference,
    )


def test_costs_of_steps_and_speeds_of_sweeps_have_sections_with_their_machine(tmp_path):
    folder = tmp_path / "recorded"
    step = _cost(
        "sam",
        wall=2.064,
        milliseconds=9.1,
        flops=2.0,
        memory=1.6,
        gradients=2.0,
        products=0.0,
        state_copies=0.0,
        compile_seconds=1.5,
        has_loop=False,
    )
    records.write(folder / "steps.jsonl", [step])
    elementwise = _cost(
        "egdd",
        baseline="adam",
        ratio=1.954,
        milliseconds=21.9,
        passes=19.0,
        temporaries=0.0,
        state_copies=3.0,
        size=10_000_000,
    )
    records.write(folder / "elementwise.jsonl.gz", [elementwise])
    speeds = [_speed(40, 2.0, 6.0, 1e-6), _speed(400, 20.0, 60.0, 2e-6)]
    records.write(folder / "sweep_speed.gpu.jsonl.gz", speeds)
    markdown.write(tmp_path / "RESULTS.md", folder, PRESENTATIONS)
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
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
    def write():
        markdown.write(tmp_path / "RESULTS.md", tmp_path, PRESENTATIONS)

    with pytest.raises(ValueError, match=r"has no \.jsonl"):
        write()
    path = tmp_path / "penalties.jsonl"
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"penalties\.jsonl has no records"):
        write()
    records.write(tmp_path / "steps.jsonl", [_cost("sgd", ratio=1.0)])
    with pytest.raises(ValueError, match=r"steps\.jsonl holds no records of steps: it has no wall"):
        markdown.read(tmp_path / "steps.jsonl", PRESENTATIONS["steps"])
    (tmp_path / "steps.jsonl").unlink()
    path.rename(tmp_path / "penaltys.jsonl")
    with pytest.raises(ValueError, match=r"penaltys\.jsonl names none of penalties, .*flows"):
        write()
    assert not (tmp_path / "RESULTS.md").exists()
