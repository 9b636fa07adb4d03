"""Past h λ = 1: which flow follows an optimizer at the edge of stability?

Each record is the trajectory of an optimizer or of a flow from one start, on one small network and the full batch.
Distances are from the mean of the iterates, (θ_{t-1} + 2 θ_t + θ_{t+1}) / 4, which is free of the oscillation.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from benchmarks.engine.table import Table, curves, groups
from benchmarks.experiments.experiment import Experiment, Figure, Measurement
from benchmarks.experiments.flow_measurement import flow_measurement
from benchmarks.report.figures import HEIGHT, WIDTH
from benchmarks.report.presentation import value_column
from optax_igr import flows

NUM_IMAGES, WIDTHS = 200, (12, 12)
RATE, NUM_STEPS = 0.22, 300
DIRECTIONS = 2
ADAM: dict[str, Any] = {"learning_rate": 0.01, "b1": 0.9, "b2": 0.95}
WARM_STEPS = 20
RMSPROP: dict[str, Any] = {"learning_rate": 0.002, "decay": 0.95, "initial_scale": 1e-4}
ABOUT = f"tanh MLP 64-{'-'.join(map(str, WIDTHS))}-10, mean squared error, {NUM_IMAGES} digits, full batch, float64"


@functools.cache
def network() -> tuple[Callable[[Any], jax.Array], Any]:
    """Returns the loss on the full batch, and where training starts: below the edge."""
    pixels, targets = load_digits(return_X_y=True)
    pixels = np.asarray(pixels[:NUM_IMAGES], float)
    x = jnp.asarray((pixels - pixels.mean()) / pixels.std())
    y = jax.nn.one_hot(np.asarray(targets[:NUM_IMAGES]), 10, dtype=x.dtype)
    sizes = (64, *WIDTHS, 10)
    keys = jax.random.split(jax.random.key(0), len(sizes) - 1)
    # Half the usual scale: the sharpness rises from there, as in training that is far from done.
    start = [
        {
            "w": 0.5 * jax.random.normal(k, (m, n), x.dtype) / math.sqrt(m),
            "b": jnp.zeros(n, x.dtype),
        }
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]

    def value_fn(params: Any) -> jax.Array:
        hidden = x
        for layer in params[:-1]:
            hidden = jnp.tanh(hidden @ layer["w"] + layer["b"])
        outputs = hidden @ params[-1]["w"] + params[-1]["b"]
        return jnp.mean(jnp.sum((outputs - y) ** 2, axis=1)) / 2

    return value_fn, start


def steps(optimizer: optax.GradientTransformation) -> tuple[Any, jax.Array]:
    """Returns the iterates of an optimizer and their losses, two more than the flows have."""
    value_fn, start = network()

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        value, gradient = jax.value_and_grad(value_fn)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), (params, value)

    run = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=NUM_STEPS + 2)[1])
    return run(start)


def centers(iterates: Any) -> Any:
    """The mean of the iterates at steps 1, 2, ...: a period of two cancels."""
    return jax.tree.map(lambda x: (x[:-2] + 2 * x[1:-1] + x[2:]) / 4, iterates)


def deviations(iterates: Any) -> np.ndarray:
    """The squared distance of each iterate from that mean."""
    means = centers(iterates)
    return np.square(distances(jax.tree.map(lambda x: x[1:-1], iterates), means))


def distances(x: Any, y: Any) -> np.ndarray:
    """Euclidean distances of the trees along the first axis."""
    squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2, axis=tuple(range(1, a.ndim))), x, y)
    return np.sqrt(np.asarray(sum(jax.tree.leaves(squares))))


def _central(**options: Any) -> Any:
    return flows.central_flow(network()[0], RATE, num_directions=DIRECTIONS, **options)


def _stable(correction: bool) -> Any:
    """Gradient flow, or the modified flow of order one: no direction is ever critical."""
    # Gradient flow is approached to second order in the substeps, the modified flow to first: with 4
    # its end is nearer to the iterates than that of the flow itself, by 5 % of the distance.
    return _central(correction=correction, threshold=1e9, substeps=32 if correction else 4)


def _after(flow: Any, count: int) -> Any:
    """The state of Adam's flow with the parameters and moments of Adam after some steps."""
    value_fn, params = network()
    optimizer = optax.adam(**ADAM)
    state: Any = optimizer.init(params)
    update = jax.jit(lambda p, s: optimizer.update(jax.grad(value_fn)(p), s, p))
    for _ in range(count):
        updates, state = update(params, state)
        params = optax.apply_updates(params, updates)
    moments: Any = state[0]
    start = flow.init(params)
    return start._replace(count=moments.count, momentum=moments.mu, second_moment=moments.nu)


def _of_flow(flow: Any, optimizer: optax.GradientTransformation, first: int = 0) -> Any:
    start = _after(flow, first) if first else network()[1]
    _, info, path = flow.trajectory(start, NUM_STEPS - first, observe=lambda p: p)
    iterates, values = steps(optimizer)
    end = jax.tree.map(lambda x: x[1:], path)
    means = jax.tree.map(lambda x: x[first : NUM_STEPS - 1], centers(iterates))
    distance = distances(end, means)
    travelled = distances(means, jax.tree.map(lambda x: x[None], network()[1]))[-1]
    oscillation = np.zeros(NUM_STEPS - first)
    if hasattr(info, "covariance_eigenvalues"):
        oscillation = np.sqrt(np.sum(np.asarray(info.covariance_eigenvalues), axis=1))
    elif hasattr(info, "magnitude"):
        oscillation = np.asarray(info.magnitude)
    late = slice(NUM_STEPS // 2, NUM_STEPS)
    predicted = float(np.mean(np.asarray(info.averaged_loss)[NUM_STEPS // 2 - first :]))
    return _record(
        info.averaged_loss[1:],
        info.sharpness_ratio[1:],
        distance,
        oscillation[1:],
        loss_ratio=predicted / float(np.mean(np.asarray(values)[late])),
        relative=float(distance[-1] / travelled),
    )


def _of_steps(optimizer: optax.GradientTransformation, sharpness: bool) -> Any:
    iterates, values = steps(optimizer)
    means = jax.tree.map(lambda x: x[: NUM_STEPS - 1], centers(iterates))
    ratio = None
    if sharpness:
        # At the mean of the iterates, and followed from one to the next.
        flow = _central()
        start = flow.init(network()[1])

        def measure(state: Any, params: Any) -> Any:
            following, info = flow.step(state._replace(params=params))
            return state._replace(directions=following.directions), info.sharpness_ratio

        ratio = np.asarray(jax.jit(lambda s, m: jax.lax.scan(measure, s, m)[1])(start, means))
    oscillation = np.sqrt(deviations(iterates))[: NUM_STEPS - 1]
    # Not a mean over many past steps: that of a falling loss lags behind what the flows predict.
    losses = centers(values)[: NUM_STEPS - 1]
    return _record(losses, ratio, np.zeros(NUM_STEPS - 1), oscillation)


def _record(losses, ratio, distance, oscillation, **measures):
    # Every third step draws the same lines.
    shown = slice(None, None, 3)
    columns = {
        "step": np.arange(NUM_STEPS - len(losses), NUM_STEPS),
        "loss": losses,
        "distance": distance,
        "oscillation": oscillation,
    }
    if ratio is not None:
        columns["sharpness_ratio"] = ratio
        measures["last_sharpness_ratio"] = float(ratio[-1])
    curve = {name: np.asarray(column, float)[shown].tolist() for name, column in columns.items()}
    final = {"measure": "distance at the end", "value": float(distance[-1]), **measures}
    return curve, final


def measurements() -> list[Measurement]:
    """Lists gradient descent and its flows, then Adam and RMSProp and theirs."""
    descent = optax.sgd(RATE)
    adam, rmsprop = optax.adam(**ADAM), optax.rmsprop(**RMSPROP)
    of_descent = {
        "gradient descent": lambda: _of_steps(descent, sharpness=True),
        "gradient flow": lambda: _of_flow(_stable(False), descent),
        "modified flow, order 1": lambda: _of_flow(_stable(True), descent),
        "central flow": lambda: _of_flow(_central(correction=False, substeps=2), descent),
        "central flow, corrected": lambda: _of_flow(_central(), descent),
        "edge flow": lambda: _of_flow(flows.edge_flow(network()[0], RATE), descent),
    }
    of_adam = {
        "Adam": lambda: _of_steps(adam, sharpness=False),
        "central flow, corrected": lambda: _of_flow(
            flows.adam_central_flow(network()[0], **ADAM, num_directions=DIRECTIONS), adam
        ),
        # At the first step the second moment of a parameter may be near zero, which is no edge.
        f"central flow, from step {WARM_STEPS}": lambda: _of_flow(
            flows.adam_central_flow(network()[0], **ADAM, num_directions=DIRECTIONS),
            adam,
            first=WARM_STEPS,
        ),
    }
    of_rmsprop = {
        "RMSProp": lambda: _of_steps(rmsprop, sharpness=False),
        "central flow, corrected": lambda: _of_flow(
            flows.rmsprop_central_flow(network()[0], **RMSPROP, num_directions=DIRECTIONS), rmsprop
        ),
    }
    return [
        flow_measurement(problem, ABOUT, technique, rate, NUM_STEPS, measure)
        for problem, rate, measured in (
            ("edge, gradient descent", RATE, of_descent),
            ("edge, Adam", ADAM["learning_rate"], of_adam),
            ("edge, RMSProp", RMSPROP["learning_rate"], of_rmsprop),
        )
        for technique, measure in measured.items()
    ]


def headline(runs: Table) -> str:
    """Says how near each flow ends to the mean of the iterates."""
    by_problem = {problem: own for (problem,), own in groups(runs, ["problem"]).items()}
    ends = by_problem["edge, gradient descent"].set_index("technique")["value"]
    ratios = {
        problem: own.set_index("technique")["loss_ratio"]["central flow, corrected"]
        for problem, own in by_problem.items()
    }
    off = {problem: 100 * abs(ratio - 1) for problem, ratio in ratios.items()}
    published, corrected = ends["central flow"], ends["central flow, corrected"]
    return (
        f"After {NUM_STEPS} steps of gradient descent at the edge of stability the central flow ends "
        f"{ends['gradient flow'] / published:.1f} times nearer to the mean of the iterates than gradient flow, and "
        f"with the discretization kept outside the critical directions {ends['gradient flow'] / corrected:.0f} times. "
        f"Over the second half it predicts the mean loss to {off['edge, gradient descent']:.1f} %; the flows of Adam "
        f"and RMSProp to {off['edge, Adam']:.0f} % and {off['edge, RMSProp']:.0f} %."
    )


def draw(runs: Table) -> list[Figure]:
    """Draws loss, sharpness, distance and oscillation of gradient descent, then loss and sharpness of the others."""
    of = {problem: own for (problem,), own in groups(runs, ["problem"]).items()}
    about = (
        "Loss of the optimizer: mean over two steps; of the flows: predicted mean. Sharpness in units of the largest "
        "stable one. Distance: from the mean of the iterates. Oscillation: measured at each step; predicted by edge "
        "flow at each step, and by the central flow as the root of the mean square."
    )
    figures = []
    for problem, measures in (
        ("edge, gradient descent", ("loss", "sharpness_ratio", "distance", "oscillation")),
        ("edge, Adam", ("loss", "sharpness_ratio")),
        ("edge, RMSProp", ("loss", "sharpness_ratio")),
    ):
        name = problem.removeprefix("edge, ")
        chart = _charts(of[problem], measures)
        figures.append(
            Figure(name.lower().replace(" ", "_"), f"{name} and its flows", about, chart)
        )
    return figures


def _charts(runs: Table, measures: Sequence[str]) -> Any:
    charts = []
    for measure in measures:
        measured = runs[[measure in curve for curve in runs["curve"]]]
        # A loss falls by powers of ten: on a linear axis its end is a line at zero.
        scale = alt.Scale(type="log" if measure == "loss" else "linear")
        charts.append(
            alt.Chart(curves(measured, ["step", measure]))
            .mark_line()
            .encode(
                x=alt.X("step:Q"),
                y=alt.Y(f"{measure}:Q", title=measure.replace("_", " "), scale=scale),
                color=alt.Color("technique:N", title=None),
            )
            .properties(width=WIDTH, height=HEIGHT)
        )
    return alt.vconcat(*(alt.hconcat(*charts[i : i + 2]) for i in range(0, len(charts), 2)))


EXPERIMENT = Experiment(
    name="edge",
    question="Which flow follows an optimizer at the edge of stability?",
    about="Where the largest curvature reaches 2/h, the series of the modified flows has ended, and the steps "
    "oscillate. The central flow follows their average; the published one takes gradient flow outside the critical "
    "directions, the corrected one the optimizer's own step. Edge flow follows one direction and its oscillation. "
    "Everything is computed in float64.",
    measurements=measurements(),
    columns=[
        value_column("measure", "what the value is", "measure", "s"),
        value_column("value", "from the mean of the iterates", "value", ".4g"),
        value_column("relative", "over how far training went", "relative", ".4f"),
        value_column("loss", "predicted mean loss over measured, second half", "loss_ratio", ".4f"),
        value_column(
            "sharpness", "over the largest stable one, at the end", "last_sharpness_ratio", ".3f"
        ),
    ],
    headline=headline,
    figures=draw,
    needs=("measure", "value"),
)
