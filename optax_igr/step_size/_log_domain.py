r"""Positive quantities that are learned by exponentiated gradients, kept as their logarithm.

.. math::
  \log x \leftarrow
  \mathrm{clip}\big( (1 - \lambda) \log x + \mathrm{clip}(\gamma\,m, -1, 1),\ \log a,\ \log b \big)

This is the exponentiated-gradient step :math:`x \leftarrow x \exp(\gamma m)` with a decay :math:`\lambda` towards one,
or towards another center. Without a decay zero-mean signals make :math:`\log x` a random walk.
"""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from optax_igr._core.hyperparameters import Scalar

# exp(80) = 5.5e34: its product with a gradient is still a float32.
LIMIT = 80.0

# One step changes x by a factor e at most. Signals of useful size stay far below it. A single gradient that is 1e15
# times too large would otherwise send the logarithm to its limit, from where nothing comes back.
MAX_MOVE = 1.0

Bounds = tuple[float, float]


def check_bounds(transform: str, name: str, bounds: Any) -> None:
    """Raises a `ValueError` that names the argument unless it is None or two numbers 0 < low <= high."""
    if bounds is None:
        return
    is_pair = isinstance(bounds, tuple | list) and len(bounds) == 2
    if not is_pair or not all(isinstance(bound, numbers.Real) for bound in bounds):
        raise ValueError(
            f"{transform}: `{name}` must be None or a pair of numbers, got {bounds!r}."
        )
    low, high = bounds
    if not 0 < low <= high:
        raise ValueError(
            f"{transform}: `{name}` must be None or (low, high) with 0 < low <= high, got {bounds!r}."
        )


def step(
    log_value: jax.Array,
    signal: jax.Array,
    rate: Scalar,
    decay: Scalar,
    bounds: Bounds | None,
    log_center: jax.Array | None = None,
) -> jax.Array:
    """Returns the next logarithm, in the dtype of `log_value`; a non-finite signal counts as zero."""
    dtype = log_value.dtype
    signal = jnp.where(jnp.isfinite(signal), signal, 0).astype(dtype)
    move = jnp.clip(jnp.asarray(rate, dtype) * signal, -MAX_MOVE, MAX_MOVE)
    moved = (1 - jnp.asarray(decay, dtype)) * log_value + move
    if log_center is not None:
        moved = moved + jnp.asarray(decay, dtype) * log_center
    low, high = (-LIMIT, LIMIT) if bounds is None else map(math.log, bounds)
    return jnp.clip(moved, max(low, -LIMIT), min(high, LIMIT))
