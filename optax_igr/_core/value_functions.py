"""Makers of `value_fn` for the places where a wrapper changes what it means."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from optax_igr._core import hyperparameters
from optax_igr._core.hyperparameters import Scalar

ValueFn = Callable[[chex.ArrayTree], jax.Array]


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

    Args:
      loss_fn: `(params, microbatch) -> scalar`, the mean over its samples.
      batch: a pytree of arrays whose leading axis, the samples, is a multiple of `num_microbatches`.
      num_microbatches: k.

    Returns:
      `value_fn` with :math:`L`, and `microbatch_value_fn` with :math:`(\theta, b) \mapsto L_b`.

    Raises:
      ValueError: where the leading axis does not divide.

    Examples:
      >>> import jax.numpy as jnp, optax_igr
      >>> loss_fn = lambda w, x: jnp.mean((w - x) ** 2)
      >>> value_fn, microbatch_value_fn = optax_igr.microbatched(loss_fn, jnp.arange(4.0), 2)
      >>> print(value_fn(0.0), microbatch_value_fn(0.0, 0), microbatch_value_fn(0.0, 1))
      3.5 0.5 6.5

    References:
      Chen et al, `Training Deep Nets with Sublinear Memory Cost <https://arxiv.org/abs/1604.06174>`_, 2016
    """
    hyperparameters.check_positive_integer("microbatched", "num_microbatches", num_microbatches)
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        if jnp.ndim(x) == 0 or jnp.shape(x)[0] % num_microbatches:
            raise ValueError(
                f"microbatched: the leading axis of `batch` must be a multiple of num_microbatches="
                f"{num_microbatches}; leaf {jax.tree_util.keystr(path) or 'at the root'} has shape "
                f"{jnp.shape(x)}."
            )
    stacked = jax.tree.map(
        lambda x: jnp.reshape(x, (num_microbatches, -1, *jnp.shape(x)[1:])), batch
    )

    def microbatch_value_fn(params, index):
        return loss_fn(params, jax.tree.map(lambda x: x[index], stacked))

    def value_fn(params):
        # Without the checkpoint the backward pass would keep every micro-batch's activations.
        one = jax.checkpoint(loss_fn)
        values = jax.lax.map(lambda microbatch: one(params, microbatch), stacked)
        return jnp.mean(values)

    return value_fn, microbatch_value_fn


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
