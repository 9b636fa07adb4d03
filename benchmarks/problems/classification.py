"""Classifiers: the loss, the accuracy and the norms that the gradient penalties act on.

A model enters as a Flax NNX factory and is split once: the runner sees parameters and functions.
"""

import itertools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.problems.problem import LossFn, Measure, Problem
from optax_igr import diagnostics

# The scales and draws of the robustness curve: theta_i (1 + s N(0, 1)) for each scale s.
NOISE_SCALES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
NOISE_DRAWS = 5

# Measures of the training curve use at most this many examples; the final ones use all of them.
CURVE_EXAMPLES = 2048

_NOISE_SEED = 20


class MLP(nnx.Module):
    """A fully connected classifier of flattened inputs."""

    def __init__(self, widths: tuple[int, ...], activation: Callable, rngs: nnx.Rngs):
        pairs = list(itertools.pairwise(widths))
        self.layers = nnx.List([nnx.Linear(m, n, rngs=rngs) for m, n in pairs])
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits of a batch."""
        x = x.reshape(x.shape[0], -1)
        for index, layer in enumerate(self.layers):
            x = layer(self.activation(x) if index else x)
        return x


class CNN(nnx.Module):
    """Strided 3 by 3 convolutions of single-channel images, then a linear layer."""

    def __init__(self, shape: tuple[int, int], channels: tuple[int, ...], rngs: nnx.Rngs):
        pairs = itertools.pairwise((1, *channels))
        self.convolutions = nnx.List(
            [
                nnx.Conv(m, n, (3, 3), strides=2, conv_general_dilated=convolution, rngs=rngs)
                for m, n in pairs
            ]
        )
        height, width = shape
        for _ in channels:
            height, width = -(-height // 2), -(-width // 2)
        self.linear = nnx.Linear(height * width * channels[-1], 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits of a batch."""
        x = x[..., None]
        for convolution in self.convolutions:
            x = nnx.tanh(convolution(x))
        return self.linear(x.reshape(x.shape[0], -1))


def convolution(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: str | list[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """Convolves images with a kernel `[height, width, in, out]` as one matrix product of shifted slices.

    The runner's loop over steps, vectorised over runs, makes XLA's own convolution 6 to 17 times slower on a CPU.
    """
    del options
    height, width, channels, features = kernel.shape
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(images.shape[1:3], (height, width), strides, padding)
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    down, across = strides
    rows = (padded.shape[1] - height) // down + 1
    columns = (padded.shape[2] - width) // across + 1
    shifted = [
        padded[:, i : i + down * (rows - 1) + 1 : down, j : j + across * (columns - 1) + 1 : across]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(height * width * channels, features)


def classifier(
    name: str,
    model: Callable[[nnx.Rngs], nnx.Module],
    train: Any,
    test: Any,
    *,
    batch_size: int,
    microbatches: int = 4,
    **attributes: Any,
) -> Problem:
    """Makes a problem of a Flax NNX classifier and of `{"image", "label"}` arrays.

    Args:
      name: what the records call the problem.
      model: `rngs -> module`, which maps a batch of images to logits.
      train: the training set.
      test: the held-out set.
      batch_size: examples a step.
      microbatches: the parts of a batch whose mean squared gradient norm is measured.
      **attributes: further attributes of `Problem`.
    """
    # The structure alone, without drawing weights: `init` draws them for every seed.
    graphdef = nnx.split(nnx.eval_shape(lambda: model(nnx.Rngs(0))), nnx.Param, ...)[0]

    def init(key: chex.PRNGKey) -> chex.ArrayTree:
        return nnx.to_pure_dict(nnx.split(model(nnx.Rngs(params=key)), nnx.Param, ...)[1])

    def outputs(params: chex.ArrayTree, batch: Any) -> chex.Array:
        return nnx.merge(graphdef, params, {})(batch["image"])

    def output_loss(logits: chex.Array, batch: Any) -> chex.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean()

    def loss(params: chex.ArrayTree, batch: Any) -> chex.Array:
        return output_loss(outputs(params, batch), batch)

    def accuracy(params: chex.ArrayTree, batch: Any) -> chex.Array:
        return jnp.mean(jnp.argmax(outputs(params, batch), axis=-1) == batch["label"])

    return Problem(
        name=name,
        init=init,
        loss=loss,
        train=train,
        test=test,
        batch_size=batch_size,
        measures={
            "train_loss": lambda p, train, test: mean_over(loss, p, _head(train)),
            "test_loss": lambda p, train, test: mean_over(loss, p, _head(test)),
            "test_accuracy": lambda p, train, test: mean_over(accuracy, p, _head(test)),
            **{
                name: lambda p, train, test, norm=norm: norm(p, _head(train), test)
                for name, norm in gradient_norms(loss, batch_size, microbatches).items()
            },
        },
        final_measures={
            "train_loss": lambda p, train, test: mean_over(loss, p, train),
            "train_accuracy": lambda p, train, test: mean_over(accuracy, p, train),
            "test_loss": lambda p, train, test: mean_over(loss, p, test),
            "test_accuracy": lambda p, train, test: mean_over(accuracy, p, test),
            **gradient_norms(loss, batch_size, microbatches),
            "noise_accuracy": noise_robustness(accuracy),
        },
        outputs=outputs,
        output_loss=output_loss,
        **attributes,
    )


def gradient_norms(loss: LossFn, batch_size: int, microbatches: int) -> dict[str, Measure]:
    r"""Returns the slope, R_IG and the three squared norms that penalties differ in.

    .. math::
      \text{slope} = \|\nabla L\|, \quad R_{IG} = \|\nabla L\|^2 / m, \quad
      \|\mathbb{E}\, g\|^2 = \|\nabla L\|^2, \quad \mathbb{E}_b \|g_b\|^2

    with the mean over batches of the training size, and over micro-batches of a part of it.
    """

    def full(params, train, test):
        del test
        return _squared_slope(loss, params, train)

    def over_batches(size):
        return lambda params, train, test: _mean_squared_gradient(loss, params, train, size)

    return {
        "slope": lambda p, train, test: jnp.sqrt(full(p, train, test)),
        "mean_squared_gradient": lambda p, train, test: full(p, train, test) / _num_parameters(p),
        "squared_norm_full": full,
        "squared_norm_batch": over_batches(batch_size),
        "squared_norm_microbatch": over_batches(max(1, batch_size // microbatches)),
    }


def noise_robustness(accuracy: LossFn) -> Measure:
    r"""Returns the accuracy at :math:`\theta_i (1 + s\,\epsilon_i)` for each scale s, the mean over draws."""

    def measure(params, train, test):
        del train
        return diagnostics.parameter_robustness(
            lambda noisy: mean_over(accuracy, noisy, _head(test)),
            params,
            # The same noise for every technique and seed: the differences between them are not its own.
            jax.random.key(_NOISE_SEED),
            jnp.asarray(NOISE_SCALES),
            draws=NOISE_DRAWS,
        ).mean

    return measure


def _head(data):
    return jax.tree.map(lambda x: x[:CURVE_EXAMPLES], data)


def mean_over(fn: Callable, params: Any, data: Any, size: int = CURVE_EXAMPLES) -> Any:
    """Returns the mean of `fn(params, batch)` over all examples, a batch at a time."""
    n = len(jax.tree.leaves(data)[0])
    if n <= size:
        return fn(params, data)
    batches, rest = _batches(data, size)
    total = jax.tree.map(lambda x: x.sum(0) * size, jax.lax.map(lambda b: fn(params, b), batches))
    if n % size:
        total = jax.tree.map(lambda t, x: t + x * (n % size), total, fn(params, rest))
    return jax.tree.map(lambda x: x / n, total)


def _batches(data, size):
    n = len(jax.tree.leaves(data)[0])
    whole = n // size * size
    batches = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), data)
    return batches, jax.tree.map(lambda x: x[whole:], data)


def _squared_slope(loss, params, data):
    return _squared_norm(mean_over(jax.grad(loss), params, data))


def _mean_squared_gradient(loss, params, data, size):
    batches, _ = _batches(data, size)
    return jax.lax.map(lambda b: _squared_norm(jax.grad(loss)(params, b)), batches).mean()


def _squared_norm(tree):
    return jnp.sum(jnp.stack([jnp.sum(x * x) for x in jax.tree.leaves(tree)]))


def _num_parameters(params):
    return sum(x.size for x in jax.tree.leaves(params))
