r"""The extra arguments of an update from an NNX model, and the step that hands them over.

A transform that needs more than the gradient takes `value_fn`, `value` and `grad` by keyword (see
:mod:`optax_igr`). In a Flax NNX model the loss also moves what is not a parameter: dropout draws a new
mask from a counter, BatchNorm updates its running statistics. :func:`value_fn` makes the pure function

.. math::
  L(\theta) = \text{loss\_fn}(\text{model}_{\theta, s}, \text{args}), \qquad s \text{ held fixed}

in which the remaining state :math:`s` is the one at the call of :func:`value_fn`. So every evaluation
draws the same mask, and none of them moves the model. :func:`train_step` takes that snapshot before the
gradient, so that the gradient and the extra evaluations are of one and the same function.

References:
  `Flax NNX <https://flax.readthedocs.io/en/stable/nnx_basics.html>`_
"""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

import optax_igr
from optax_igr.flax._extra_args import takes_extra_args


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


def train_step(
    model: Any,
    optimizer: nnx.Optimizer,
    loss_fn: Callable[..., Any],
    *args: Any,
    has_aux: bool = False,
    extra_args: Mapping[str, Any] | None = None,
) -> Any:
    """Takes one step: the gradient, the extra arguments `value`, `grad` and `value_fn`, the update.

    The model moves as in plain training: its running statistics and random counters once, however
    often a transform evaluates the loss. A transform that takes no extra arguments is given none.
    Call it inside `nnx.jit`, as in the example.

    Args:
      model: an NNX module; updated in place.
      optimizer: an `nnx.Optimizer` of the model; updated in place. Its `wrt` says what is trained.
      loss_fn: `(model, *args) -> scalar`, or `-> (scalar, aux)` with `has_aux`.
      *args: the batch, and whatever else the loss needs.
      has_aux: whether `loss_fn` returns auxiliary data beside the loss.
      extra_args: further extra arguments by name, as
        `{"full_value_fn": optax_igr.flax.value_fn(model, loss_fn, *everything)}`; an entry takes the
        place of the one made here. A line search of Optax refuses any that its `value_fn` does not
        name.

    Returns:
      What `loss_fn` returned, at the parameters before the step.

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
    """

    def loss_alone(*inputs):
        return loss_fn(*inputs)[0] if has_aux else loss_fn(*inputs)

    # Before the gradient, which moves the random counters.
    loss_of_params = value_fn(model, loss_alone, *args, wrt=optimizer.wrt)
    output, grads = nnx.value_and_grad(
        loss_fn,
        argnums=nnx.DiffState(0, optimizer.wrt),
        has_aux=has_aux,
        graph=True,
        graph_updates=True,
    )(model, *args)
    # Optax steps along the direction of ascent; JAX returns its conjugate.
    grads = jax.tree.map(jnp.conj, grads)
    if takes_extra_args(optimizer.tx):
        made = {
            "value": output[0] if has_aux else output,
            "grad": grads,
            "value_fn": loss_of_params,
        }
        optimizer.update(model, grads, **made | dict(extra_args or {}))
    else:
        optimizer.update(model, grads)
    return output


def _identity(params: Any) -> Any:
    return params
