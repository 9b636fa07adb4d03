r"""Positive quantities that are learned by exponentiated gradients, kept as their logarithm.

.. math:: \log x \leftarrow \mathrm{clip}\big( (1 - \lambda) \log x + \gamma\,m,\ \log a,\ \log b \big)

is the exponentiated-gradient step :math:`x \leftarrow x \exp(\gamma m)` with a decay :math:`\lambda` towards one, or
towards another centre, without which zero-mean signals make :math:`\log x` a random walk.
"""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from optax_igr._core.hyperparameters import Scalar

# exp(80) = 5.5e34: its product with a gradient is still a float32.
LIMIT = 80.0

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
    log_centre: jax.Array | None = None,
) -> jax.Array:
    """Returns the next logarithm, in the dtype of `log_value`; a non-finite signal counts as zero."""
    dtype = log_value.dtype
    signal = jnp.where(jnp.isfinite(signal), signal, 0).astype(dtype)
    moved = (1 - jnp.asarray(decay, dtype)) * log_value + jnp.asarray(rate, dtype) * signal
    if log_centre is not None:
        moved = moved + jnp.asarray(decay, dtype) * log_centre
    low, high = (-LIMIT, LIMIT) if bounds is None else map(math.log, bounds)
    return jnp.clip(moved, max(low, -LIMIT), min(high, LIMIT))
