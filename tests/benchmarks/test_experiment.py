import dataclasses

import jax.numpy as jnp
import optax
import pytest

from benchmarks.engine import records
from benchmarks.experiments import sweep
from benchmarks.experiments.experiment import Entry, Experiment, Measurement
from benchmarks.techniques import TECHNIQUES, Technique
from tests.benchmarks.helpers import bowl


@pytest.fixture
def bowls():
    return Experiment(
        name="bowls",
        question="Which way is down?",
        problems=lambda data_dir: [bowl("round"), bowl("other")],
        entries=[Entry(TECHNIQUES["sgd"], (0.1, 0.2))],
        columns=[],
        headline=lambda runs: "",
    )


def rows(runs, *names):
    return list(runs[list(names)].itertuples(index=False, name=None))


def test_only_runs_that_are_not_on_record_are_run(bowls, tmp_path):
    path = tmp_path / "records.jsonl"
    first = sweep.run(bowls, path, seeds=2)
    assert rows(first, "problem", "setting", "seed") == [
        (problem, rate, seed)
        for problem in ("round", "other")
        for rate in (0.1, 0.2)
        for seed in (0, 1)
    ]
    more = sweep.run(bowls, path, seeds=3, learning_rates=[0.2])
    on_record = records.read(path)
    assert len(on_record) == 8 + 2
    assert {r.seed for r in on_record[8:]} == {2}
    assert rows(more, "problem", "seed") == [
        (problem, seed) for problem in ("round", "other") for seed in (0, 1, 2)
    ]


def test_gradient_descent_on_a_bowl_shrinks_by_its_factor(bowls, tmp_path):
    for run in sweep.run(bowls, tmp_path / "records.jsonl", seeds=1).to_dict("records"):
        start, end = run["curve"]["train_loss"][0], run["train_loss"]
        # The rate is a float32 number.
        assert end / start == pytest.approx((1 - 2 * run["setting"]) ** 10, rel=1e-5)
        assert (run["gradients_per_step"], run["products_per_step"]) == (1, 0)


def test_settings_are_a_mapping_of_any_number_of_names(bowls, tmp_path):
    """Heavy ball on a bowl of curvature 2: the error follows e' = (1 + β - 2h) e - β e_before."""
    heavy_ball = Technique(
        "heavy_ball",
        lambda h, momentum, plan: optax.sgd(h, momentum=momentum),
        [(0.1, 0.5), (0.2, 0.0)],
        "",
        settings=("learning_rate", "momentum"),
    )
    path = tmp_path / "records.jsonl"
    alone = dataclasses.replace(bowls, entries=[Entry(heavy_ball)])
    runs = sweep.run(alone, path, seeds=1)
    assert [dict(r.settings) for r in records.read(path)][:2] == [
        {"learning_rate": 0.1, "momentum": 0.5},
        {"learning_rate": 0.2, "momentum": 0.0},
    ]
    for run, (h, momentum) in zip(runs.to_dict("records"), heavy_ball.grid, strict=False):
        before, now = 1.0, 1.0
        for _ in range(5):
            before, now = now, (1 + momentum - 2 * h) * now - momentum * before
        shrunk = run["train_loss"] / run["curve"]["train_loss"][0]
        assert shrunk == pytest.approx(now**2, rel=1e-4)
    assert runs["label"][0] == "heavy_ball learning_rate 0.1, momentum 0.5"
    # Other rates leave the other settings as they are.
    assert heavy_ball.at_rates([1.0]) == [(1.0, 0.5), (1.0, 0.0)]
    with pytest.raises(ValueError, match=r"heavy_ball has the settings learning_rate, momentum"):
        heavy_ball.named_settings(0.1)


def test_another_length_of_run_is_another_run(bowls, tmp_path):
    path = tmp_path / "records.jsonl"
    sweep.run(bowls, path, seeds=1)
    sweep.run(bowls, path, seeds=1, num_steps=7)
    assert sorted({r.num_steps for r in records.read(path)}) == [5, 7]


def test_techniques_asked_for_keep_the_rates_of_the_experiment(bowls):
    entries = sweep.chosen(bowls, [TECHNIQUES["adam"], TECHNIQUES["sgd"]])
    assert [(e.technique.name, e.grid) for e in entries] == [("adam", None), ("sgd", (0.1, 0.2))]
    # A technique of the user's own is itself, also under a name of the experiment.
    mine = dataclasses.replace(TECHNIQUES["sgd"], about="mine")
    assert sweep.chosen(bowls, [mine]) == [Entry(mine)]


def test_techniques_are_found_among_the_experiments_own_first(bowls):
    own = dataclasses.replace(TECHNIQUES["sgd"], name="downhill")
    also_sgd = dataclasses.replace(TECHNIQUES["sgd"], about="of this experiment")
    named = dataclasses.replace(bowls, entries=[Entry(own), Entry(also_sgd)])
    assert sweep.find_techniques(named, ["sgd", "downhill"]) == [also_sgd, own]
    assert sweep.find_techniques(named, ["adam"]) == [TECHNIQUES["adam"]]
    with pytest.raises(
        ValueError, match=r"'uphill'; bowls has downhill, sgd; the suite also has .*adam"
    ):
        sweep.find_techniques(named, ["uphill"])


def test_a_technique_that_compares_steps_runs_only_where_they_see_the_same_batch(bowls, tmp_path):
    data = {"x": jnp.zeros(4)}
    batched = bowl("other", train=data, test=data, batch_size=2)
    alone = dataclasses.replace(bowls, entries=[Entry(TECHNIQUES["optimistix_cg"])])
    notes = []
    runs = sweep.run(
        alone,
        tmp_path / "a.jsonl",
        seeds=1,
        problems=[bowl("round"), batched],
        num_steps=8,
        note=notes.append,
    )
    (run,) = runs.to_dict("records")
    assert run["problem"] == "round"
    # One trial point a step, whose gradient is taken where it is accepted; on a bowl that is soon the minimum.
    assert 1 <= run["gradients_per_step"] <= 2
    assert run["train_loss"] < 1e-9 * run["curve"]["train_loss"][0]
    assert notes == [
        "optimistix_cg is left out on other: a deterministic minimizer needs steps that all see the same batch."
    ]
    with pytest.raises(ValueError, match=r"optimistix_cg on other: .*same batch"):
        sweep.run(alone, tmp_path / "b.jsonl", problems=[batched])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("optimistix_cg", "see the same batch"),
        ("hedge", "for simplex parameters, and those of the problem are real"),
        ("gauss_newton_cg", "needs the outputs of a model"),
        ("sgd_microbatch_penalty", "batches of at least 4 examples"),
        ("sgd_small_in_front", "in no numbered layer"),
    ],
)
def test_a_technique_that_cannot_be_measured_is_refused_with_the_reason(
    bowls, tmp_path, name, reason
):
    data = {"x": jnp.zeros(4)}
    problem = bowl(train=data, test=data, batch_size=2)
    path = tmp_path / "records.jsonl"
    with pytest.raises(ValueError, match=rf"bowls cannot measure {name} on round: .*{reason}"):
        sweep.run(bowls, path, techniques=[TECHNIQUES[name]], problems=[problem])
    assert not path.exists()


def test_the_curve_holds_the_measures_that_the_experiment_names(bowls, tmp_path):
    problem = bowl()
    problem = problem.replace(
        measures={**problem.measures, "dear": lambda p, train, test: jnp.sum(p)}
    )
    some = dataclasses.replace(bowls, curve_measures=("train_loss", "test_accuracy"))
    runs = sweep.run(some, tmp_path / "a.jsonl", seeds=1, problems=[problem])
    assert list(runs["curve"][0]) == ["step", "train_loss"]


def test_an_entry_runs_on_the_problems_that_it_names(bowls, tmp_path):
    entries = [
        Entry(TECHNIQUES["sgd"], (0.1,), problems=("round",)),
        Entry(TECHNIQUES["sgd"], (0.3,), problems=("other",)),
        Entry(TECHNIQUES["adam"], (0.2,)),
    ]
    bowls = dataclasses.replace(bowls, entries=entries)
    found = sweep.run(bowls, tmp_path / "records.jsonl", seeds=1)
    assert rows(found, "problem", "technique", "setting") == [
        ("round", "sgd", 0.1),
        ("round", "adam", 0.2),
        ("other", "sgd", 0.3),
        ("other", "adam", 0.2),
    ]
    # A problem that no entry names is for all of them.
    found = sweep.run(bowls, tmp_path / "records.jsonl", seeds=1, problems=[bowl("third")])
    assert list(found["setting"]) == [0.1, 0.3, 0.2]


def test_a_measurement_is_taken_once(bowls, tmp_path):
    path = tmp_path / "records.jsonl"
    sweep.run(bowls, path, seeds=1)
    template = dataclasses.replace(records.read(path)[0], problem="cost")
    taken = []

    def measure():
        taken.append(True)
        return [template]

    bowls = dataclasses.replace(bowls, measurements=[Measurement([template.key], measure)])
    for _ in range(2):
        found = sweep.run(bowls, path, seeds=1)
        assert list(found["problem"]) == ["round", "round", "other", "other", "cost"]
    # Neither where techniques are chosen.
    assert len(sweep.run(bowls, path, seeds=1, techniques=[TECHNIQUES["sgd"]])) == 4
    assert taken == [True]


def test_a_chosen_problem_that_lacks_what_is_compared_is_refused_before_it_runs(bowls, tmp_path):
    regret = dataclasses.replace(bowls, needs=("train_loss", "regret"))
    with pytest.raises(ValueError, match="bowls compares regret, which round does not measure"):
        sweep.run(regret, tmp_path / "records.jsonl", problems=[bowl()])
    assert not (tmp_path / "records.jsonl").exists()
