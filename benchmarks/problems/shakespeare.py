"""A character transformer on Tiny Shakespeare, as a Flax NNX model."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.problems import data
from benchmarks.problems.classification import mean_over
from benchmarks.problems.problem import Problem, Target

FILE = "tinyshakespeare.txt"

# The measures of the curve use this many windows: a transformer's loss is dear.
MEASURED_WINDOWS = 256


class Block(nnx.Module):
    """Causal self-attention and a two-layer network, each normalised first and added."""

    def __init__(self, width: int, num_heads: int, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(
            num_heads, in_features=width, decode=False, rngs=rngs
        )
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, length, width]` to the same shape."""
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.contract(nnx.gelu(self.expand(self.norms[1](x))))


class Transformer(nnx.Module):
    """Predicts each next character of a window."""

    def __init__(
        self, vocabulary: int, length: int, width: int, depth: int, num_heads: int, rngs: nnx.Rngs
    ):
        self.characters = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, num_heads, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.logits = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps `[batch, length]` characters to `[batch, length, vocabulary]` logits."""
        positions = jnp.arange(tokens.shape[1])[None]
        x = self.characters(tokens) + self.positions(positions)
        for block in self.blocks:
            x = block(x)
        return self.logits(self.norm(x))


def transformer(
    data_dir: Path | None = None,
    *,
    length: int = 64,
    width: int = 64,
    depth: int = 2,
    num_heads: int = 4,
    batch_size: int = 16,
    num_steps: int = 1000,
) -> Problem:
    """A small character transformer; a tenth of the text is held out."""
    content = data.read(data_dir, FILE)
    characters, tokens = np.unique(np.frombuffer(content, np.uint8), return_inverse=True)
    windows = jnp.asarray(
        tokens[: len(tokens) // (length + 1) * (length + 1)].reshape(-1, length + 1), jnp.int32
    )
    # The end of the text: windows in its middle would share sentences with the training set.
    held_out = max(1, len(windows) // 10)
    train, test = windows[:-held_out], windows[-held_out:]

    def model(rngs):
        return Transformer(len(characters), length, width, depth, num_heads, rngs)

    graphdef, _, rest = nnx.split(nnx.eval_shape(lambda: model(nnx.Rngs(0))), nnx.Param, ...)
    del rest

    def init(key):
        return nnx.to_pure_dict(nnx.split(model(nnx.Rngs(params=key)), nnx.Param, ...)[1])

    def outputs(params, batch):
        return nnx.merge(graphdef, params, {})(batch[:, :-1])

    def output_loss(logits, batch):
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    def loss(params, batch):
        return output_loss(outputs(params, batch), batch)

    measures = {
        "train_loss": lambda p, train, test: mean_over(loss, p, train[:MEASURED_WINDOWS], 64),
        "test_loss": lambda p, train, test: mean_over(loss, p, test[:MEASURED_WINDOWS], 64),
    }
    return Problem(
        name="shakespeare",
        init=init,
        loss=loss,
        train=train,
        test=test,
        batch_size=batch_size,
        num_steps=num_steps,
        measures=measures,
        final_measures=measures,
        target=Target("test_loss", 2.2, higher_is_better=False),
        outputs=outputs,
        output_loss=output_loss,
        about=f"Tiny Shakespeare, {len(train)} windows of {length} characters, transformer of width "
        f"{width} and depth {depth}, batch {batch_size}" + data.provenance(FILE, content),
    )
