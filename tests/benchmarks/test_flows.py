"""The flow figures: published end points, the records, and charts for whatever the numbers are."""

import dataclasses

import numpy as np
import pytest

from benchmarks.engine import records
from benchmarks.engine.table import table
from benchmarks.experiments import flow_charts, flow_paths, flows, sweep
from benchmarks.experiments.flow_measurement import flow_measurement
from benchmarks.report import figures

PUBLISHED = {
    ("gradient descent", 1e-3): 4.55626,
    ("gradient descent", 2.5e-2): 4.18243,
    ("gradient flow", 0.0): 4.57035,
    ("modified flow, order 1", 2.5e-2): 4.28929,
}


@pytest.mark.parametrize(("technique", "rate"), PUBLISHED)
def test_paths_on_two_weights_end_where_published(technique, rate):
    (wanted,) = (
        m
        for m in flows.EXPERIMENT.measurements
        for problem, _, _, name, (setting,), _ in m.keys
        if (problem, name, setting) == ("two weights", technique, rate)
    )
    (found,) = wanted.measure()
    assert found.key == wanted.keys[0]
    np.testing.assert_allclose(found.measures["value"], PUBLISHED[technique, rate], atol=1e-5)
    assert (found.curve["a"][0], found.curve["b"][0]) == flow_paths.START


def fake(slope):
    """A measurement of any kind: all curves that a figure may read, with a power law for the errors."""
    sizes = [0.1, 0.05]
    curve = {
        "step_size": sizes,
        "error": [h**slope for h in sizes],
        "own_error": [1e-12, 1e-12],
        "time": [0.0, 1.0],
        "distance": [1e-2, 1e-3],
        "a": [2.8, 0.3],
        "b": [3.5, 2.0],
    }
    return curve, {"measure": "slope", "value": slope, "theory": slope}


def test_a_second_run_measures_nothing_and_every_figure_is_drawn(tmp_path):
    calls = []

    def measure():
        calls.append(0)
        return fake(2.0)

    replaced = [
        flow_measurement(problem, about, technique, rate, num_steps, measure)
        for m in flows.EXPERIMENT.measurements
        for problem, about, num_steps, technique, (rate,), _ in m.keys
    ]
    faked = dataclasses.replace(flows.EXPERIMENT, measurements=replaced)
    path = tmp_path / "records.jsonl"
    runs = sweep.run(faked, path)
    again = sweep.run(faked, path)
    assert len(calls) == len(runs) == len(records.read(path))
    assert again["label"].equals(runs["label"])
    # A path is no run: nothing is said of what a step of it costs.
    assert "seconds_per_step" not in table(records.read(path))
    drawn = flow_charts.draw(runs)
    assert [figure.name for figure in drawn] == ["paths", "one_step", "optimizers", "drift"]
    for figure in drawn:
        assert figures.specification(figure.chart)["$schema"]
    assert "slope 2.00, 2.00" in flows.headline(runs)


def test_level_sets_are_level():
    for row in flow_charts._level_sets(flow_charts.OVERVIEW)[::50]:
        loss = (0.6 - row["a"] * row["b"]) ** 2 / 2
        assert min(abs(loss / level - 1) for level in flow_charts.LEVELS) < 0.1
