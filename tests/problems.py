"""The shared test problems: small, nonlinear, with a known minimiser, in every domain of parameters.

Each is a sum of squares of its outputs, so that every extra argument of `update` exists for each of
them: the loss, its micro-batches, and the two halves that a Gauss-Newton product needs.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NUM_MICROBATCHES = 2
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss, where to start on it, and where it ends.

    Attributes:
      params: the initial parameters.
      outputs_fn: `params -> outputs`.
      minimiser: the parameters at which the outputs vanish, where they are unique.
      output_loss_fn: `outputs -> scalar`, the sum of their squared moduli by default.
    """

    params: Any
    outputs_fn: Callable[[Any], Any]
    minimiser: Any = None
    output_loss_fn: Callable[[Any], jax.Array] = lambda outputs: sum_of_squares(outputs)

    def value_fn(
        self,
        params,
        *,
        microbatch_value_fn=None,
        full_value_fn=None,
        curvature_value_fn=None,
        overlap_value_fn=None,
        outputs_fn=None,
        output_loss_fn=None,
    ):
        """The loss. It names the other extra arguments because optax's line searches demand that."""
        return self.output_loss_fn(self.outputs_fn(params))

    def gradient(self, params):
        """The direction of steepest ascent: what a training loop hands to `update`."""
        return jax.tree.map(jnp.conj, jax.grad(self.value_fn)(params))

    def microbatch_value_fn(self, params, index):
        """Micro-batches whose losses differ and average to the loss."""
        value = self.value_fn(params)
        return value * (jnp.asarray(index, value.dtype) + 0.5)

    def extra_arguments(self, names: Iterable[str]) -> dict[str, Callable]:
        """Returns the functions among the extra arguments that are called `names`."""
        available = {
            "value_fn": self.value_fn,
            "curvature_value_fn": lambda params: self.value_fn(params),
            "overlap_value_fn": lambda params: self.value_fn(params),
            "full_value_fn": lambda params: self.value_fn(params),
            "microbatch_value_fn": self.microbatch_value_fn,
            "outputs_fn": self.outputs_fn,
            "output_loss_fn": self.output_loss_fn,
        }
        return {name: available[name] for name in names}


def sum_of_squares(outputs) -> jax.Array:
    """Accumulates in float32 or wider, as a training loss does."""
    total = jnp.zeros([], jnp.float32)
    for leaf in jax.tree.leaves(outputs):
        wide = leaf.dtype if jnp.finfo(leaf.dtype).bits >= 32 else jnp.float32
        total = total + jnp.sum(jnp.real(leaf.astype(wide) * leaf.astype(wide).conj()))
    return total


def parabola(domain: str = "real", dtype: Any = jnp.float32) -> Problem:
    start, end = {
        "real": ([-1.0, 10.0, 1.0], [1.0, -1.0, 1.0]),
        "positive": ([0.5, 5.0, 1.0], [1.0, 2.0, 1.0]),
        "simplex": ([0.1, 0.1, 0.8], [0.5, 0.3, 0.2]),
    }[domain]
    return _distance(jnp.array(start, dtype), jnp.array(end, dtype))


def rosenbrock(domain: str = "real", dtype: Any = jnp.float32) -> Problem:
    """The banana (a - x)² + 100 (y - x²)²; on the simplex a is the golden ratio, as a + a² = 1."""
    start, a = {
        "real": ([0.0, 0.0], 1.0),
        "positive": ([0.5, 0.5], 1.0),
        "simplex": ([0.4, 0.6], GOLDEN),
    }[domain]

    def outputs_fn(params):
        x, y = params
        return jnp.stack([a - x, 10 * (y - x**2)])

    return Problem(jnp.array(start, dtype), outputs_fn, jnp.array([a, a**2], dtype))


def matrix_parabola(domain: str = "real", dtype: Any = jnp.float32) -> Problem:
    start, end = {
        "real": ([[0.0, 0.0], [0.0, 0.0]], [[3.0, -2.0], [1.0, 4.0]]),
        "positive": ([[1.0, 1.0], [1.0, 1.0]], [[3.0, 2.0], [1.0, 4.0]]),
        "simplex": ([[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.3, 0.7]]),
    }[domain]
    return _distance(jnp.array(start, dtype), jnp.array(end, dtype))


def mixed_shapes(domain: str = "real", dtype: Any = jnp.float32) -> Problem:
    """A tuple of a vector and a matrix."""
    vector, matrix = {
        "real": ([1.0, -1.0, 2.0], [[1.0, 0.0], [-1.0, 1.0]]),
        "positive": ([1.0, 0.5, 2.0], [[1.0, 3.0], [0.5, 1.0]]),
        "simplex": ([0.2, 0.3, 0.5], [[0.25, 0.75], [0.6, 0.4]]),
    }[domain]
    end = (jnp.array(vector, dtype), jnp.array(matrix, dtype))
    fill = {"real": 0.0, "positive": 1.0}
    start = jax.tree.map(lambda x: jnp.full_like(x, fill.get(domain, 1 / x.shape[-1])), end)
    return _distance(start, end)


TARGETS = (parabola, rosenbrock, matrix_parabola, mixed_shapes)


def two_weights(dtype: Any = None) -> Problem:
    """E = (y - abx)²/2 with x = 1 and y = 0.6, from (2.8, 3.5): Barrett and Dherin's 2-D model.

    In the widest floating dtype by default.
    """
    dtype = jnp.result_type(float) if dtype is None else dtype

    def outputs_fn(params):
        a, b = params
        return (0.6 - a * b) / math.sqrt(2)

    return Problem(jnp.array([2.8, 3.5], dtype), outputs_fn)


def tanh_network(
    widths: tuple[int, ...] = (3, 5, 4, 2), num_samples: int = 6, dtype: Any = jnp.float32
) -> Problem:
    """The mean squared error of a tanh network on random data: dense and smooth in every order."""
    rng = np.random.default_rng(0)
    inputs = jnp.array(rng.normal(size=(num_samples, widths[0])), dtype)
    targets = jnp.array(rng.normal(size=(num_samples, widths[-1])), dtype)
    params = [
        {
            "kernel": jnp.array(rng.normal(size=(n_in, n_out)) / math.sqrt(n_in), dtype),
            "bias": jnp.array(rng.normal(size=(n_out,)) / 4, dtype),
        }
        for n_in, n_out in itertools.pairwise(widths)
    ]

    def outputs_fn(params):
        x = inputs
        for layer in params:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
        return (x - targets) / math.sqrt(num_samples)

    return Problem(params, outputs_fn)


def coupled(params: Any) -> Problem:
    """A loss with a dense Hessian on ANY tree of parameters: a wave in each entry and one shared sum.

    Elementwise operations and sums are all it has, so that it also runs on sharded parameters.
    """

    def outputs_fn(params):
        leaves = jax.tree.leaves(params)
        waves = [x + jnp.sin(2 * x) / 4 - 0.25 for x in leaves]
        return waves, [jnp.asarray(sum(jnp.sum(x) for x in leaves)) / 4]

    return Problem(params, outputs_fn)


def parameters(domain: str, shapes: Any, dtype: Any = jnp.float32, seed: int = 0) -> Any:
    """Returns random parameters in `domain`; `shapes` is a tree whose leaves are tuples."""
    rng = np.random.default_rng(seed)

    def leaf(shape):
        if domain == "real":
            array = rng.normal(size=shape)
            if jnp.issubdtype(dtype, jnp.complexfloating):
                array = array + 1j * rng.normal(size=shape)
        else:
            array = rng.uniform(0.5, 1.5, size=shape)
        if domain == "simplex":
            array = array / array.sum(axis=-1, keepdims=True)
        return jnp.array(array, dtype)

    return jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))


def _distance(start, end) -> Problem:
    return Problem(start, lambda params: jax.tree.map(jnp.subtract, params, end), end)
