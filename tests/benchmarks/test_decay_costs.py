"""The costs of the decays, counted on a small network."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks.cli.app import app
from benchmarks.costs import decay_costs
from benchmarks.experiments import results

WIDTHS = (48, 64, 64, 64, 10)


@pytest.fixture(scope="module")
def costs():
    found = decay_costs.measure(widths=WIDTHS, batch_size=32, rounds=1)
    return {c.name: c for c in found}


def test_compiled_flops_are_those_of_the_formula(costs):
    for name, cost in costs.items():
        if cost.expected_flops is not None:
            assert cost.flops == pytest.approx(cost.expected_flops, rel=0.05), name
    assert costs["spectral decay"].flops < 1.1


def test_the_interval_keeps_the_mean_cost_of_a_refresh_under_a_tenth(costs):
    (name,) = [name for name in costs if "every" in name]
    interval = int(name.split()[-1])
    # 2t products of 2mn² over 6Bmn: 2 · 2 · 64 / (3 · 32) = 2.67 of a step, over the steps in between.
    assert interval == 64
    assert costs[name].expected_flops - 1 == pytest.approx(1 / 24, rel=0.1)
    assert costs[name].state_copies == pytest.approx(1, abs=0.01)
    assert decay_costs.recommended_interval(1, 1, 10**6) == 1


def test_peers_stand_beside_them(costs):
    assert costs["plain step"].wall == 1
    assert {"nnx.SpectralNorm", "decay by SVD", "L2 decay"} < set(costs)
    assert all(c.wall > 0 and c.refresh_wall > 0 for c in costs.values())


def test_the_command_prints_and_records_them(costs, tmp_path, monkeypatch):
    monkeypatch.setattr(decay_costs, "measure", lambda **options: list(costs.values()))
    result = CliRunner().invoke(app, ["decay-costs", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "nnx.SpectralNorm" in result.output
    lines = (tmp_path / "decay_costs.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == list(costs)
    results.write(tmp_path / "RESULTS.md", tmp_path)
    assert "| nnx.SpectralNorm | " in (tmp_path / "RESULTS.md").read_text()
