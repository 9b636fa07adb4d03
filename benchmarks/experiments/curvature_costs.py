"""What curvature costs beside a gradient: every mode of a Hessian-vector product, and every direction.

Times are medians over rounds in which all programs take turns, each as a ratio to the gradient of its own round. FLOPs
and memory are the compiler's own figures; a direction contains loops, whose bodies those count once, so it has none.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import altair as alt
import jax
import jax.numpy as jnp
import optax

import optax_igr
from benchmarks import records
from benchmarks.experiment import Figure, Measurement
from benchmarks.records import Record
from optax_igr._core import derivatives

WIDTHS = (784, 128, 128, 10)
BATCH_SIZE = 512
ROUNDS = 9
# A cycle of stochastic L-BFGS: pairs and anchors are taken once in so many steps.
CYCLE = 10
CURVATURE_BATCHES = 10

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}
PRODUCTS = {name: f"Hessian-vector product, {name}" for name in ACTIVATIONS}
DIRECTIONS = "direction, tanh"
PROBLEMS = (*PRODUCTS.values(), DIRECTIONS)
SETTINGS = f"MLP {'-'.join(map(str, WIDTHS))}, batch {BATCH_SIZE}, float32"


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      run: runs it once, and returns its seconds.
      steps: how many steps that is.
      figures: the numbers that are known of it.
    """

    run: Callable[[], float]
    steps: int
    figures: dict[str, float]


def loss(activation: Callable, params: Any, batch: Any) -> jax.Array:
    """Returns the mean cross entropy of a fully connected classifier."""
    return output_loss(outputs(activation, params, batch), batch)


def outputs(activation: Callable, params: Any, batch: Any) -> jax.Array:
    """Returns its logits."""
    x = batch["x"]
    for layer in params[:-1]:
        x = activation(x @ layer["w"] + layer["b"][None])
    return x @ params[-1]["w"] + params[-1]["b"][None]


def output_loss(logits: jax.Array, batch: Any) -> jax.Array:
    """Returns the mean cross entropy of logits."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def start(num_examples: int) -> tuple[Any, Any]:
    """Returns parameters and a batch."""
    keys = jax.random.split(jax.random.key(0), len(WIDTHS) + 1)
    params = [
        {
            "w": jax.random.normal(k, (m, n), jnp.float32) / m**0.5,
            "b": jnp.zeros(n, jnp.float32),
        }
        for k, m, n in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=False)
    ]
    batch = {
        "x": jax.random.normal(keys[-2], (num_examples, WIDTHS[0]), jnp.float32),
        "y": jax.random.randint(keys[-1], (num_examples,), 0, WIDTHS[-1]),
    }
    return params, batch


def products(activation: Callable) -> dict[str, Program]:
    """Compiles the gradient and a product with it in each mode, as a penalty takes it."""
    params, batch = start(BATCH_SIZE)
    value_fn = functools.partial(loss, activation)
    exact = _exact(activation)
    found = {"gradient": _program(lambda p, b: jax.grad(value_fn)(p, b), params, batch)}
    for mode in derivatives.MODES:

        def product(p, b, mode=mode):
            g = jax.grad(value_fn)(p, b)
            arguments = {} if mode in derivatives.EXACT_MODES else {"gradient_at_params": g}
            return derivatives.hessian_vector_product(
                lambda q: value_fn(q, b), p, g, mode=mode, **arguments
            )

        found[mode] = _program(product, params, batch, error=lambda hv: _distance(hv, exact))
    return found


def directions() -> dict[str, Program]:
    """Compiles a step of every technique, on the same gradient."""
    activation = ACTIVATIONS["tanh"]
    params, data = start(CURVATURE_BATCHES * BATCH_SIZE)
    value_fn = functools.partial(loss, activation)

    def extra(batch, data):
        size = BATCH_SIZE // 4
        return {
            "value_fn": lambda p: value_fn(p, batch),
            "curvature_value_fn": lambda p: value_fn(p, data),
            "full_value_fn": lambda p: value_fn(p, data),
            "overlap_value_fn": lambda p: value_fn(p, jax.tree.map(lambda x: x[:size], batch)),
        }

    def outputs_of(batch):
        return {
            "outputs_fn": lambda p: outputs(activation, p, batch),
            "output_loss_fn": lambda y: output_loss(y, batch),
        }

    once = 1 / CYCLE
    newton = {"damping": 1.0, "tolerance": 0.0, "warm_start": False}
    full = CURVATURE_BATCHES * once
    named: dict[str, tuple[Any, float, int, tuple[str, ...] | None]] = {
        "sgd": (optax.sgd(0.01), 1, CYCLE, ()),
        "adam": (optax.adam(1e-3), 1, CYCLE, ()),
        "naive_lbfgs": (_scaled(optax.scale_by_lbfgs()), 1, CYCLE, ()),
        "multibatch_lbfgs": (optax_igr.multibatch_lbfgs(0.01), 1.5, CYCLE, None),
        "multibatch_lbfgs gram": (
            optax_igr.multibatch_lbfgs(0.01, form="gram"),
            1.5,
            CYCLE,
            None,
        ),
        "svrg": (_scaled(optax_igr.svrg(anchor_interval=CYCLE)), 2 + full, CYCLE, None),
        "sqn": (optax_igr.sqn(0.01), 1 + 2 * full, CYCLE, None),
        "sqn gram": (optax_igr.sqn(0.01, form="gram"), 1 + 2 * full, CYCLE, None),
        "slbfgs": (optax_igr.slbfgs(0.01, anchor_interval=CYCLE), 2 + 3 * full, CYCLE, None),
        "newton_cg 10": (
            optax_igr.newton_cg(1.0, max_steps=10, **newton),
            1 + 1 + 2 * 10 + 1 / 3,
            1,
            None,
        ),
        "gauss_newton_cg 10": (
            optax_igr.newton_cg(1.0, max_steps=10, curvature="gauss_newton", **newton),
            1 + 1 + 4 / 3 * 10 + 1 / 3,
            1,
            None,
        ),
    }
    found = {}
    batch = jax.tree.map(lambda x: x[:BATCH_SIZE], data)
    for name, (optimizer, gradients, steps, accepted) in named.items():

        def step(p, state, batch, data, optimizer=optimizer, accepted=accepted):
            arguments = {} if accepted == () else extra(batch, data) | outputs_of(batch)
            updates, state = optimizer.update(jax.grad(value_fn)(p, batch), state, p, **arguments)
            return optax.apply_updates(p, updates), state

        found[name] = _stepping(step, optimizer, params, batch, data, steps, gradients)
    return found


def measure(rounds: int = ROUNDS) -> list[Record]:
    """Compiles and times everything."""
    programs = {
        (problem, technique): program
        for problem, found in [
            *((PRODUCTS[name], products(fn)) for name, fn in ACTIVATIONS.items()),
            (DIRECTIONS, directions()),
        ]
        for technique, program in found.items()
    }
    for program in programs.values():
        program.run()
    seconds: dict[Any, list[float]] = {key: [] for key in programs}
    for _ in range(rounds):
        for key, program in programs.items():
            seconds[key].append(program.run() / program.steps)
    return [_record(key, programs, seconds) for key in programs]


def _record(key, programs, seconds):
    problem, technique = key
    base = problem if problem in PRODUCTS.values() else PRODUCTS["tanh"]
    ratios = [a / b for a, b in zip(seconds[key], seconds[base, "gradient"], strict=True)]
    figures = dict(programs[key].figures)
    for name in ("flops", "memory"):
        if name in figures:
            figures[name] = figures[name] / programs[base, "gradient"].figures[name]
    figures["time"] = statistics.median(ratios)
    figures["milliseconds"] = 1e3 * statistics.median(seconds[key])
    return Record(
        problem=problem,
        settings=SETTINGS,
        technique=technique,
        learning_rate=0.0,
        seed=0,
        num_steps=ROUNDS,
        curve={},
        final={"train_loss": math.nan, **figures},
        gradients_per_step=figures.get("gradients", math.nan),
        products_per_step=math.nan,
        seconds_per_step=statistics.median(seconds[key]),
        compile_seconds=math.nan,
        runs_in_program=1,
        environment=records.environment(),
    )


DIRECTION_NAMES = (
    *("sgd", "adam", "naive_lbfgs", "multibatch_lbfgs", "multibatch_lbfgs gram", "svrg", "sqn"),
    *("sqn gram", "slbfgs", "newton_cg 10", "gauss_newton_cg 10"),
)
MEASUREMENT = Measurement(
    keys=[
        (problem, SETTINGS, ROUNDS, technique, 0.0, 0)
        for problem, techniques in [
            *((problem, ("gradient", *derivatives.MODES)) for problem in PRODUCTS.values()),
            (DIRECTIONS, DIRECTION_NAMES),
        ]
        for technique in techniques
    ],
    measure=measure,
)


def headline(runs: Sequence[Record]) -> list[str]:
    """Says what a product costs in each exact mode."""
    sentences = []
    for problem in PRODUCTS.values():
        modes = [r for r in runs if r.problem == problem and r.technique in derivatives.EXACT_MODES]
        if modes:
            times = ", ".join(f"{r.technique} {r.final['time']:.2f}" for r in modes)
            sentences.append(f"Gradient and {problem}, in the time of a gradient: {times}.")
    return sentences


def figures_of(runs: Sequence[Record]) -> list[Figure]:
    """Draws the costs as dots beside a gradient."""
    found = []
    panels = {
        "products": (
            list(PRODUCTS.values()),
            [("time", "time"), ("flops", "FLOPs"), ("memory", "memory")],
            "A gradient and a product with it, in gradients",
            "By the mode of `hvp`. FLOPs and memory are the compiler's own figures.",
        ),
        "directions": (
            [DIRECTIONS],
            [("gradients", "gradients, counted by hand"), ("time", "time")],
            "A step of each technique, in gradients of its batch",
            f"Ten batches make the curvature batch and the whole data set, each used once in {CYCLE} steps.",
        ),
    }
    for name, (problems, measures, title, caption) in panels.items():
        own = [r for r in runs if r.problem in problems and r.technique != "gradient"]
        if own:
            found.append(Figure(f"cost_of_{name}", title, caption, _dots(own, measures)))
    return found


def _dots(runs, measures):
    order = list(dict.fromkeys(r.technique for r in runs))
    rows = [
        {"problem": r.problem.split(", ")[-1], "technique": r.technique, **_finite(r.final)}
        for r in runs
    ]
    charts = []
    for index, (name, title) in enumerate(measures):
        y = alt.Y(
            "technique:N", sort=order, title=None, axis=alt.Axis(labels=index == 0, ticks=False)
        )
        x = alt.X(f"{name}:Q", title=f"{title} × a gradient", scale=alt.Scale(domainMin=0))
        tips = [
            alt.Tooltip("technique:N"),
            alt.Tooltip("problem:N"),
            alt.Tooltip(f"{name}:Q", format=".3~g"),
        ]
        charts.append(
            alt.Chart(alt.Data(values=rows))
            .mark_point(filled=True, size=110, opacity=0.9)
            .encode(x=x, y=y, color="problem:N", shape="problem:N", tooltip=tips)
            .properties(width=300 if len(measures) > 2 else 400, height=28 * len(order))
        )
    return alt.hconcat(*charts)


def _finite(numbers):
    return {k: x for k, x in numbers.items() if isinstance(x, float | int) and math.isfinite(x)}


def _program(fn, params, batch, error=None):
    compiled = jax.jit(fn).lower(params, batch).compile()
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()

    def run():
        began = time.perf_counter()
        jax.block_until_ready(compiled(params, batch))
        return time.perf_counter() - began

    figures = {
        "flops": analysis["flops"],
        "memory": float(memory.temp_size_in_bytes + memory.output_size_in_bytes),
    }
    if error is not None:
        figures["error"] = error(compiled(params, batch))
    return Program(run, 1, figures)


def _stepping(step, optimizer, params, batch, data, steps, gradients):
    compiled = jax.jit(step, donate_argnums=(0, 1))
    # Copied: the state of `optax.scale_by_lbfgs` shares buffers, which cannot be donated twice.
    held = list(jax.tree.map(jnp.copy, (params, optimizer.init(params))))
    # Past the first pairs, so that every step is preconditioned.
    for _ in range(2 * steps):
        held[:] = compiled(*held, batch, data)

    def run():
        began = time.perf_counter()
        for _ in range(steps):
            held[:] = compiled(*held, batch, data)
        jax.block_until_ready(held)
        return time.perf_counter() - began

    return Program(run, steps, {"gradients": gradients})


def _scaled(direction):
    return optax.chain(direction, optax.scale_by_learning_rate(0.01))


def _exact(activation):
    """Returns Hg in float64."""
    with jax.enable_x64(True):
        params, batch = jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            start(BATCH_SIZE),
        )

        def value_fn(p):
            return loss(activation, p, batch)

        g = jax.grad(value_fn)(params)
        return jax.device_get(jax.jvp(jax.grad(value_fn), (params,), (g,))[1])


def _distance(found, exact):
    found = jax.device_get(found)
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True))
    squares = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return math.sqrt(squares / sum(float((b**2).sum()) for _, b in pairs))
