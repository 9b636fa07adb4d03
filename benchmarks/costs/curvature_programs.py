"""The programs that `curvature` times: a Hessian-vector product in every mode, and a step in every direction."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_igr
from benchmarks.costs.compiling import compiled
from benchmarks.costs.timing import seconds_of

WIDTHS = (784, 128, 128, 10)
BATCH_SIZE = 512
# A cycle of stochastic L-BFGS: pairs and anchors are taken once in so many steps.
CYCLE = 10
CURVATURE_BATCHES = 10

EXACT_MODES = ("forward_over_reverse", "reverse_over_forward", "reverse_over_reverse")
MODES = (*EXACT_MODES, "forward_difference", "backward_difference", "central_difference")
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class TimedProgram(NamedTuple):
    """A compiled program, ready to be timed.

    Attributes:
      run: runs it once, and returns the seconds of a step.
      figures: the numbers that are known of it.
    """

    run: Callable[[], float]
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
        "y": jax.random.randint(keys[-1], (num_examples,), 0, WIDTHS[-1], jnp.int32),
    }
    return params, batch


def products(activation: Callable) -> dict[str, TimedProgram]:
    """Compiles g, and g + Hg in each mode."""
    params, batch = start(BATCH_SIZE)
    value_fn = functools.partial(loss, activation)
    exact = _exact(activation)
    found = {"gradient": _program(lambda p, b: jax.grad(value_fn)(p, b), params, batch)}
    for mode in MODES:
        # The coefficient at which the updates are g + Hg.
        penalty = optax_igr.add_gradient_penalty(0.5, hvp=mode)

        def product(p, b, penalty=penalty):
            g = jax.grad(value_fn)(p, b)
            state = penalty.init(p)
            return penalty.update(g, state, p, grad=g, value_fn=lambda q: value_fn(q, b))[0]

        found[mode] = _program(product, params, batch, error=lambda u: _distance(u, exact))
    return found


def directions() -> dict[str, TimedProgram]:
    """Compiles a step of every technique, on the same gradient."""
    activation = ACTIVATIONS["tanh"]
    params, data = start(CURVATURE_BATCHES * BATCH_SIZE)
    value_fn = functools.partial(loss, activation)

    def extra(batch, data):
        # A quarter of the batch is shared with the last one, as in the comparison of runs.
        size = BATCH_SIZE // 4
        return {
            "value_fn": lambda p: value_fn(p, batch),
            "curvature_value_fn": lambda p: value_fn(p, data),
            "full_value_fn": lambda p: value_fn(p, data),
            "overlap_value_fn": lambda p: value_fn(p, jax.tree.map(lambda x: x[:size], batch)),
        }

    def newton_extra(batch, data):
        del data
        return {
            "value_fn": lambda p: value_fn(p, batch),
            "outputs_fn": lambda p: outputs(activation, p, batch),
            "output_loss_fn": lambda y: output_loss(y, batch),
        }

    def nothing(batch, data):
        del batch, data
        return {}

    # Exactly ten products: no tolerance that would end them earlier.
    newton = {"damping": 1.0, "tolerance": 0.0, "warm_start": False, "max_steps": 10}
    full = CURVATURE_BATCHES / CYCLE
    stochastic = {
        "multibatch_lbfgs": (optax_igr.multibatch_lbfgs(0.01), 1.5),
        "multibatch_lbfgs gram": (optax_igr.multibatch_lbfgs(0.01, form="gram"), 1.5),
        "svrg": (_scaled(optax_igr.svrg(anchor_interval=CYCLE)), 2 + full),
        "sqn": (optax_igr.sqn(0.01), 1 + 2 * full),
        "sqn gram": (optax_igr.sqn(0.01, form="gram"), 1 + 2 * full),
        "slbfgs": (optax_igr.slbfgs(0.01, anchor_interval=CYCLE), 2 + 3 * full),
    }
    peers = {
        "sgd": (optax.sgd(0.01), 1),
        "adam": (optax.adam(1e-3), 1),
        "naive_lbfgs": (_scaled(optax.scale_by_lbfgs()), 1),
    }
    # The gradient, the linearization, ten products, and the loss of the ratio.
    second_order = {
        "newton_cg 10": (optax_igr.newton_cg(1.0, **newton), 2 + 2 * 10 + 1 / 3),
        "gauss_newton_cg 10": (
            optax_igr.newton_cg(1.0, curvature="gauss_newton", **newton),
            2 + 4 / 3 * 10 + 1 / 3,
        ),
    }
    named: dict[str, tuple[Any, ...]] = {
        name: (*made, steps, arguments)
        for group, steps, arguments in (
            (peers, CYCLE, nothing),
            (stochastic, CYCLE, extra),
            (second_order, 1, newton_extra),
        )
        for name, made in group.items()
    }
    found = {}
    batch = jax.tree.map(lambda x: x[:BATCH_SIZE], data)
    for name, (optimizer, gradients, steps, arguments) in named.items():

        def step(p, state, batch, data, optimizer=optimizer, arguments=arguments):
            grads = jax.grad(value_fn)(p, batch)
            updates, state = optimizer.update(grads, state, p, **arguments(batch, data))
            return optax.apply_updates(p, updates), state

        found[name] = _stepping(step, optimizer, params, batch, data, steps, gradients)
    return found


def _program(fn, params, batch, error=None):
    program = compiled(fn, params, batch)

    def run():
        return seconds_of(lambda: program.call(params, batch))

    figures = {"flops": program.flops, "memory": program.memory}
    if error is not None:
        figures["error"] = error(program.call(params, batch))
    return TimedProgram(run, figures)


def _stepping(step, optimizer, params, batch, data, steps, gradients):
    advance = jax.jit(step, donate_argnums=(0, 1))
    # Copied: the state of `optax.scale_by_lbfgs` shares buffers, which cannot be donated twice.
    held = list(jax.tree.map(jnp.copy, (params, optimizer.init(params))))
    # Past the first pairs, so that every step is preconditioned.
    for _ in range(2 * steps):
        held[:] = advance(*held, batch, data)

    def cycle():
        for _ in range(steps):
            held[:] = advance(*held, batch, data)
        return held

    def run():
        return seconds_of(cycle) / steps

    return TimedProgram(run, {"gradients": gradients})


def _scaled(direction):
    return optax.chain(direction, optax.scale_by_learning_rate(0.01))


def _exact(activation):
    """Returns g and Hg in float64."""
    with jax.enable_x64(True):
        params, batch = jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            start(BATCH_SIZE),
        )

        def value_fn(p):
            return loss(activation, p, batch)

        g = jax.grad(value_fn)(params)
        return jax.device_get((g, jax.jvp(jax.grad(value_fn), (params,), (g,))[1]))


def _distance(updates, exact):
    """Returns the relative error of Hg, which stands in the updates g + Hg."""
    leaves = (jax.tree.leaves(tree) for tree in (jax.device_get(updates), *exact))
    triples = list(zip(*leaves, strict=True))
    squares = sum(float(((u - g - hg) ** 2).sum()) for u, g, hg in triples)
    return math.sqrt(squares / sum(float((hg**2).sum()) for *_, hg in triples))
