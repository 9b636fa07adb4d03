import json

import pytest
from typer.testing import CliRunner

from benchmarks.cli.app import app
from benchmarks.costs import elementwise

# Passes over the parameters that the compiled step may take, copies and repeated reads included.
PASSES = {
    "adam": 10,
    "sgd": 3,
    "exponentiate": 3,
    "exponentiate, log_state": 6,
    "exponentiate_hypentropy": 3,
    "exponentiate_signed": 3,
    "multiplicative adam": 10,
    "scale_by_gain": 11,
    "egdd": 19,
    "adapt_scale(adam)": 16,
}


@pytest.fixture(scope="module")
def costs():
    return {c.name: c for c in elementwise.measure(size=100_000, rounds=1)}


@pytest.mark.parametrize("name", PASSES)
def test_a_donated_step_reads_and_writes_each_array_in_place(costs, name):
    assert costs[name].passes < PASSES[name] + 0.1
    # A copy of the tree would be one.
    assert costs[name].temporaries < 0.01


def test_a_simplex_step_needs_at_most_the_temporary_tree_of_a_softmax(costs):
    assert costs["exponentiate_simplex"].temporaries < costs["softmax"].temporaries + 0.05
    assert costs["exponentiate_simplex"].baseline == "softmax"


def test_a_baseline_is_measured_though_it_was_not_asked_for():
    found = elementwise.measure(["exponentiate"], size=1000, rounds=1)
    assert [c.name for c in found] == ["adam", "exponentiate"]
    assert found[0].ratio == 1
    assert found[0].state_copies == pytest.approx(2, abs=0.01)
    with pytest.raises(ValueError, match="no elementwise step 'adm'; there are adam, sgd"):
        elementwise.measure(["adm"])


def test_the_command_line_writes_a_record_a_step(tmp_path):
    arguments = ["steps", "--elementwise", "--size", "1000", "--rounds", "1", "--out", tmp_path]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "elementwise.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == list(elementwise.STEPS)
    assert "exponentiate_hypentropy" in result.output


def test_options_of_the_other_kind_of_step_are_refused():
    found = CliRunner().invoke(app, ["steps", "--elementwise", "--widths", "4,4,4"])
    assert found.exit_code == 2
    assert "--widths goes without --elementwise" in found.output
    found = CliRunner().invoke(app, ["steps", "--size", "10"])
    assert found.exit_code == 2
    assert "--size goes with --elementwise" in found.output
