"""The costs of the decays, counted on a small network."""

import pytest

from benchmarks.costs import decay_costs
from benchmarks.engine import records
from benchmarks.experiments import PRESENTATIONS
from benchmarks.report import markdown
from tests.benchmarks.helpers import invoke

WIDTHS = (48, 64, 64, 64, 10)


@pytest.fixture(scope="module")
def costs():
    found = decay_costs.measure(widths=WIDTHS, batch_size=32, rounds=1)
    return {cost.technique: cost for cost in found}


@pytest.fixture(scope="module")
def measures(costs):
    return {name: cost.measures for name, cost in costs.items()}


def test_compiled_flops_are_those_of_the_formula(measures):
    for name, cost in measures.items():
        if "expected_flops" in cost:
            assert cost["flops"] == pytest.approx(cost["expected_flops"], rel=0.05), name
    assert measures["spectral decay"]["flops"] < 1.1


def test_the_interval_keeps_the_mean_cost_of_a_refresh_under_a_tenth(measures):
    (name,) = [name for name in measures if "every" in name]
    interval = int(name.split()[-1])
    # 2t products of 2mn² over 6Bmn: 2 · 2 · 64 / (3 · 32) = 2.67 of a step, over the steps in between.
    assert interval == 64
    assert measures[name]["expected_flops"] - 1 == pytest.approx(1 / 24, rel=0.1)
    assert measures[name]["state_copies"] == pytest.approx(1, abs=0.01)
    assert decay_costs.recommended_interval(1, 1, 10**6) == 1


def test_peers_stand_beside_them(measures):
    assert measures["plain step"]["wall"] == 1
    assert {"nnx.SpectralNorm", "decay by SVD", "L2 decay"} < set(measures)
    assert all(c["wall"] > 0 and c["refresh_wall"] > 0 for c in measures.values())


def test_the_command_prints_and_records_them(costs, tmp_path, monkeypatch):
    monkeypatch.setattr(decay_costs, "measure", lambda **options: list(costs.values()))
    result = invoke("decay-costs", "--out", tmp_path)
    assert result.exit_code == 0, result.words
    assert "nnx.SpectralNorm" in result.words
    found = records.read(tmp_path / "decay_costs.jsonl")
    assert [cost.technique for cost in found] == list(costs)
    markdown.write(tmp_path / "RESULTS.md", tmp_path, PRESENTATIONS)
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "| nnx.SpectralNorm | " in text
    assert "MLP 48-64-64-64-10 (relu), batch 32. Records:" in text
