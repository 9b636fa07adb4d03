"""The flow figures: published end points, the records, and charts for whatever the numbers are."""

import jax
import numpy as np
import pytest

from benchmarks.engine import records
from benchmarks.experiments import flow_charts, flow_paths, flows
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
        for m in flows.MEASUREMENTS
        if (m.problem, m.technique, m.learning_rate) == ("two weights", technique, rate)
    )
    with jax.enable_x64(True):
        curve, final = wanted.measure()
    np.testing.assert_allclose(final["value"], PUBLISHED[technique, rate], atol=1e-5)
    assert (curve["a"][0], curve["b"][0]) == flow_paths.START


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


def test_a_second_run_measures_nothing_and_every_figure_is_drawn(tmp_path, monkeypatch):
    calls = []
    replaced = [
        flows.Measurement(
            m.problem,
            m.settings,
            m.technique,
            m.learning_rate,
            m.num_steps,
            lambda: (calls.append(0), fake(2.0))[1],
        )
        for m in flows.MEASUREMENTS
    ]
    monkeypatch.setattr(flows, "MEASUREMENTS", replaced)
    runs = flows.run(tmp_path / "records.jsonl")
    again = flows.run(tmp_path / "records.jsonl")
    assert len(calls) == len(runs) == len(records.read(tmp_path / "records.jsonl"))
    assert [r.key for r in again] == [r.key for r in runs]
    drawn = flow_charts.draw(runs)
    assert [figure.name for figure in drawn] == ["paths", "one_step", "optimizers", "drift"]
    for figure in drawn:
        assert figures.specification(figure.chart)["$schema"]
    assert "slope 2.00, 2.00" in flows.headline(runs)


def test_level_sets_are_level():
    for row in flow_charts._level_sets(flow_charts.OVERVIEW)[::50]:
        loss = (0.6 - row["a"] * row["b"]) ** 2 / 2
        assert min(abs(loss / level - 1) for level in flow_charts.LEVELS) < 0.1
