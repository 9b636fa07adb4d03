"""Makers of `value_fn` for the places where a wrapper changes what it means."""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from optax_igr._core import hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar

ValueFn = Callable[[chex.ArrayTree], jax.Array]
AxisName = Any  # a hashable name, or a tuple of names


def fill_masked(
    value_fn: Callable[..., jax.Array], params: chex.ArrayTree
) -> Callable[..., jax.Array]:
    """Makes a `value_fn` that accepts the parameters as `optax.masked` and `optax.partition` show them.

    Those wrappers put an `optax.MaskedNode` in the place of every parameter that another transform
    updates, and hand the extra arguments on as they are; a plain `value_fn` then fails on a node that is no array.
    The returned function first puts the parameters of this step back, as constants.

    Args:
      value_fn: `params -> scalar`, or another function whose first argument is the parameters
        (`microbatch_value_fn`, `outputs_fn`).
      params: all parameters of this step, the ones given to `update`.

    Returns:
      A function from a tree like `params`, in which some leaves or branches may be `optax.MaskedNode`,
      and the further arguments of `value_fn`, to its result.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> value_fn = lambda p: jnp.sum((p["a"] * p["b"] - 1) ** 2)
      >>> params = {"a": jnp.array(2.0), "b": jnp.array(1.0)}
      >>> penalty = optax_igr.add_gradient_penalty(0.1)
      >>> transform = optax.chain(optax.masked(penalty, {"a": True, "b": False}), optax.sgd(0.1))
      >>> updates, _ = transform.update(
      ...     jax.grad(value_fn)(params), transform.init(params), params,
      ...     value_fn=optax_igr.fill_masked(value_fn, params))
      >>> print({name: f"{update:.2f}" for name, update in updates.items()})
      {'a': '-0.28', 'b': '-0.40'}

    References:
      The failure: `optax#1109 <https://github.com/google-deepmind/optax/issues/1109>`_
    """

    # A transform hands on the keyword arguments that the function names.
    @functools.wraps(value_fn)
    def filled(masked_params, *args, **kwargs):
        complete = jax.tree.map(
            lambda masked, full: full if _is_masked(masked) else masked,
            masked_params,
            params,
            is_leaf=_is_masked,
        )
        return value_fn(complete, *args, **kwargs)

    return filled


def microbatched(
    loss_fn: Callable[[chex.ArrayTree, Any], jax.Array], batch: Any, num_microbatches: int
) -> tuple[ValueFn, Callable[[chex.ArrayTree, Scalar], jax.Array]]:
    r"""Splits a batch so that its loss, and every derivative, needs the memory of one micro-batch.

    .. math:: L(\theta) = \frac{1}{k} \sum_{b=1}^{k} L_b(\theta)

    `optax.MultiSteps` around a transform that evaluates `value_fn` evaluates it on every mini-step and throws
    k - 1 of the k results away. Give the whole batch to one `update` instead, through this function.
    Micro-batch b has the samples b, b + k, b + 2k, ..., so that a batch laid over devices keeps all of them busy.

    Args:
      loss_fn: `(params, microbatch) -> scalar`, the mean over its samples.
      batch: a pytree of arrays whose leading axis, the samples, is a multiple of `num_microbatches`.
      num_microbatches: k. A micro-batch should be a multiple of the devices that the samples lie on; on a mesh
        with explicit axes it must be.

    Returns:
      `value_fn` with :math:`L`, and `microbatch_value_fn` with :math:`(\theta, b) \mapsto L_b`.

    Raises:
      ValueError: where the leading axis does not divide.

    Examples:
      >>> import jax.numpy as jnp, optax_igr
      >>> loss_fn = lambda w, x: jnp.mean((w - x) ** 2)
      >>> value_fn, microbatch_value_fn = optax_igr.microbatched(loss_fn, jnp.arange(4.0), 2)
      >>> print(value_fn(0.0), microbatch_value_fn(0.0, 0), microbatch_value_fn(0.0, 1))
      3.5 2.0 5.0

    References:
      Chen et al, `Training Deep Nets with Sublinear Memory Cost <https://arxiv.org/abs/1604.06174>`_, 2016
    """
    hyperparameters.check_positive_integer("microbatched", "num_microbatches", num_microbatches)
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        _check_divides(path, x, num_microbatches)
    # Column by column: row by row, a micro-batch would lie on few of the devices that hold the batch.
    stacked = jax.tree.map(
        lambda x: jnp.swapaxes(jnp.reshape(x, (-1, num_microbatches, *jnp.shape(x)[1:])), 0, 1),
        batch,
    )

    def microbatch_value_fn(params, index):
        return loss_fn(params, jax.tree.map(lambda x: x[index], stacked))

    def value_fn(params):
        # The backward pass adds k gradients in the dtype of what the loop closes over: in bfloat16 the sum would be
        # rounded k times.
        wide = jax.tree.map(_widened, params)

        # Without the checkpoint the backward pass would keep every micro-batch's activations.
        @jax.checkpoint
        def one(wide, microbatch):
            return loss_fn(jax.tree.map(_cast_back, wide, params), microbatch)

        values = jax.lax.map(lambda microbatch: one(wide, microbatch), stacked)
        return jnp.mean(values)

    return value_fn, microbatch_value_fn


def mean_over(
    axis_name: AxisName,
    value_fn: Callable[..., Any],
    output_loss_fn: Callable[..., Any] | None = None,
    *,
    has_aux: bool = False,
) -> Any:
    r"""Makes the loss of one replica the mean over all of them, derivatives of every order included.

    .. math:: L(\theta) = \frac{1}{n} \sum_{i=1}^{n} L_i(\theta)

    For loops that hold replicated parameters and a part of the batch each: `jax.pmap`, `jax.vmap(axis_name=...)`
    and `jax.shard_map`, with `check_vma` on or off. A `lax.pmean` of the loss alone is not enough there: where JAX
    does not track what varies, its gradient is that of the own replica, and the replicas drift apart. Here the
    gradient is the mean one on every replica, and needs no `lax.pmean` of its own. Under plain `jax.jit`, on any
    mesh, a mean over the batch is a mean over all devices already.

    Wrap each function of the parameters that a transform takes: `value_fn`, `full_value_fn`, `curvature_value_fn`,
    `overlap_value_fn`, `microbatch_value_fn` (micro-batch b is then the b-th one of all replicas together).
    `outputs_fn` and `output_loss_fn` are wrapped together. What a transform gets as updates, `grad` and `value`
    is taken from the wrapped function too.

    Args:
      axis_name: the name of the axis of replicas, or a tuple of names.
      value_fn: `(params, ...) -> scalar`, the mean over the samples of this replica; with `output_loss_fn`,
        `params -> outputs`. All replicas hold the same parameters.
      output_loss_fn: `outputs -> scalar` of Gauss-Newton products, the mean over the samples of this replica.
      has_aux: whether `value_fn` returns a pair; the second part stays that of the replica.

    Returns:
      The function of the same arguments, or the pair `(outputs_fn, output_loss_fn)`.

    Raises:
      ValueError: where the functions are called outside `axis_name`, or, with `check_vma=True`, with parameters
        that vary along it: give them with the spec `P()`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_igr
      >>> loss_fn = lambda w, x: jnp.sum((w - x) ** 2)
      >>> optimizer = optax.chain(optax_igr.add_gradient_penalty(0.5), optax.sgd(0.1))
      >>> def step(w, state, x):
      ...     value_fn = optax_igr.mean_over("replica", lambda w: loss_fn(w, x))
      ...     value, grad = jax.value_and_grad(value_fn)(w)
      ...     updates, state = optimizer.update(grad, state, w, value_fn=value_fn)
      ...     return optax.apply_updates(w, updates), state
      >>> w, x = jnp.ones(2), jnp.array([3.0, 7.0])  # two replicas, each with a sample of its own
      >>> states = jax.vmap(optimizer.init)(w)
      >>> w, states = jax.vmap(step, axis_name="replica")(w, states, x)
      >>> print(f"{w[0]:.1f} {w[1]:.1f}")
      3.4 3.4

    References:
      What a collective's derivative means: `JEP 17111
      <https://docs.jax.dev/en/latest/jep/17111-shmap-transpose.html>`_
    """
    axes = tuple(axis_name) if isinstance(axis_name, (tuple, list)) else (axis_name,)

    @functools.wraps(value_fn)
    def of_params(params, *args, **kwargs):
        _check_bound(axes)
        result = value_fn(_replicated(params, axes), *args, **kwargs)
        if output_loss_fn is not None:
            return result
        if has_aux:
            value, aux = result
            return _mean(value, axes), aux
        return _mean(result, axes)

    if output_loss_fn is None:
        return of_params

    @functools.wraps(output_loss_fn)
    def of_outputs(outputs, *args, **kwargs):
        # The outputs are the replica's own, so that nothing but the loss is averaged.
        _check_bound(axes)
        return _mean(output_loss_fn(outputs, *args, **kwargs), axes)

    return of_params, of_outputs


def _replicated(params: Any, axes: tuple[Any, ...]) -> Any:
    """Returns the parameters, whose derivative is the mean over all replicas.

    That equals `lax.pmean` where the replicas agree, without its communication and rounding: a value that a
    difference perturbs stays the value that the loop holds.
    """

    def leaf(path, x):
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        varying = tuple(axis for axis in axes if axis in _varies_along(x))
        if varying:
            raise ValueError(
                f"mean_over: the parameters must be the same on all replicas; under `check_vma=True` leaf "
                f"{jax.tree_util.keystr(path) or 'at the root'} varies along {varying}. Give the parameters with "
                f"the spec `P()`, and the optimizer updates that are means: the gradient of the wrapped function."
            )
        # Where JAX tracks what varies, the derivative of a replicated value is summed by itself.
        untracked = tuple(axis for axis in axes if not _is_tracked(axis))
        return _with_mean_derivative(x, untracked) if untracked else x

    return jax.tree_util.tree_map_with_path(leaf, params)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _with_mean_derivative(x, axes):
    del axes
    return x


@_with_mean_derivative.defjvp
def _mean_of_tangents(axes, primals, tangents):
    # The value goes through the function again, so that second derivatives are averaged too.
    return _with_mean_derivative(primals[0], axes), jax.lax.pmean(tangents[0], axes)


def _mean(value: Any, axes: tuple[Any, ...]) -> Any:
    # A value that is known not to vary is its own mean.
    axes = tuple(axis for axis in axes if not _is_tracked(axis) or axis in _varies_along(value))
    return jax.lax.pmean(value, axes) if axes else value


def _is_tracked(axis: Any) -> bool:
    """Says whether JAX knows which values vary along the axis, as in `shard_map` with `check_vma=True`."""
    return axis in _varies_along(jax.lax.axis_index(axis))


def _varies_along(x: Any) -> frozenset:
    return jax.typeof(x).mat.varying


def _check_bound(axes: tuple[Any, ...]) -> None:
    try:
        jax.lax.axis_size(axes)
    except NameError as error:
        raise ValueError(
            f"mean_over: the axis {axes} is not bound; call the function inside `jax.pmap`, `jax.vmap` or "
            f"`jax.shard_map` with that axis. Under plain `jax.jit` a mean over the batch needs no mean_over."
        ) from error


def _check_divides(path: Any, x: Any, num_microbatches: int) -> None:
    where = f"leaf {jax.tree_util.keystr(path) or 'at the root'} has shape {jnp.shape(x)}"
    if jnp.ndim(x) == 0 or jnp.shape(x)[0] % num_microbatches:
        raise ValueError(
            f"microbatched: the leading axis of `batch` must be a multiple of num_microbatches="
            f"{num_microbatches}; {where}."
        )
    sharding = jax.typeof(x).sharding
    names = sharding.spec[0] if sharding.spec else None
    names = names if isinstance(names, tuple) else () if names is None else (names,)
    num_devices = math.prod(sharding.mesh.shape[name] for name in names)
    if jnp.shape(x)[0] // num_microbatches % num_devices:
        raise ValueError(
            f"microbatched: on an explicit mesh a micro-batch must be a multiple of the {num_devices} devices that "
            f"the samples lie on; {where} and num_microbatches={num_microbatches}."
        )


def _widened(x: Any) -> Any:
    return x.astype(trees.widened(x.dtype)) if trees.is_inexact(x) else x


def _cast_back(x: Any, like: Any) -> Any:
    return x.astype(like.dtype) if trees.is_inexact(like) else x


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
