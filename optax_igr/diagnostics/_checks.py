"""Checks of the values of arguments, where they can be seen: a traced array shows none."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def visible(x: Any) -> Any:
    """Returns an argument as a NumPy array where its values can be seen, and a traced one as it is.

    An operation of JAX would hide them: inside `jax.jit` it is traced, whatever it is applied to.
    """
    return x if isinstance(x, jax.core.Tracer) else np.asarray(x)


def is_finite(x: Any) -> Any:
    """Says of every entry whether it is finite; `x` comes from :func:`visible`, and so does the result."""
    return np.isfinite(x) if isinstance(x, np.ndarray) else jnp.isfinite(x)


def require(name: str, argument: str, expected: str, found: Any, is_right: Any) -> Any:
    """Raises a `ValueError` that names function and argument, if values that can be seen are wrong.

    Args:
      name: the public function.
      argument: of it.
      expected: what the argument must be.
      found: what it is.
      is_right: a boolean, or an array of them.

    Returns:
      Whether all is right: True, or a traced boolean.
    """
    if isinstance(is_right, jax.core.Tracer):
        return jnp.all(is_right)
    if not np.all(is_right):
        array = np.asarray(found)
        shown = array.tolist() if array.size <= 10 else f"{array.dtype}{list(array.shape)}"
        raise ValueError(f"{name}: `{argument}` must be {expected}, got {shown!r}.")
    return True


def where_right(is_right: Any, values: jax.Array) -> jax.Array:
    """Returns the values, or NaN where a traced argument is wrong: there no error can be raised."""
    return jnp.where(is_right, values, jnp.nan) if isinstance(is_right, jax.core.Tracer) else values
