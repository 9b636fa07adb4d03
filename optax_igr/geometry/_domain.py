"""What the transforms of this room ask of parameters and hyper-parameters, and the errors that say so."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_igr._core import hyperparameters, trees

Axis = int | Sequence[int] | None


def check_constant(transform: str, name: str, number: Any, **bounds: float) -> None:
    """Raises a `ValueError` unless `number` is a real number in range; a schedule is none.

    A quantity that defines the domain cannot vary while the parameters are in it.
    """
    if callable(number):
        raise ValueError(
            f"{transform}: `{name}` defines the domain of the parameters and must be a constant, "
            f"got a schedule."
        )
    hyperparameters.check_scalar_or_schedule(transform, name, number, **bounds)


def check_axis(transform: str, axis: Any) -> Axis:
    """Returns `axis` as an integer, a tuple of integers or None, or raises a `ValueError`."""
    is_integer = isinstance(axis, int) and not isinstance(axis, bool)
    if axis is None or is_integer:
        return axis
    if isinstance(axis, Sequence) and all(isinstance(a, int) for a in axis) and axis:
        return tuple(axis)
    raise ValueError(
        f"{transform}: `axis` must be an integer, a sequence of integers or None (all axes), got {axis!r}. "
        f"Under `optax.inject_hyperparams` name it in `static_args`."
    )


def check_update(transform: str, params: Any, tree: Any, *, name: str = "updates") -> None:
    """Raises a `ValueError` that names the leaf where the updates differ from the parameters.

    They may be of a wider dtype: an exponent in float32 is welcome where the weight is in bfloat16.
    """

    def dtype(param: jax.Array, update: jax.Array) -> Any:
        is_wider = trees.widest(param.dtype, update.dtype) == update.dtype
        return param.dtype if is_wider else update.dtype

    # Trees of another structure are for `check_like` to report.
    same_structure = jax.tree.structure(params) == jax.tree.structure(tree)
    if same_structure:
        tree = jax.tree.map(
            lambda p, u: np.broadcast_to(np.zeros([], dtype(p, u)), u.shape), params, tree
        )
    trees.check_like(transform, params, **{name: tree})


def check_state(transform: str, params: Any, **kept: Any) -> None:
    """Raises a `ValueError` that names the leaf where the state was not made from such parameters."""
    trees.check_like(transform, trees.widen(params), **kept)


def check_leaves(
    transform: str,
    params: Any,
    complaint: Callable[[jax.Array], str | None] = lambda leaf: None,
    *,
    advice: str = "",
) -> None:
    """Raises a `ValueError` that names the first leaf that `complaint` has something to say about.

    Args:
      transform: the public name.
      params: any tree; a leaf without values (abstract, or traced under `jax.jit`) is checked for its dtype.
      complaint: says what is wrong with a concrete leaf, in the form "has a negative weight", or None.
      advice: what to do about it.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = f"params{jax.tree_util.keystr(path)}"
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{transform}: {name} must be of a real floating dtype, got {leaf.dtype}."
            )
        try:
            found = complaint(leaf) if _is_concrete(leaf) else None
        except jax.errors.ConcretizationTypeError:
            # Inside a `jax.jit` that closes over the parameters.
            continue
        if found is not None:
            raise ValueError(f"{transform}: {name} {found}. {advice}".rstrip())


def with_values(params: Any) -> Any:
    """Returns the parameters with ones in the place of a leaf that is only a shape and a dtype."""
    return jax.tree.map(
        lambda p: jnp.ones(p.shape, p.dtype) if isinstance(p, jax.ShapeDtypeStruct) else p, params
    )


def check_axes_exist(transform: str, tree: Any, axis: Axis, *, name: str = "params") -> None:
    """Raises a `ValueError` that names the leaf which has no such axis; shapes are known under `jax.jit` too."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for a in _axes(axis):
            if not -leaf.ndim <= a < leaf.ndim:
                raise ValueError(
                    f"{transform}: {name}{jax.tree_util.keystr(path)} of shape {list(leaf.shape)} has no axis {a}."
                )


def group_size(x: jax.Array, axis: Axis) -> int:
    """Returns the number of weights that share one simplex along `axis`."""
    return x.size if axis is None else int(np.prod([x.shape[a] for a in _axes(axis)]))


def negative_weight(weight: jax.Array) -> str | None:
    """Complains about a weight that is negative or not a finite number."""
    if not jnp.all(jnp.isfinite(weight)):
        return "has a weight that is not finite"
    if jnp.any(weight < 0):
        return f"has a negative weight, {float(jnp.min(weight)):.3g}"
    return None


def all_zero(weight: jax.Array) -> str | None:
    """Complains about a leaf of zeros, which no factor can move."""
    return "is all zeros, which no factor can move" if weight.size and not jnp.any(weight) else None


def sum_other_than(weight: jax.Array, axis: Axis, total: Any) -> str | None:
    """Complains where the sum along `axis` is not `total` within the rounding of the weights' dtype."""
    # A sum of rounded weights is as wrong as one of them.
    tolerance = max(1e-4, 2 * float(jnp.finfo(weight.dtype).eps))
    sums = jnp.sum(weight, axis, dtype=trees.widened(weight.dtype))
    error = jnp.abs(sums - total)
    if jnp.all(error <= tolerance * total):
        return None
    worst = float(jnp.ravel(sums)[jnp.argmax(jnp.ravel(error))])
    return f"has a sum of {worst:.6g} along axis {axis}, expected {float(total):.6g}"


def _axes(axis: Axis) -> Iterator[int]:
    return iter(() if axis is None else (axis,) if isinstance(axis, int) else axis)


def _is_concrete(leaf: Any) -> bool:
    if isinstance(leaf, Tracer):
        return False
    if isinstance(leaf, jax.Array):
        return leaf.is_fully_addressable
    return isinstance(leaf, np.ndarray | np.generic)
