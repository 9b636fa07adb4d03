"""The edge of stability: measured distances and oscillations, the records, and what is said of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.engine import gradient_counts, records
from benchmarks.engine.table import table
from benchmarks.experiments import edge, sweep
from benchmarks.experiments.flow_measurement import flow_measurement
from benchmarks.report import figures
from optax_igr import flows
from tests.benchmarks.helpers import invoke, record

DESCENT = "edge, gradient descent"


@pytest.fixture
def measured_on(monkeypatch):
    """Puts another problem in the place of the digits."""

    def replace(value_fn, start, rate, num_steps):
        monkeypatch.setattr(edge, "network", lambda: (value_fn, start))
        monkeypatch.setattr(edge, "RATE", rate)
        monkeypatch.setattr(edge, "NUM_STEPS", num_steps)

    with jax.enable_x64(True):
        yield replace


def tiny_network():
    x = jax.random.normal(jax.random.key(0), (8, 3))
    y = jnp.sin(x[:, 0])

    def value_fn(params):
        return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2) / 2

    return value_fn, {
        "w": jax.random.normal(jax.random.key(1), (3, 2)),
        "v": jnp.array([1.0, -0.7]),
    }


@pytest.mark.parametrize(("order", "tolerance"), [(0, 0.03), (1, 0.08)])
def test_distance_below_the_edge_is_that_of_an_integrated_flow(measured_on, order, tolerance):
    value_fn, start = tiny_network()
    h, num_steps = 0.3, 24
    measured_on(value_fn, start, h, num_steps)
    curve, final = edge._of_flow(edge._stable(bool(order)), optax.sgd(h))

    iterates = [start]
    gradient_fn = jax.jit(jax.grad(value_fn))
    for _ in range(num_steps):
        gradient = gradient_fn(iterates[-1])
        iterates.append(jax.tree.map(lambda p, g: p - h * g, iterates[-1], gradient))
    times = jnp.arange(1, num_steps)
    field = flows.gradient_flow(value_fn)
    if order:
        field = flows.modified_flow(field, h, order=order)
    path = flows.integrate(field, start, h * (num_steps - 1), save_at=h * times, rtol=1e-10)
    wanted = []
    for i, t in enumerate(times):
        squares = 0.0
        for name in start:
            before, here, after = (iterates[t + j][name] for j in (-1, 0, 1))
            squares += np.sum(np.square(path[name][i] - (before + 2 * here + after) / 4))
        wanted.append(np.sqrt(squares))
    assert curve["step"] == list(range(1, num_steps, 3))
    # The substeps leave an error of their own, which is small beside the distance.
    np.testing.assert_allclose(curve["distance"], wanted[::3], rtol=tolerance)
    np.testing.assert_allclose(final["value"], wanted[-1], rtol=tolerance)
    assert not np.any(curve["oscillation"])
    last = jax.tree.map(lambda a, b, c: (a + 2 * b + c) / 4, *iterates[-3:])
    travelled = np.sqrt(sum(np.sum(np.square(last[name] - start[name])) for name in start))
    np.testing.assert_allclose(final["relative"], final["value"] / travelled, rtol=1e-9)


def at_the_edge(p):
    """At h = 1 the first coordinate alternates between its start and the opposite."""
    return p[0] ** 2 + 0.1 * p[1] ** 2


def test_oscillation_of_descent_at_the_edge_has_a_closed_form(measured_on):
    measured_on(at_the_edge, jnp.array([0.3, 0.0]), 1.0, 30)
    curve, final = edge._of_steps(optax.sgd(1.0), sharpness=True)
    np.testing.assert_allclose(curve["oscillation"], 0.3, rtol=1e-12)
    np.testing.assert_allclose(curve["loss"], 0.09, rtol=1e-12)
    np.testing.assert_allclose(curve["sharpness_ratio"], 1.0, rtol=1e-6)
    assert final["value"] == 0.0


def test_edge_flow_on_the_same_problem_has_the_oscillation_and_a_center_that_relaxes(measured_on):
    measured_on(at_the_edge, jnp.array([0.3, 0.0]), 1.0, 30)
    curve, final = edge._of_flow(flows.edge_flow(at_the_edge, 1.0), optax.sgd(1.0))
    center = 0.3 * np.exp(-2.0 * np.array(curve["step"]))
    np.testing.assert_allclose(curve["distance"], center, atol=1e-7)
    np.testing.assert_allclose(curve["oscillation"], 0.3, rtol=1e-6)
    np.testing.assert_allclose(curve["loss"], center**2 + 0.09, rtol=1e-6)
    np.testing.assert_allclose(curve["sharpness_ratio"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(final["loss_ratio"], 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "products"), [({}, 1), ({"correction": False, "substeps": 1}, 2)]
)
def test_a_step_of_edge_flow_costs_two_gradients_and_the_products_it_says(options, products):
    # Made without the probe: the first direction takes products of its own.
    state = flows.edge_flow(at_the_edge, 0.3).init(jnp.array([0.3, 0.2]))
    ledger = gradient_counts._Ledger(None)
    watched = ledger.watch(lambda params, batch: at_the_edge(params))
    flow = flows.edge_flow(lambda params: watched(params, None), 0.3, **options)
    # Operation by operation: compiled, the probe may be called for what is only traced.
    with jax.disable_jit():
        flow.step(state)
        jax.effects_barrier()
    # At the two ends, and at the center, whose gradient a product takes with it.
    assert (ledger.gradients, ledger.products) == (3, products)


def test_the_headline_compares_with_gradient_flow_and_names_each_optimizer():
    found = [
        record(
            technique,
            problem=problem,
            measures={"measure": "distance at the end", "value": end, "loss_ratio": ratio},
        )
        for problem, technique, end, ratio in (
            (DESCENT, "gradient flow", 0.2, 0.9),
            (DESCENT, "central flow", 0.08, 0.95),
            (DESCENT, "central flow, corrected", 0.02, 0.997),
            ("edge, Adam", "central flow, corrected", 3.0, 1.07),
            ("edge, RMSProp", "central flow, corrected", 2.0, 0.96),
        )
    ]
    said = edge.headline(table(found))
    assert "2.5 times nearer" in said
    assert "critical directions 10 times" in said
    assert "to 0.3 %" in said
    assert "to 7 % and 4 %" in said


def test_a_second_run_measures_only_what_is_missing_and_every_figure_is_drawn(tmp_path):
    calls = []

    def replaced(measurement):
        ((problem, about, num_steps, technique, (rate,), _),) = measurement.keys

        def measure():
            calls.append((problem, technique))
            curve = {"step": [1.0, 4.0], "loss": [2.0, 1.0], "distance": [0.0, 0.1]}
            curve |= {"sharpness_ratio": [0.9, 1.0], "oscillation": [0.0, 0.2]}
            final = {"measure": "distance at the end", "value": 0.1, "loss_ratio": 1.0}
            return curve, final

        return flow_measurement(problem, about, technique, rate, num_steps, measure)

    measurements = [replaced(m) for m in edge.EXPERIMENT.measurements]
    faked = dataclasses.replace(edge.EXPERIMENT, measurements=measurements)
    path = tmp_path / "records.jsonl"
    # As after an interruption: two are on record.
    sweep.run(dataclasses.replace(faked, measurements=measurements[:2]), path)
    runs = sweep.run(faked, path)
    again = sweep.run(faked, path)
    assert len(calls) == len(set(calls)) == len(measurements) == len(records.read(path))
    assert again["technique"].equals(runs["technique"])
    drawn = edge.draw(runs)
    assert [figure.name for figure in drawn] == ["gradient_descent", "adam", "rmsprop"]
    for figure in drawn:
        assert figures.specification(figure.chart)["$schema"]


@pytest.mark.parametrize("option", ["--techniques", "--problems", "--seeds"])
def test_the_command_has_nothing_to_choose(option, tmp_path):
    result = invoke("edge", option, "1", "--out", tmp_path)
    assert result.exit_code == 2
    assert f"No such option: {option}" in result.words
    assert not list(tmp_path.iterdir())


def test_records_of_something_else_are_not_packed(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append(path, [record("sgd")])
    result = invoke("pack", "edge", path, "--folder", tmp_path)
    assert result.exit_code != 0
    assert "holds no records of edge" in result.words
