import pytest

from benchmarks.costs import sweep_speed


def test_the_program_and_the_loop_end_at_the_same_losses():
    (found,) = sweep_speed.measure([10], epochs=1, loop_runs=5)
    measures = found.measures
    assert measures["largest_difference"] < 1e-5
    assert (measures["runs"], measures["steps"]) == (10, 25)
    assert min(measures["program_seconds"], measures["loop_seconds"]) > 0


def test_runs_that_the_seeds_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="7 runs are no multiple of the 5 seeds"):
        sweep_speed.measure([10, 7])
