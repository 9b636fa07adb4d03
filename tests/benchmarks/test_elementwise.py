import pytest

from benchmarks.costs import elementwise_costs
from benchmarks.engine import records
from tests.benchmarks.helpers import invoke

# Passes over the parameters that the compiled step may take, copies and repeated reads included.
PASSES = {
    "adam": 10,
    "sgd": 3,
    "exponentiate": 3,
    "exponentiate, log_state": 6,
    "exponentiate_hypentropy": 3,
    "exponentiate_signed": 3,
    "multiplicative adam": 10,
    "scale_by_gain": 12,
    "egdd": 19,
    "adapt_scale(adam)": 16,
}


@pytest.fixture(scope="module")
def costs():
    return {c.technique: c.measures for c in elementwise_costs.measure(size=100_000, rounds=1)}


@pytest.mark.parametrize("name", PASSES)
def test_a_donated_step_reads_and_writes_each_array_in_place(costs, name):
    assert costs[name]["passes"] < PASSES[name] + 0.1
    # A copy of the tree would be one.
    assert costs[name]["temporaries"] < 0.01


def test_a_simplex_step_needs_at_most_the_temporary_tree_of_a_softmax(costs):
    assert costs["exponentiate_simplex"]["temporaries"] < costs["softmax"]["temporaries"] + 0.05
    assert costs["exponentiate_simplex"]["baseline"] == "softmax"


def test_a_baseline_is_measured_though_it_was_not_asked_for():
    found = elementwise_costs.measure(["exponentiate"], size=1000, rounds=1)
    assert [c.technique for c in found] == ["adam", "exponentiate"]
    assert found[0].measures["ratio"] == 1
    assert found[0].measures["state_copies"] == pytest.approx(2, abs=0.01)
    with pytest.raises(ValueError, match="no elementwise step 'adm'; there are adam, sgd"):
        elementwise_costs.measure(["adm"])


def test_the_command_line_writes_a_record_a_step(tmp_path):
    result = invoke("steps", "--elementwise", "--size", 1000, "--rounds", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.words
    found = records.read(tmp_path / "elementwise.jsonl")
    assert [cost.technique for cost in found] == list(elementwise_costs.STEPS)
    assert "exponentiate_hypentropy" in result.words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--elementwise", "--widths", "4,4,4"), "--widths goes without --elementwise"),
        (("--size", "10"), "--size goes with --elementwise"),
    ],
)
def test_options_of_the_other_kind_of_step_are_refused(arguments, message):
    found = invoke("steps", *arguments)
    assert found.exit_code == 2
    assert message in found.words
