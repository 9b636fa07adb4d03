"""Adapters for Flax: the extra arguments of an update, and what each weight is as an operator.

- :func:`train_step`: one training step of an NNX model or a Linen train state, with the extra arguments.
- :func:`value_fn`: the loss of an NNX model as a function of its parameters.
- :class:`TrainState`: a Linen train state whose updates take extra arguments.
- :func:`eval_params`: the parameters to evaluate, where training extrapolates them.
- :func:`operators`: each weight of an NNX or Linen model as an operator, for the norms.
"""

from optax_igr.flax.eval_params import eval_params
from optax_igr.flax.operators import operators
from optax_igr.flax.train_state import TrainState
from optax_igr.flax.train_step import train_step, value_fn

__all__ = ["TrainState", "eval_params", "operators", "train_step", "value_fn"]
