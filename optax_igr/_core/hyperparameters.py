"""Hyper-parameters that are numbers or schedules: their validation and their value at a step."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
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
    if not callable(value):
        bounds = {"at_least": at_least, "above": above, "below": below}
        check_scalar(transform, name, value, **bounds, expected="a real number or a schedule")


def check_scalar(
    transform: str,
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    expected: str = "a real number",
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
