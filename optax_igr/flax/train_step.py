r"""The extra arguments of an update from a Flax model, and the step that hands them over.

A transform that needs more than the gradient takes `value_fn`, `value` and `grad` by keyword (see
:mod:`optax_igr`). In a Flax NNX model the loss also moves what is not a parameter: dropout draws a new
mask from a counter, BatchNorm updates its running statistics. :func:`value_fn` makes the pure function

.. math::
  L(\theta) = \text{loss\_fn}(\text{model}_{\theta, s}, \text{args}), \qquad s \text{ held fixed}

in which the remaining state :math:`s` is the one at the call of :func:`value_fn`. So every evaluation
draws the same mask, and none of them moves the model. :func:`train_step` takes that snapshot before the
gradient, so that the gradient and the extra evaluations are of one and the same function. A Linen loss is a
function of the parameters already: :func:`train_step` takes it as it stands.

References:
  `Flax NNX <https://flax.readthedocs.io/en/stable/nnx_basics.html>`_
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

import optax_igr
from optax_igr.flax._extra_args import (
    explained_in_multi_steps,
    takes_extra_args,
    without_microbatch,
)
from optax_igr.flax.train_state import with_bound


def value_fn(
    model: Any, loss_fn: Callable[..., chex.Array], *args: Any, wrt: Any = nnx.Param
) -> Callable[[chex.ArrayTree], chex.Array]:
    """Returns the loss as a pure function of the parameters of an NNX model.

    Everything else is held as it is at this call: running statistics, random counters (those of an
    `nnx.Rngs` among `args` too), and the parameters that `wrt` leaves out. To see the dropout mask of
    the gradient, call this before the gradient is taken; :func:`train_step` does.

    Args:
      model: an NNX module.
      loss_fn: `(model, *args) -> scalar`, the mean over the batch.
      *args: the batch, and whatever else the loss needs.
      wrt: the filter of the parameters, the same as that of the `nnx.Optimizer`.

    Returns:
      `params -> scalar`. It takes what `nnx.Optimizer.update` hands to a transform, and equally
      `nnx.state(model, wrt)`. It needs no :func:`optax_igr.fill_masked` inside `optax.masked`
      and `optax.partition`; give these `mask_compatible_extra_args=True`, so that they mask `grad`.

    Raises:
      ValueError: from the function, where its argument has other parameters than `wrt` selects.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_igr.flax
      >>> from flax import nnx
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optax.lbfgs(), wrt=nnx.Param)
      >>> x, y = jnp.eye(2), jnp.ones((2, 1))
      >>> loss_fn = lambda model, x, y: jnp.mean((model(x) - y) ** 2)
      >>> for _ in range(5):
      ...     loss_of_params = optax_igr.flax.value_fn(model, loss_fn, x, y)
      ...     value, grad = nnx.value_and_grad(loss_fn)(model, x, y)
      ...     _ = optimizer.update(model, grad, value=value, grad=grad, value_fn=loss_of_params)
      >>> print(f"{loss_fn(model, x, y):.1f}")
      0.0
    """
    # One split of both, so that a variable that model and args share stays shared in the copies.
    graphdef, state = nnx.split((model, args), graph=True)
    # The map makes new variables: those of the split are the model's own, which will move.
    state = jax.tree.map(lambda x: x, state)
    current = nnx.as_pure(nnx.state(model, wrt, graph=True))

    complete = optax_igr.fill_masked(_identity, current)

    def loss_of_params(params: chex.ArrayTree) -> chex.Array:
        try:
            params = complete(nnx.as_pure(params))
        except ValueError as error:
            raise ValueError(
                "value_fn: `params` must have the structure of `nnx.state(model, wrt)`; give "
                f"`value_fn` the `wrt` of the optimizer: {error}"
            ) from error
        # copy=True makes variables of the present trace, which BatchNorm may then write to.
        copied_model, copied_args = nnx.merge(graphdef, state, copy=True)
        nnx.update(copied_model, params)
        return loss_fn(copied_model, *copied_args)

    return loss_of_params


@functools.singledispatch
def train_step(
    model: Any,
    optimizer: Any,
    loss_fn: Callable[..., Any],
    *args: Any,
    has_aux: bool = False,
    extra_args: Mapping[str, Any] | None = None,
    axis_name: Any = None,
) -> Any:
    """Takes one step: the gradient, the extra arguments `value`, `grad` and `value_fn`, the update.

    - NNX: `output = train_step(model, optimizer, loss_fn, *args)`, inside `nnx.jit`. The model moves as in plain
      training: its running statistics and random counters once, however often a transform evaluates the loss.
    - Linen: `state, output = train_step(state, loss_fn, *args)`, inside `jax.jit`. The loss is a function of
      `state.params`; dropout keys and running statistics that it closes over are those of the gradient in every
      evaluation. New statistics come back through `has_aux`.

    A transform that takes no extra arguments is given none. Inside `optax.MultiSteps` the transforms are given no
    `value` and no `grad`, which would be those of the last micro-batch: the incoming updates are the mean gradient.
    `value_fn` is the loss of the last micro-batch there, so prefer :func:`optax_igr.microbatched` for transforms
    that evaluate it.

    Args:
      model: an NNX module, updated in place. Or a Linen train state: :class:`TrainState`, or Flax's own.
      optimizer: an `nnx.Optimizer` of the model, or an `nnx.ModelAndOptimizer`; updated in place. Its `wrt` says what
        is trained. A Linen state holds its own optimizer.
      loss_fn: `(model, *args) -> scalar`, or `-> (scalar, aux)` with `has_aux`; for Linen `(params, *args) -> ...`.
      *args: the batch, and whatever else the loss needs.
      has_aux: whether `loss_fn` returns auxiliary data beside the loss.
      extra_args: further extra arguments by name, as
        `{"full_value_fn": optax_igr.flax.value_fn(model, loss_fn, *everything)}`; an entry takes the
        place of the one made here. A line search of Optax refuses any that its `value_fn` does not
        name.
      axis_name: the axis of replicas under `pmap`, `vmap` or `shard_map`. Loss and gradient are then their means
        over it, as by :func:`optax_igr.mean_over`, and need no `lax.pmean` of their own.

    Returns:
      What `loss_fn` returned, at the parameters before the step; for Linen a pair of the new state and that.

    Raises:
      ValueError: inside `optax.MultiSteps`, where a transform requires `value` or `grad`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_igr.flax
      >>> from flax import nnx
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optax.lbfgs(), wrt=nnx.Param)
      >>> @nnx.jit
      ... def step(model, optimizer, x, y):
      ...     loss_fn = lambda model, x, y: jnp.mean((model(x) - y) ** 2)
      ...     return optax_igr.flax.train_step(model, optimizer, loss_fn, x, y)
      >>> for _ in range(6):
      ...     loss = step(model, optimizer, jnp.eye(2), jnp.ones((2, 1)))
      >>> print(f"{loss:.1f}")
      0.0

      Linen, with BatchNorm and dropout:

      >>> import jax
      >>> from flax import linen
      >>> class Network(linen.Module):
      ...     @linen.compact
      ...     def __call__(self, x):
      ...         x = linen.BatchNorm(use_running_average=False)(linen.Dense(4)(x))
      ...         return linen.Dense(1)(linen.Dropout(0.1, deterministic=False)(x))
      >>> class State(optax_igr.flax.TrainState):
      ...     batch_stats: dict
      >>> network, x, y = Network(), jnp.eye(4), jnp.arange(4.0)[:, None]
      >>> tx = optax.chain(optax_igr.add_gradient_penalty(0.01), optax.adam(0.03))
      >>> state = State.create(apply_fn=network.apply, tx=tx, **network.init(jax.random.key(0), x))
      >>> @jax.jit
      ... def step(state, x, y, key):
      ...     def loss_fn(params):
      ...         outputs, changes = network.apply(
      ...             {"params": params, "batch_stats": state.batch_stats}, x,
      ...             mutable=["batch_stats"], rngs={"dropout": key})
      ...         return jnp.mean((outputs - y) ** 2), changes
      ...     state, (loss, changes) = optax_igr.flax.train_step(state, loss_fn, has_aux=True)
      ...     return state.replace(batch_stats=changes["batch_stats"]), loss
      >>> for key in jax.random.split(jax.random.key(1), 100):
      ...     state, loss = step(state, x, y, key)
      >>> print(loss < 0.5)
      True
    """

    def loss_alone(*inputs):
        return loss_fn(*inputs)[0] if has_aux else loss_fn(*inputs)

    def mean_loss(*inputs):
        result = loss_fn(*inputs)
        if axis_name is None:
            return result
        if has_aux:
            return jax.lax.pmean(result[0], axis_name), result[1]
        return jax.lax.pmean(result, axis_name)

    if isinstance(optimizer, nnx.ModelAndOptimizer) and model is not optimizer.model:
        raise ValueError(
            "train_step: `model` must be the one that `optimizer`, a ModelAndOptimizer, holds."
        )
    # Before the gradient, which moves the random counters.
    loss_of_params = value_fn(model, loss_alone, *args, wrt=optimizer.wrt)
    output, grads = nnx.value_and_grad(
        mean_loss,
        argnums=nnx.DiffState(0, optimizer.wrt),
        has_aux=has_aux,
        graph=True,
        graph_updates=True,
    )(model, *args)
    # Optax steps along the direction of ascent; JAX returns its conjugate.
    grads = jax.tree.map(jnp.conj, grads)
    if axis_name is not None:
        # Where JAX does not track what varies, the gradient of the mean loss is that of this replica.
        grads = jax.lax.pmean(grads, axis_name)
        loss_of_params = optax_igr.mean_over(axis_name, loss_of_params)
    given = {}
    if takes_extra_args(optimizer.tx):
        made = {
            "value": output[0] if has_aux else output,
            "grad": grads,
            "value_fn": loss_of_params,
        }
        made = without_microbatch(optimizer.tx, optimizer.opt_state, made)
        given = made | dict(extra_args or {})
    with explained_in_multi_steps(optimizer.tx, optimizer.opt_state):
        if isinstance(optimizer, nnx.ModelAndOptimizer):
            optimizer.update(grads, **given)
        else:
            optimizer.update(model, grads, **given)
    return output


@train_step.register
def _(
    state: train_state.TrainState,
    loss_fn: Callable[..., Any],
    *args: Any,
    has_aux: bool = False,
    extra_args: Mapping[str, Any] | None = None,
    axis_name: Any = None,
) -> Any:
    if axis_name is not None:
        loss_fn = optax_igr.mean_over(axis_name, loss_fn, has_aux=has_aux)
    output, grads = jax.value_and_grad(loss_fn, has_aux=has_aux)(state.params, *args)
    grads = jax.tree.map(jnp.conj, grads)
    if not takes_extra_args(state.tx):
        return state.apply_gradients(grads=grads), output
    # The collection that is overwritten by its gradient (float8 scales) is no parameter of the optimizer.
    overwrites = OVERWRITE_WITH_GRADIENT in state.params

    def loss_of_params(params):
        params = {**state.params, "params": params} if overwrites else params
        result = loss_fn(params, *args)
        return result[0] if has_aux else result

    made = {
        "value": output[0] if has_aux else output,
        "grad": grads["params"] if overwrites else grads,
        "value_fn": loss_of_params,
    }
    made = without_microbatch(state.tx, state.opt_state, made)
    bound = with_bound(state, made, extra_args)
    with explained_in_multi_steps(state.tx, state.opt_state):
        return bound.apply_gradients(grads=grads, tx=state.tx), output


def _identity(params: Any) -> Any:
    return params
