r"""The one way to make a gradient transformation.

Every transform of this library is made by :func:`transform` from two functions, in the shape that Optax gives them:

- `init(params) -> state`
- `update(updates, state, params, **named) -> (updates, state)`

The builder does around them what all transforms have in common, so that a technique's own file holds its mathematics
alone. In the order in which it happens at each call of `update`:

1. A missing argument raises a `ValueError` that names the transform and the argument (`needs`).
2. Leaves become arrays: NumPy arrays and Python numbers as in Optax, and without JAX's weak types, which would
   compile a second step again.
3. Leaves that are no real or complex numbers (integers, booleans, random keys) are taken out. The technique sees
   `None` in their place, its value functions get them back, and their updates pass as they came.
4. The gradient is `grad` if it is given, else the incoming updates. An `update` that has an argument `gradient` is
   given it; one that has none does not read `grad`.
5. Updates and gradient must agree with the parameters in structure, shape and dtype, and the fields of the state
   named in `state_like_params` in structure and shape. The error names the leaf. All this is known when JAX traces.
6. Keyword arguments that a value function names are bound to it, as the line searches of Optax do:
   `update(..., value_fn=fn, x=x)` calls `fn(params, x=x)`.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from optax_igr._core import extra_args, hyperparameters, paths, trees


def transform(
    name: str,
    init: Callable[[Any], Any],
    update: Callable[..., tuple[Any, Any]],
    *,
    needs: Sequence[str] = (),
    state_like_params: Sequence[str] = (),
    state_in_dtype_of_params: Sequence[str] = (),
    wider_updates: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes a gradient transformation that checks and prepares what its `update` is given.

    Args:
      name: the public name, which every error message begins with.
      init: `params -> state`.
      update: `(updates, state, params, **named) -> (updates, state)`. Among its keyword arguments may be `gradient`
        (see the module's fourth point) and any name of `extra_args.MEANINGS`. It must accept and ignore names that it
        does not know. A wrapper hands them all on to the optimizer inside.
      needs: what a call must hold: `params` and names of `extra_args.MEANINGS`.
      state_like_params: the fields of the state that are trees like the parameters, in any dtype.
      state_in_dtype_of_params: the fields that agree with the parameters in dtype too, such as copies of them.
      wider_updates: whether updates of a wider dtype than their parameter's are welcome.

    Returns:
      The transformation.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_igr._core.transform import transform
      >>> def update(updates, state, params, *, gradient, **unused):
      ...     return jax.tree.map(lambda u, g: u + g, updates, gradient), state
      >>> twice = transform("twice", lambda params: None, update, needs=("params",))
      >>> updates, _ = twice.update(jnp.array(1.0), None, jnp.array(0.0), grad=jnp.array(2.0))
      >>> print(updates)
      3.0
      >>> twice.update(jnp.array(1.0), None)
      Traceback (most recent call last):
      ValueError: twice needs the current parameters: call `update(updates, state, params)`.
    """
    takes_gradient = "gradient" in inspect.signature(update).parameters

    def prepared_init(params):
        return init(_Differentiable(params).part_of(trees.as_arrays(params)))

    def update_of_values(updates, state, params=None, **extra):
        """Takes boxes off before the update and puts them back after it, where a program keeps them throughout."""
        if not any(map(paths.is_box, jax.tree.leaves((updates, params), is_leaf=paths.is_box))):
            return prepared_update(updates, state, params, **extra)
        boxed = updates if params is None else params
        extra = extra_args.mapped(extra, lambda function: _of_boxed(function, boxed))
        if extra.get("grad") is not None:
            extra["grad"] = paths.unboxed(extra["grad"])
        values = [paths.unboxed(tree) for tree in (updates, state, params)]
        results = prepared_update(*values, **extra)
        return tuple(
            jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(result))
            for like, result in zip((updates, state), results, strict=True)
        )

    def prepared_update(updates, state, params=None, **extra):
        given = {"params": params, **extra}
        extra_args.require(name, **{needed: given.get(needed) for needed in needs})
        state = trees.as_arrays(state)
        if params is not None:
            params = trees.as_arrays(params)
        reference = updates if params is None else params
        differentiable = _Differentiable(reference)
        extra = extra_args.bound(name, extra)
        if params is not None:
            extra = extra_args.mapped(extra, differentiable.filling)
        if extra.get("grad") is not None:
            # `optax.masked` hides leaves of the updates and parameters, and hands `grad` on whole.
            grad = trees.mask_like(trees.as_arrays(extra["grad"]), reference)
            extra["grad"] = differentiable.part_of(grad)

        given_updates, updates = updates, differentiable.part_of(trees.as_arrays(updates))
        reference = differentiable.part_of(trees.as_arrays(reference))
        checked = {"updates": updates}
        if takes_gradient:
            grad = extra.get("grad")
            extra["gradient"] = checked["grad"] = updates if grad is None else grad
        if wider_updates:
            checked["updates"] = trees.narrowed_like(updates, reference)
        trees.check_like(name, reference, **checked)
        trees.check_state_like(
            name, reference, **{field: getattr(state, field) for field in state_like_params}
        )
        trees.check_like(
            name, reference, **{field: getattr(state, field) for field in state_in_dtype_of_params}
        )
        selected = None if params is None else reference
        try:
            updates, state = update(updates, state, selected, **extra)
        except extra_args.ValueFunctionError as error:
            raise extra_args.explained(name, extra, selected, error) from error
        return differentiable.fill(updates, given_updates), state

    return optax.GradientTransformationExtraArgs(prepared_init, update_of_values)


def scale_by_learning_rate(
    name: str, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """Ends an optimizer that is a chain: checks its learning rate and descends by it.

    Args:
      name: the public name of the optimizer.
      learning_rate: a number or a schedule. Optax takes None for the identity, by which an optimizer would ascend:
        here it is an error. A schedule's value that is not finite counts as 0, a step that is left out.

    Returns:
      `optax.scale_by_learning_rate`.
    """
    rate = hyperparameters.checked(name, "learning_rate", learning_rate)
    return optax.scale_by_learning_rate(rate)


def _of_boxed(function: Callable, boxed: Any) -> Callable:
    """Returns a function of the values in the boxes of the parameters."""
    structure = jax.tree.structure(boxed)

    @functools.wraps(function)
    def of_values(values, *args, **kwargs):
        leaves = jax.tree.leaves(values)
        # A tree of other leaves comes from `optax.masked`, and is for the function to complete.
        is_whole = len(leaves) == structure.num_leaves
        return function(structure.unflatten(leaves) if is_whole else values, *args, **kwargs)

    return of_values


class _Differentiable:
    """The leaves of a tree that hold real or complex numbers, set apart from all others."""

    def __init__(self, tree: Any):
        self._tree = tree
        leaves = jax.tree.leaves(tree)
        # Most trees hold nothing else, and pass as they are: no closure, no second structure.
        self._is_everything = all(trees.is_inexact(trees.as_array(x)) for x in leaves)

    def part_of(self, tree: Any) -> Any:
        """Returns a tree of the same structure with `None` in the place of every other leaf."""
        if self._is_everything:
            return tree
        try:
            return jax.tree.map(
                lambda x, kind: x if trees.is_inexact(trees.as_array(kind)) else None,
                tree,
                self._tree,
            )
        except ValueError:
            # Trees that do not match are for `check_like` to report.
            return tree

    def fill(self, tree: Any, others: Any) -> Any:
        """Returns a tree with the other leaves of `others` in their place."""
        if self._is_everything:
            return tree
        return jax.tree.map(
            lambda x, other: other if x is None else x, tree, others, is_leaf=lambda x: x is None
        )

    def filling(self, function: Callable) -> Callable:
        """Returns a function of the parameters that puts the other leaves back before it calls `function`."""
        if self._is_everything:
            return function

        # `wraps` keeps the signature, in which an optimizer inside may look for names.
        @functools.wraps(function)
        def filled(params, *args, **kwargs):
            return function(self.fill(params, self._tree), *args, **kwargs)

        return filled
