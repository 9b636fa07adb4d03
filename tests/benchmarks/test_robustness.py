"""The robustness experiment: its choice of strengths, its table and its figures, on records and on a tiny run."""

import dataclasses
import itertools

import pytest

from benchmarks.engine.table import table
from benchmarks.experiments import robustness, sweep
from benchmarks.experiments.robustness_choice import RADII, chosen
from benchmarks.problems.classification import NOISE_SCALES
from benchmarks.report import figures, tables
from tests.benchmarks import helpers

STRENGTHS = robustness.GRIDS


def record(technique, strength, seed, *, validation, inputs=0.5, parameters=0.9, loss=0.1):
    measures = {
        "test_accuracy": 0.95,
        "validation_accuracy": validation,
        "product_bound": 9.0,
        "largest_jacobian": 7.0,
        "pgd_accuracy": [inputs + 0.01 * seed] * len(RADII),
        "noise_accuracy": [parameters + 0.01 * seed] * len(NOISE_SCALES),
    }
    return helpers.record(technique, strength, seed, loss=loss, measures=measures, problem="digits")


def runs_of(technique, validations, **measures):
    return [
        record(technique, strength, seed, validation=validation, **measures)
        for (strength, validation), seed in itertools.product(
            zip(STRENGTHS[technique], validations, strict=False), range(3)
        )
    ]


NONE = runs_of("none", [0.95])


def shown(runs):
    head, rows = tables.cells(robustness.EXPERIMENT, table(runs))
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("technique", "validations", "place", "mark"),
    [
        ("l2", [0.95, 0.96, 0.956, 0.9549, 0.90], 2, ""),
        ("l2", [0.95, 0.95, 0.95, 0.95, 0.95], 4, robustness.END),
        ("l2", [0.96, 0.95, 0.95, 0.95, 0.95], 0, robustness.END),
        ("spectral_ball", [0.95, 0.95, 0.95, 0.90, 0.90], 2, ""),
    ],
)
def test_the_strongest_strength_within_half_a_point_is_chosen(technique, validations, place, mark):
    """The radius of a ball is stronger where it is smaller."""
    runs = NONE + runs_of(technique, validations)
    expected = STRENGTHS[technique][place]
    assert set(chosen(table(runs), STRENGTHS)["digits", technique]["setting"]) == {expected}
    rows = {row["technique"]: row for row in shown(runs)}
    assert rows[technique]["strength"] == f"{expected:.3g}{mark}"
    assert rows["none"]["strength"] == "0.1"


def test_a_diverged_strength_is_not_chosen():
    runs = NONE + runs_of("large_rate", [0.95, 0.95])
    broken = dataclasses.replace(
        runs[-1],
        measures={**runs[-1].measures, "train_loss": float("nan"), "validation_accuracy": 0.99},
    )
    found = chosen(table([*runs[:-1], broken]), STRENGTHS)["digits", "large_rate"]
    assert set(found["setting"]) == {STRENGTHS["large_rate"][0]}


def test_the_verdict_is_paired_with_no_regularisation_by_seed():
    runs = [
        *NONE,
        *runs_of("l2", [0.95], inputs=0.6, parameters=0.95),
        *runs_of("spectral", [0.95], inputs=0.6, parameters=0.85),
        *runs_of("large_rate", [0.95], inputs=0.5, parameters=0.9),
    ]
    told = robustness.headline(table(runs))
    assert "inputs up, parameters up: l2" in told
    assert "inputs up, parameters down: spectral" in told
    assert "inputs unchanged, parameters unchanged: large_rate" in told


def test_figures_hold_the_means_and_leave_out_what_costs_accuracy():
    runs = NONE + runs_of("l2", [0.95, 0.95, 0.94, 0.5], inputs=0.6)
    agreement, curves = robustness.EXPERIMENT.figures(table(runs))
    layers = figures.specification(agreement.chart)["hconcat"][0]["layer"]
    path, marks = layers[2]["data"]["values"], layers[-1]["data"]["values"]
    assert [(p["label"], p["strength"]) for p in path] == [
        ("none", 0.1),
        *(("l2", s) for s in STRENGTHS["l2"][:3]),
    ]
    # Seeds 0, 1 and 2 are .01 apart, so their mean is .01 above the first.
    assert [m["inputs"] for m in marks] == pytest.approx([51, 61])
    assert (marks[1]["inputs_low"], marks[1]["inputs_high"]) == pytest.approx((60, 62))
    assert figures.specification(curves.chart)["vconcat"]


def test_a_tiny_run_measures_everything(tmp_path, monkeypatch):
    """Two techniques for two steps; the bounds of the Lipschitz constant enclose one another."""
    monkeypatch.setattr(robustness, "NUM_SEARCHED", 4)
    monkeypatch.setattr(robustness, "NUM_ATTACKED", 8)
    monkeypatch.setattr(robustness, "NUM_NOISY", 32)
    techniques = sweep.find_techniques(robustness.EXPERIMENT, ["schatten_1", "spectral_ball"])
    runs = sweep.run(
        robustness.EXPERIMENT,
        tmp_path / "records.jsonl",
        seeds=1,
        techniques=techniques,
        learning_rates=[1.0],
        num_steps=2,
    )
    assert list(runs["technique"]) == ["schatten_1", "spectral_ball"]
    assert (runs["largest_jacobian"] <= runs["product_bound"] * 1.001).all()
    for accuracies in runs["pgd_accuracy"]:
        assert len(accuracies) == len(RADII)
        assert accuracies == sorted(accuracies, reverse=True)
    assert runs["product_bound"][1] <= 1.001
    head, rows = tables.cells(robustness.EXPERIMENT, runs)
    assert [row[head.index("technique")] for row in rows] == ["schatten_1", "spectral_ball"]
