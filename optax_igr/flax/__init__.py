"""Adapters for Flax: the extra arguments of an update, and what each weight is as an operator.

- :func:`value_fn` and :func:`train_step`: the extra arguments from an NNX model.
- :class:`TrainState`: a Linen train state that takes them.
- :func:`operators`: each weight of an NNX or Linen model as an operator, for the norms.
"""

from optax_igr.flax.operators import operators
from optax_igr.flax.train_state import TrainState
from optax_igr.flax.train_step import train_step, value_fn

__all__ = ["TrainState", "operators", "train_step", "value_fn"]
