"""What the learning-rate experiment counts, and how it shifts a distribution."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.engine.table import table
from benchmarks.experiments import learning_rate, learning_rate_entries, sweep
from benchmarks.experiments.experiment import Entry
from benchmarks.problems import Problem
from benchmarks.report import tables
from benchmarks.techniques import Technique
from tests.benchmarks import helpers


def record(technique, rate, loss, accuracy=0.9, problem="digits", curve=None):
    return helpers.record(
        technique,
        rate,
        loss=loss,
        measures={"test_accuracy": accuracy},
        problem=problem,
        num_steps=4,
        curve=curve or {"step": [0, 4], "train_loss": [1.0, loss]},
    )


RUNS = [
    record("adam_decayed", 0.1, 0.5, 0.95),
    record("adam_decayed", 0.2, 0.2, 0.9),
    record("mine", 0.1, 0.219, 0.889),
    record("mine", 0.2, 0.221, 0.891),
    record("mine", 0.3, float("nan"), 0.1),
]


def test_counts_the_rates_within_a_tenth_of_the_loss_and_a_point_of_the_accuracy():
    # Of the reference at the rate of its lowest loss, not of its highest accuracy.
    reached = learning_rate.rates_reached(table(RUNS)).loc[("digits", "mine")]
    assert (reached["total"], reached["loss"], reached["accuracy"]) == (3, 1, 1)
    assert "On digits (searched: 0.2): mine 1/1." in learning_rate.headline(table(RUNS))


def test_without_the_reference_nothing_is_compared_with_it():
    assert learning_rate.headline(table(RUNS[2:])) == ""
    (row,) = tables.cells(learning_rate.EXPERIMENT, table(RUNS[2:]))[1]
    assert "0 of 3" in row


def test_heavy_ball_is_compared_with_its_own_search():
    searched = [record("heavy_ball_decayed", rate, loss) for rate, loss in ((0.1, 0.4), (0.3, 0.3))]
    adapted = [record("heavy_ball_adapted", rate, loss) for rate, loss in ((0.1, 0.2), (1.0, 0.25))]
    assert "brackets searched: digits 0.25 (0.3)." in learning_rate.headline(
        table(searched + adapted)
    )


def test_the_shift_is_judged_by_the_curve_after_it():
    def shifted(technique, losses):
        curve = {"step": [0, 1, 2, 3, 4], "train_loss": losses}
        return record(technique, 0.1, losses[-1], problem=learning_rate.SHIFTED, curve=curve)

    late = [shifted("mine", [9, 9, 9, 2, 1]), shifted("other", [0, 0, 0, 4, 0])]
    runs = table([*RUNS, *late])
    assert "mine 1.5, other 2." in learning_rate.headline(runs)
    assert [f.name for f in learning_rate.EXPERIMENT.figures(runs)] == ["rates", "shift"]


@pytest.mark.parametrize(("step", "label"), [(3, [0, 9]), (4, [1, 0])])
def test_all_labels_change_in_the_middle(step, label):
    problem = Problem(
        name="",
        init=lambda key: jnp.zeros([]),
        loss=lambda params, batch: jnp.mean(batch["label"] + 0.0),
        train=None,
        test=None,
        batch_size=None,
        num_steps=1,
        measures={},
    )
    shifted = learning_rate_entries.shifted(problem, 8)
    data = {"label": jnp.array([0, 9]), "image": jnp.zeros(2)}
    np.testing.assert_array_equal(shifted.shift(data, step)["label"], label)
    np.testing.assert_allclose(shifted.measures["train_loss"](None, data, None), 0.5)


def test_a_run_sees_the_shift_at_its_step(tmp_path):
    # Gradients of ±1: the run goes two steps down and then two up.
    problem = Problem(
        name="line",
        init=lambda key: jnp.zeros([]),
        loss=lambda p, batch: p * jnp.mean(batch["sign"]),
        train={"sign": jnp.ones(4)},
        test=None,
        batch_size=2,
        num_steps=4,
        measures={"at": lambda p, train, test: p},
        final_measures={"at": lambda p, train, test: p},
        shift=lambda batch, step: {"sign": jnp.where(step < 2, 1, -1) * batch["sign"]},
    )
    sgd = Technique("sgd", lambda h, plan: optax.sgd(h), (1.0,), "")
    one = dataclasses.replace(
        learning_rate.EXPERIMENT,
        problems=lambda data_dir: [problem],
        curve_measures=None,
        needs=(),
        entries=[Entry(sgd)],
    )
    runs = sweep.run(one, tmp_path / "records.jsonl", seeds=1)
    assert runs["curve"][0]["at"] == [0, -1, -2, -1, 0]
