r"""Learning rates by layer: one optimizer whose updates are multiplied by a factor for each parameter.

.. math:: u_\ell \leftarrow f_\ell\,u_\ell, \qquad f_\ell = \delta^{L - 1 - d_\ell}

Behind a preconditioner such a factor acts like a learning rate for each layer; in front of Adam it would cancel. The
usual choice where pretrained weights are adapted is :math:`\delta < 1`: the last of L layers at the full rate, each one
before it at :math:`\delta` times the next.

References:
  Howard, Ruder, `Universal Language Model Fine-tuning for Text Classification
  <https://arxiv.org/abs/1801.06146>`_, 2018
  Clark et al, `ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators
  <https://arxiv.org/abs/2003.10555>`_, 2020
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from optax_igr._core import hyperparameters, paths, trees
from optax_igr._core.transform import transform

KeyPath = tuple[Any, ...]
Factor = ArrayLike | Callable[[ArrayLike], ArrayLike]


class ScaleByPathState(NamedTuple):
    """The number of updates."""

    count: ArrayLike


def scale_by_path(
    factor_fn: Callable[[KeyPath, Any], Factor | None],
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the updates of every parameter by a factor that follows from its path.

    .. math:: u_\ell \leftarrow f(\mathrm{path}_\ell,\,\mathrm{leaf}_\ell)\,u_\ell

    Put it after the preconditioner and the weight decay, before or after the learning rate. One optimizer
    with a tree of factors is `optax.partition` with a learning rate for each label, without the labels and with one
    state instead of many.

    Args:
      factor_fn: `(path, leaf) -> factor`. The path is JAX's key path (`jax.tree_util.keystr(path, simple=True,
        separator="/")` spells it), the leaf has a shape and a dtype. The factor is a number; an array, whose axes
        are the first axes of the leaf, for parameters that are stacked over layers; or a schedule that returns
        either. An entry of a schedule that is not finite counts as 0. None says that no rule covers the parameter,
        which is an error. The box of a Flax variable is no step of the path: it is the same in `init`, in `update` and
        in :func:`optax_igr.factor_table`.

    Returns:
      A transform that needs no parameters. A mask (`optax.masked`) limits it to a part of the tree; within
      `optax.inject_hyperparams`, name `factor_fn` in `static_args`.

    Raises:
      ValueError: in `init` and `update`, for a parameter without a factor, or one whose shape does not fit.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> def factor_fn(path, leaf):
      ...     return 2.0 if leaf.ndim == 1 else 1.0  # biases learn at twice the rate
      >>> optimizer = optax.chain(optax.adam(1e-3), optax_igr.scale_by_path(factor_fn))
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> print({name: f"{update.min():.3f}" for name, update in updates.items()})
      {'bias': '-0.002', 'kernel': '-0.001'}

    References:
      The question it answers for users: `optax#1399 <https://github.com/google-deepmind/optax/issues/1399>`_
    """
    if not callable(factor_fn):
        raise ValueError(f"scale_by_path: `factor_fn` must be a function, got {factor_fn!r}.")
    return _scale_by_path("scale_by_path", factor_fn)


def layerwise_decay(
    decay: optax.ScalarOrSchedule,
    depth_fn: Callable[[KeyPath], ArrayLike | None],
    num_layers: int,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the updates of a layer at depth d by `decay` to the number of layers behind it.

    .. math:: u_\ell \leftarrow \delta^{L - 1 - d_\ell}\,u_\ell, \qquad d_\ell \in \{0, \dots, L - 1\}

    The last layer, d = L - 1, has the factor one. Below one the layers in front learn slowly, above one faster.

    Args:
      decay: :math:`\delta`, positive; a number or a schedule. A value of a schedule that is not positive and finite
        counts as 0: the last layer alone moves.
      depth_fn: `path -> depth`, with JAX's key path, as in :func:`optax_igr.scale_by_path`. For a parameter that is
        stacked over layers along its first axis, an array of depths. None says that the parameter has no depth, which
        is an error.
      num_layers: L; embeddings and the head count where `depth_fn` gives them a depth of their own.

    Returns:
      A transform that needs no parameters; :func:`optax_igr.factor_table` prints its factors.

    Raises:
      ValueError: for a bad argument; in `init` and `update`, for a parameter without a depth or outside the range.

    Examples:
      >>> import re, jax, jax.numpy as jnp, optax, optax_igr
      >>> params = {f"layer_{i}": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)} for i in range(3)}
      >>> def depth_fn(path):
      ...     found = re.search(r"layer_(\d+)", jax.tree_util.keystr(path))
      ...     return int(found[1]) if found else None
      >>> transform = optax_igr.layerwise_decay(0.5, depth_fn, num_layers=3)
      >>> print(optax_igr.factor_table(transform, params))
      parameter       shape   factor
      layer_0/bias    (4,)    0.25
      layer_0/kernel  (4, 4)  0.25
      layer_1/bias    (4,)    0.5
      layer_1/kernel  (4, 4)  0.5
      layer_2/bias    (4,)    1
      layer_2/kernel  (4, 4)  1
      >>> optimizer = optax.chain(optax.adamw(1e-3), transform)

    References:
      Clark et al, `ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators
      <https://arxiv.org/abs/2003.10555>`_, 2020
    """
    name = "layerwise_decay"
    # The limit of a decay of 0 is finite: the last layer alone moves.
    decay = hyperparameters.checked(name, "decay", decay, above=0, otherwise=0.0)
    hyperparameters.check_positive_integer(name, "num_layers", num_layers)
    if not callable(depth_fn):
        raise ValueError(f"{name}: `depth_fn` must be a function, got {depth_fn!r}.")

    def factor_fn(path, leaf):
        del leaf
        depth = depth_fn(path)
        if depth is None:
            return None
        depth = np.asarray(depth)
        if depth.dtype.kind not in "iu" or (depth < 0).any() or (depth >= num_layers).any():
            raise ValueError(
                f"{name}: `depth_fn` must return integers from 0 to num_layers - 1 = {num_layers - 1}; "
                f"for {paths.spell(path)} it returned {depth.tolist()}."
            )
        # From the last layer, not from the number of layers: that would slow the last one down too.
        layers_behind = num_layers - 1 - depth
        return lambda count: hyperparameters.value_at(decay, count) ** layers_behind

    return _scale_by_path(name, factor_fn)


def factor_table(transform: optax.GradientTransformation, params: Any) -> str:
    """Returns a table of the factors by which a transform multiplies the first updates, for printing.

    Args:
      transform: :func:`optax_igr.scale_by_path`, :func:`optax_igr.layerwise_decay`, or another one that multiplies.
      params: the parameters of the model, or their shapes and dtypes.

    Returns:
      One line for each parameter: its path, its shape and its factor, or its factors along the first axis where
      they differ.

    Raises:
      ValueError: what the transform raises, for a parameter that no rule covers.

    Examples:
      >>> import jax.numpy as jnp, optax_igr
      >>> transform = optax_igr.scale_by_path(lambda path, leaf: jnp.array([0.1, 1.0]))
      >>> print(optax_igr.factor_table(transform, {"stacked": jnp.ones((2, 3))}))
      parameter  shape   factor
      stacked    (2, 3)  0.1, 1

    References:
      The off-by-one that a table shows: `electra#51 <https://github.com/google-research/electra/issues/51>`_
    """
    ones = jax.tree.map(
        lambda p: jnp.ones(p.shape, jnp.float32) if trees.is_inexact(p) else p,
        trees.as_arrays(params),
    )
    factors, _ = transform.update(ones, transform.init(ones), ones)
    rows = [("parameter", "shape", "factor")]
    for path, factor in paths.leaves_with_path(factors):
        summary = _summary(np.asarray(factor)) if trees.is_inexact(factor) else "left alone"
        rows.append((paths.spell(path), str(factor.shape), summary))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = (
        "  ".join(f"{x:{width}}" for x, width in zip(row, widths, strict=True)) for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _scale_by_path(name: str, factor_fn: Callable) -> optax.GradientTransformationExtraArgs:
    def factors_at(count, tree):
        def factor(path, leaf):
            value = factor_fn(path, leaf)
            if value is None:
                raise ValueError(f"{name}: no rule covers the parameter {paths.spell(path)}.")
            if callable(value):
                value = jnp.asarray(value(count))
                # A schedule shows its values only here. One that is not finite leaves the step of this parameter out.
                value = jnp.where(jnp.isfinite(value), value, 0)
            elif not _is_finite(value):
                raise ValueError(
                    f"{name}: the factor of {paths.spell(path)} must be finite, got {value!r}."
                )
            return _aligned(name, path, jnp.asarray(value), leaf)

        return paths.map_with_path(factor, tree)

    def init(params):
        count = jnp.zeros([], jnp.int32)
        # What a rule says of each parameter is known by now, and its errors with it.
        jax.eval_shape(lambda: factors_at(count, params))
        return ScaleByPathState(count)

    def update(updates, state, params, **unused):
        del params, unused
        scaled = jax.tree.map(
            lambda f, u: (f * u.astype(trees.widened(u.dtype))).astype(u.dtype),
            factors_at(state.count, updates),
            updates,
        )
        return scaled, ScaleByPathState(optax.safe_increment(state.count))

    return transform(name, init, update)


def _is_finite(value: Any) -> bool:
    """Says whether a factor whose value is known is finite."""
    return isinstance(value, Tracer) or bool(np.all(np.isfinite(np.asarray(value))))


def _aligned(transform: str, path: KeyPath, factor: jax.Array, leaf: Any) -> jax.Array:
    """Gives a factor the rank of its leaf, in the dtype of a multiplication in float32 or wider."""
    # Trailing axes of one: a factor for stacked layers belongs to their first axis, where NumPy aligns the last.
    shape = (*factor.shape, *(1 for _ in leaf.shape[factor.ndim :]))
    fits = all(n in (1, m) for n, m in zip(shape, leaf.shape, strict=False))
    if len(shape) != len(leaf.shape) or not fits:
        raise ValueError(
            f"{transform}: the factor of {paths.spell(path)} has shape {factor.shape}, which are not the "
            f"first axes of its shape {tuple(leaf.shape)}."
        )
    return factor.reshape(shape).astype(jnp.finfo(trees.widened(leaf.dtype)).dtype)


def _summary(factor: np.ndarray) -> str:
    if (factor == factor.flat[0]).all():
        return f"{factor.flat[0]:.4g}"
    rows = factor.reshape(factor.shape[0], -1)
    if (rows == rows[:, :1]).all():
        return ", ".join(f"{x:.4g}" for x in rows[:, 0])
    return f"{factor.min():.4g} to {factor.max():.4g}"
