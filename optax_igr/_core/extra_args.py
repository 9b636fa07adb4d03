"""The extra arguments of `update`: the one list of their meanings, and the error when one is missing.

Optax, its line searches, `optax.lbfgs` and `optimistix` agree on the name `value_fn`, so a chain that
contains them and this library's transforms takes one set of keywords.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

MEANINGS = {
    "value_fn": "`params -> scalar`, the loss of this step",
    "value": "the loss at `params`",
    "grad": "the raw gradient of the loss at `params`",
    "curvature_value_fn": "`params -> scalar`, the loss on the batch that curvature is measured on",
    "overlap_value_fn": "`params -> scalar`, the loss on the samples shared with the previous batch",
    "full_value_fn": "`params -> scalar`, the loss on the whole data set",
    "microbatch_value_fn": "`(params, index) -> scalar`, the loss of one micro-batch",
    "outputs_fn": "`params -> outputs` of the model",
    "output_loss_fn": "`outputs -> scalar`; composed with `outputs_fn` it is `value_fn`",
}

# The functions among them, with the number of arguments that they are called with by position.
POSITIONAL_ARGUMENTS = {
    "value_fn": 1,
    "curvature_value_fn": 1,
    "overlap_value_fn": 1,
    "full_value_fn": 1,
    "microbatch_value_fn": 2,
    "outputs_fn": 1,
    "output_loss_fn": 1,
}


class ValueFunctionError(ValueError):
    """Says that a function does not return one real number; the builder adds whose argument it is."""

    def __init__(self, value: Any):
        super().__init__(
            f"a value function must return one real number, got {value!r}. There is no `has_aux`: where a function "
            f"returns a pair, pass `lambda params: function(params)[0]`."
        )


def explained(
    transform: str, arguments: Mapping[str, Any], params: Any, error: ValueFunctionError
) -> ValueError:
    """Returns the error with the transform and the argument that it is about."""
    for name, num_positional in POSITIONAL_ARGUMENTS.items():
        function = arguments.get(name)
        if function is None or name in ("outputs_fn", "output_loss_fn"):
            continue
        # A technique wraps the functions, so that the argument is found by calling each once more, abstractly.
        results = []
        rest = [0] * (num_positional - 1)
        jax.eval_shape(lambda p, f=function, r=rest, out=results: out.append(f(p, *r)), params)
        if getattr(results[0], "shape", None) != ():
            return ValueError(f"{transform}: `{name}`: {error}")
    return ValueError(f"{transform}: {error}")


def bound(transform: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Binds to each function among the extra arguments the further ones that it names.

    This is the convention of Optax's line searches: `update(..., value_fn=fn, x=x)` calls `fn(params, x=x)`. The
    arguments stay among the extra ones too, since another function or an optimizer inside may name them.

    Args:
      transform: the public name, for the error.
      arguments: the extra arguments of one `update`.

    Returns:
      The arguments, with functions of the parameters alone.

    Raises:
      ValueError: where an argument that must be a function is none.
    """
    result = dict(arguments)
    for name, num_positional in POSITIONAL_ARGUMENTS.items():
        function = arguments.get(name)
        if function is None:
            continue
        if not callable(function):
            raise ValueError(
                f"{transform}: `{name}` must be a function ({MEANINGS[name]}), got {function!r}."
            )
        keywords = {
            key: arguments[key]
            for key in _parameter_names(function)[num_positional:]
            if key in arguments
        }
        if keywords:
            result[name] = functools.partial(function, **keywords)
    return result


def mapped(arguments: Mapping[str, Any], wrap: Callable[[Callable], Callable]) -> dict[str, Any]:
    """Applies `wrap` to every function of the parameters among the extra arguments."""
    result = dict(arguments)
    for name in POSITIONAL_ARGUMENTS:
        # The output loss is a function of the outputs.
        if name != "output_loss_fn" and arguments.get(name) is not None:
            result[name] = wrap(arguments[name])
    return result


def _parameter_names(function: Callable) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        # A function that is written in C may have no signature.
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind not in variadic]


def require(transform: str, **arguments: Any) -> None:
    """Raises a `ValueError` that names `transform` and the first of `arguments` that is None.

    Args:
      transform: the public name of the transform that needs the arguments.
      **arguments: extra arguments by name; `params` may be among them.
    """
    for name, argument in arguments.items():
        if argument is not None:
            continue
        if name == "params":
            raise ValueError(
                f"{transform} needs the current parameters: call `update(updates, state, params)`."
            )
        raise ValueError(
            f"{transform} needs the extra argument `{name}` ({MEANINGS[name]}): "
            f"call `update(updates, state, params, {name}=...)`."
        )
