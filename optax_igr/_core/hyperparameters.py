"""Hyper-parameters that are numbers or schedules: their validation and their value at a step."""

import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

Scalar = float | jax.Array


def value_at(scalar_or_schedule: optax.ScalarOrSchedule, count: ArrayLike) -> Scalar:
    """Returns the hyper-parameter after `count` updates, as `optax.scale_by_learning_rate` does."""
    if callable(scalar_or_schedule):
        return cast(Scalar, scalar_or_schedule(count))
    return scalar_or_schedule


def optional_value_at(
    scalar_or_schedule: optax.ScalarOrSchedule | None, count: ArrayLike
) -> Scalar | None:
    """Returns the hyper-parameter after `count` updates, or None where there is none."""
    return None if scalar_or_schedule is None else value_at(scalar_or_schedule, count)


def checked(
    transform: str,
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    otherwise: float | None = None,
    allow_infinite: bool = False,
) -> optax.ScalarOrSchedule:
    """Returns a hyper-parameter that stays in its range at every step.

    A number out of range raises an error now. A schedule, or a number that is traced (`optax.inject_hyperparams`
    traces every number), shows its values only while it runs, where nothing can be raised and one bad value would
    stay in the state for ever. There a value beyond `at_least` or `below` is moved to the nearest one in range, and
    one that is not finite, or not above `above`, becomes `otherwise`.

    Args:
      transform: the public name.
      name: the argument's name.
      value: a number or a schedule.
      at_least: the least value.
      above: a bound that must be exceeded.
      below: a bound that must not be reached.
      otherwise: what a value without meaning becomes; None is `at_least`, or 0 where that is None.
      allow_infinite: whether infinity is a value of this argument, such as "no limit".

    Returns:
      The number as it is, or a schedule or traced number in range.

    Raises:
      ValueError: for a number out of range.
    """
    if otherwise is None:
        otherwise = 0.0 if at_least is None else at_least
    in_range = functools.partial(
        _in_range,
        at_least=at_least,
        above=above,
        below=below,
        otherwise=otherwise,
        allow_infinite=allow_infinite,
    )
    if callable(value):
        return lambda count: in_range(value(count))
    check_scalar(
        transform,
        name,
        value,
        at_least=at_least,
        above=above,
        below=below,
        expected="a real number or a schedule",
        allow_infinite=allow_infinite,
    )
    return in_range(value) if isinstance(value, jax.core.Tracer) else value


def _in_range(value, *, at_least, above, below, otherwise, allow_infinite):
    if isinstance(value, int | float):
        # A Python number stays one: it would otherwise decide the dtype of what it multiplies.
        value = float(value)
        has_meaning = math.isfinite(value) or (allow_infinite and not math.isnan(value))
        if not has_meaning or (above is not None and value <= above):
            return otherwise
        value = value if at_least is None else max(value, at_least)
        return value if below is None else min(value, math.nextafter(below, -math.inf))
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(float)
    has_meaning = ~jnp.isnan(value) if allow_infinite else jnp.isfinite(value)
    if above is not None:
        has_meaning &= value > above
    if at_least is not None:
        value = jnp.maximum(value, at_least)
    if below is not None:
        largest = below - float(jnp.finfo(value.dtype).epsneg) * max(abs(below), 1e-30)
        value = jnp.minimum(value, largest)
    return jnp.where(has_meaning, value, otherwise)


def check_scalar_or_schedule(
    transform: str,
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raises a `ValueError` that names the argument unless it is a schedule or a number in range.

    A traced number (`optax.inject_hyperparams` makes one of every number) has no value to compare.
    """
    checked(transform, name, value, at_least=at_least, above=above, below=below)


def check_scalar(
    transform: str,
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    expected: str = "a real number",
    allow_infinite: bool = False,
) -> None:
    """Raises a `ValueError` that names the argument unless it is a number in range."""
    bounds = [
        f"{sign} {bound}"
        for sign, bound in ((">=", at_least), (">", above), ("<", below))
        if bound is not None
    ]
    expected = " and ".join([expected, *bounds])
    error = ValueError(f"{transform}: `{name}` must be {expected}, got {value!r}.")
    if not _is_real_scalar(value):
        raise error
    try:
        number = float(value)
    except jax.errors.ConcretizationTypeError:
        return
    in_range = (
        (at_least is None or number >= at_least)
        and (above is None or number > above)
        and (below is None or number < below)
        and not math.isnan(number)
    )
    if math.isinf(number) and not allow_infinite:
        expected = expected.replace("real", "finite real")
        raise ValueError(f"{transform}: `{name}` must be {expected}, got {value!r}.")
    if not in_range:
        raise error


def check_positive_integer(transform: str, name: str, value: Any) -> None:
    """Raises a `ValueError` that names the argument unless it is a Python integer above zero."""
    check_integer(transform, name, value, at_least=1)


def check_integer(transform: str, name: str, value: Any, *, at_least: int) -> None:
    """Raises a `ValueError` that names the argument unless it is a Python integer in range."""
    if isinstance(value, jax.Array):
        raise ValueError(
            f"{transform}: `{name}` must be a Python integer, got an array. Under "
            f"`optax.inject_hyperparams` name it in `static_args`."
        )
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < at_least:
        expected = "a positive integer" if at_least == 1 else f"an integer >= {at_least}"
        raise ValueError(f"{transform}: `{name}` must be {expected}, got {value!r}.")


def check_boolean(transform: str, name: str, value: Any) -> None:
    """Raises a `ValueError` that names the argument unless it is True or False."""
    # Any other value has a truth too, and mostly not the one that was meant: `averaged=0.5` is no rate.
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{transform}: `{name}` must be True or False, got {value!r}.")


def check_choice(transform: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises a `ValueError` that names the argument and lists the choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{transform}: `{name}` must be one of {listed}; got {value!r}.")


def _is_real_scalar(value: Any) -> bool:
    if hasattr(value, "dtype"):
        is_real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(
            value.dtype, jnp.integer
        )
        return is_real and jnp.ndim(value) == 0
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
