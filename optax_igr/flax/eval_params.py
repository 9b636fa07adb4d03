"""The parameters of a Flax model for evaluation, where the training loop holds extrapolated ones."""

from typing import Any

from flax import nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT

import optax_igr


def eval_params(optimizer: Any, model: Any = None) -> Any:
    r"""Returns the parameters that :func:`optax_igr.extrapolated_gradient_penalty` trains.

    .. math:: \theta_t = y_t - 2\mu\,g_{t-1}

    - NNX: `eval_params(optimizer, model)`, to be put into a copy of the model.
    - Linen: `eval_params(state)`, in the place of `state.params`.
    - Everywhere else: :func:`optax_igr.extrapolation_eval_params`.

    .. note::
      Running statistics (BatchNorm) were gathered at y. Recompute them at :math:`\theta`: some batches through the
      copy in training mode, as in the example; for Linen `apply` with `mutable=["batch_stats"]`.

    Args:
      optimizer: an `nnx.Optimizer` or `nnx.ModelAndOptimizer`; or a Linen train state.
      model: the NNX module of the optimizer; a `ModelAndOptimizer` holds its own.

    Returns:
      A tree like `nnx.state(model, optimizer.wrt)` of plain arrays; for Linen, like `state.params`.

    Raises:
      ValueError: where the optimizer holds no extrapolated_gradient_penalty, or `model` is missing.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_igr.flax
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
      >>> tx = optax_igr.extrapolated_gradient_penalty(optax.sgd(0.1), coefficient=0.01)
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> loss_fn = lambda model, x: jnp.mean((model(x) - 1) ** 2)
      >>> batches = [jnp.eye(2), jnp.ones((2, 2)) - jnp.eye(2)]
      >>> for x in batches:
      ...     loss = optax_igr.flax.train_step(model, optimizer, loss_fn, x)
      >>> evaluated = nnx.clone(model)
      >>> nnx.update(evaluated, optax_igr.flax.eval_params(optimizer, model))
      >>> for x in batches:  # as many as the momentum of BatchNorm remembers
      ...     _ = evaluated(x)
      >>> evaluated.eval()
    """
    if isinstance(optimizer, nnx.Optimizer):
        if model is None and isinstance(optimizer, nnx.ModelAndOptimizer):
            model = optimizer.model
        if model is None:
            raise ValueError(
                "eval_params: an nnx.Optimizer needs `model`: eval_params(optimizer, model)."
            )
        params = nnx.as_pure(nnx.state(model, optimizer.wrt, graph=True))
        return optax_igr.extrapolation_eval_params(nnx.as_pure(optimizer.opt_state), params)
    if not hasattr(optimizer, "opt_state") or not hasattr(optimizer, "params"):
        raise ValueError(
            f"eval_params: expected an nnx.Optimizer or a Linen train state, got {type(optimizer).__name__}; "
            f"elsewhere call optax_igr.extrapolation_eval_params(opt_state, params)."
        )
    params = optimizer.params
    if OVERWRITE_WITH_GRADIENT in params:
        trained = optax_igr.extrapolation_eval_params(optimizer.opt_state, params["params"])
        return {**params, "params": trained}
    return optax_igr.extrapolation_eval_params(optimizer.opt_state, params)
