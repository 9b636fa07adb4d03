"""Whether JAX can differentiate a function in a given mode: found before anything is computed, and said once."""

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend.core
from jax.interpreters import partial_eval

# Python that looks at numbers can run eagerly and cannot be traced.
_NEEDS_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)

_announced: set[tuple] = set()


def traced(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """Traces a function that differentiates; raises JAX's error where it has no such derivative.

    Args:
      function: of pytrees of arrays.
      arguments: of the shapes and dtypes that it will see; nothing is computed from them.

    Returns:
      The function, from its traced program: calling it does not trace `function` again.
    """
    try:
        program, out_shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    except _NEEDS_NUMBERS:
        function(*arguments)
        return function
    # A forward derivative of a `jax.custom_vjp` can leave an equation that JAX refuses only when it compiles or
    # runs it. Where nothing uses the result (the value of the loss beside its gradient) it is no obstacle.
    jaxpr, _ = partial_eval.dce_jaxpr(
        program.jaxpr, [True] * len(program.jaxpr.outvars), instantiate=True
    )
    if _holds_primitive(jaxpr, "custom_lin"):
        raise TypeError("a jax.custom_vjp function has no forward derivative.")
    run = jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(jaxpr, program.consts))
    structure = jax.tree.structure(out_shapes)
    return lambda *args: structure.unflatten(run(*jax.tree.leaves(args)))


def reason(error: Exception) -> str:
    """Returns the type and the first line of an error; some of JAX's have no text at all."""
    lines = str(error).strip().splitlines()
    text = re.sub(r" at 0x[0-9a-f]+", "", lines[0])[:160] if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def reasons(failures: Mapping[str, Exception]) -> str:
    """Lists which mode failed for which reason, equal reasons once."""
    modes: dict[str, list[str]] = {}
    for mode, error in failures.items():
        modes.setdefault(reason(error), []).append(mode)
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in modes.items())


def announce(name: str, mode: str, failures: Mapping[str, Exception], note: str) -> None:
    """Warns which mode a transform takes because others failed: once, however often it is traced."""
    key = (name, mode, *(type(error).__name__ for error in failures.values()))
    if key in _announced:
        return
    warnings.warn(
        f"{name}: `auto` takes {mode!r}, because JAX cannot differentiate the loss by "
        f"{reasons(failures)}. {note}",
        stacklevel=2,
    )
    # Last, so that a warning that was turned into an error is raised the next time too.
    _announced.add(key)


def _holds_primitive(jaxpr: Any, name: str) -> bool:
    return any(
        eqn.primitive.name == name
        or any(
            _holds_primitive(inner, name) for inner in jax.extend.core.jaxprs_in_params(eqn.params)
        )
        for eqn in jaxpr.eqns
    )
