import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks.engine import records
from benchmarks.experiments import experiment
from benchmarks.problems.problem import Problem
from benchmarks.techniques.own import TECHNIQUES


@pytest.fixture
def bowls():
    def bowl(name):
        return Problem(
            name=name,
            init=lambda key: jax.random.normal(key, (3,)),
            loss=lambda params, batch: jnp.sum(params**2),
            train=None,
            test=None,
            batch_size=None,
            num_steps=5,
            measures={"train_loss": lambda p, train, test: jnp.sum(p**2)},
            final_measures={"train_loss": lambda p, train, test: jnp.sum(p**2)},
            about=f"a {name} bowl",
        )

    return experiment.Experiment(
        name="bowls",
        question="Which way is down?",
        about="",
        problems=lambda data_dir: [bowl("round"), bowl("other")],
        entries=[experiment.Entry(TECHNIQUES["sgd"], (0.1, 0.2))],
        columns=[],
        headline=lambda runs: "",
        figures=lambda runs: [],
    )


def test_only_runs_that_are_not_on_record_are_run(bowls, tmp_path):
    path = tmp_path / "records.jsonl"
    first = experiment.run(bowls, path, seeds=2)
    assert [(r.problem, r.learning_rate, r.seed) for r in first] == [
        (problem, rate, seed)
        for problem in ("round", "other")
        for rate in (0.1, 0.2)
        for seed in (0, 1)
    ]
    more = experiment.run(bowls, path, seeds=3, learning_rates=[0.2])
    on_record = records.read(path)
    assert len(on_record) == 8 + 2
    assert {r.seed for r in on_record[8:]} == {2}
    assert [(r.problem, r.seed) for r in more] == [
        (problem, seed) for problem in ("round", "other") for seed in (0, 1, 2)
    ]


def test_gradient_descent_on_a_bowl_shrinks_by_its_factor(bowls, tmp_path):
    for record in experiment.run(bowls, tmp_path / "records.jsonl", seeds=1):
        start, end = record.curve["train_loss"][0], record.final["train_loss"]
        # The rate is a float32 number.
        assert end / start == pytest.approx((1 - 2 * record.learning_rate) ** 10, rel=1e-5)
        assert (record.gradients_per_step, record.products_per_step) == (1, 0)


def test_another_length_of_run_is_another_run(bowls, tmp_path):
    path = tmp_path / "records.jsonl"
    experiment.run(bowls, path, seeds=1)
    experiment.run(bowls, path, seeds=1, num_steps=7)
    assert sorted({r.num_steps for r in records.read(path)}) == [5, 7]


def test_techniques_asked_for_keep_the_rates_of_the_experiment(bowls):
    entries = experiment.chosen(bowls, [TECHNIQUES["adam"], TECHNIQUES["sgd"]])
    assert [(e.technique.name, e.learning_rates) for e in entries] == [
        ("adam", None),
        ("sgd", (0.1, 0.2)),
    ]


def test_techniques_are_found_among_the_experiments_own_first(bowls):
    own = dataclasses.replace(TECHNIQUES["sgd"], name="downhill")
    also_sgd = dataclasses.replace(TECHNIQUES["sgd"], about="of this experiment")
    entries = [experiment.Entry(own), experiment.Entry(also_sgd)]
    named = dataclasses.replace(bowls, entries=entries)
    assert experiment.find_techniques(named, ["sgd", "downhill"]) == [also_sgd, own]
    assert experiment.find_techniques(named, ["adam"]) == [TECHNIQUES["adam"]]
    with pytest.raises(
        ValueError, match=r"'uphill'; bowls has downhill, sgd; the suite also has .*adam"
    ):
        experiment.find_techniques(named, ["uphill"])


def test_a_technique_that_compares_steps_runs_only_where_they_see_the_same_batch(bowls, tmp_path):
    entry = experiment.Entry(TECHNIQUES["optimistix_cg"])
    (round_bowl, other) = bowls.problems(None)
    data = {"x": jnp.zeros(4)}
    batched = other.replace(train=data, test=data, batch_size=2)
    alone = dataclasses.replace(bowls, entries=[entry])
    (run,) = experiment.run(
        alone, tmp_path / "a.jsonl", seeds=1, problems=[round_bowl, batched], num_steps=8
    )
    assert run.problem == "round"
    # One trial point a step, whose gradient is taken where it is accepted; on a bowl that is soon the minimum.
    assert 1 <= run.gradients_per_step <= 2
    assert run.final["train_loss"] < 1e-9 * run.curve["train_loss"][0]
    with pytest.raises(ValueError, match=r"optimistix_cg: not for .*same batch"):
        experiment.run(alone, tmp_path / "b.jsonl", problems=[batched])


def test_the_curve_holds_the_measures_that_the_experiment_names(bowls, tmp_path):
    (problem, _) = bowls.problems(None)
    problem = problem.replace(
        measures={**problem.measures, "dear": lambda p, train, test: jnp.sum(p)}
    )
    some = dataclasses.replace(bowls, curve_measures=("train_loss", "test_accuracy"))
    (run, *_) = experiment.run(some, tmp_path / "a.jsonl", seeds=1, problems=[problem])
    assert list(run.curve) == ["step", "train_loss"]


def test_an_entry_runs_on_the_problems_that_it_names(bowls, tmp_path):
    entries = [
        experiment.Entry(TECHNIQUES["sgd"], (0.1,), problems=("round",)),
        experiment.Entry(TECHNIQUES["sgd"], (0.3,), problems=("other",)),
        experiment.Entry(TECHNIQUES["adam"], (0.2,)),
    ]
    bowls = dataclasses.replace(bowls, entries=entries)
    found = experiment.run(bowls, tmp_path / "records.jsonl", seeds=1)
    assert [(r.problem, r.technique, r.learning_rate) for r in found] == [
        ("round", "sgd", 0.1),
        ("round", "adam", 0.2),
        ("other", "sgd", 0.3),
        ("other", "adam", 0.2),
    ]
    # A problem that no entry names is for all of them.
    third = bowls.problems(None)[0].replace(name="third")
    found = experiment.run(bowls, tmp_path / "records.jsonl", seeds=1, problems=[third])
    assert [r.learning_rate for r in found] == [0.1, 0.3, 0.2]


def test_a_measurement_is_taken_once(bowls, tmp_path):
    path = tmp_path / "records.jsonl"
    (template, *_) = experiment.run(bowls, path, seeds=1)
    taken = []

    def measure():
        taken.append(True)
        return [dataclasses.replace(template, problem="cost")]

    keys = [("cost", *template.key[1:])]
    measurement = experiment.Measurement(keys, measure)
    bowls = dataclasses.replace(bowls, measurements=[measurement])
    for _ in range(2):
        found = experiment.run(bowls, path, seeds=1)
        assert [r.problem for r in found] == ["round", "round", "other", "other", "cost"]
    # Neither where techniques are chosen.
    assert len(experiment.run(bowls, path, seeds=1, techniques=[TECHNIQUES["sgd"]])) == 4
    assert taken == [True]


def test_a_chosen_problem_that_lacks_what_is_compared_is_refused_before_it_runs(bowls, tmp_path):
    regret = dataclasses.replace(bowls, needs=("train_loss", "regret"))
    (problem, _) = bowls.problems(None)
    with pytest.raises(ValueError, match="bowls compares regret, which round does not measure"):
        experiment.run(regret, tmp_path / "records.jsonl", problems=[problem])
    assert not (tmp_path / "records.jsonl").exists()
