r"""The decay of the spectral norm, by power iteration with the singular vectors kept from step to step.

.. math::
  u \leftarrow \frac{W v}{\|W v\|}, \qquad v \leftarrow \frac{W^* u}{\|W^* u\|}, \qquad
  \nabla \tfrac{1}{2} \|W\|_2^2 = \sigma u v^*

One such step an update follows a weight that moves slowly, at the cost of a few products with one vector.

References:
  Yoshida, Miyato, `Spectral Norm Regularization for Improving the Generalizability of Deep Learning
  <https://arxiv.org/abs/1705.10941>`_, 2017
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import hyperparameters, paths, trees
from optax_igr._core.transform import transform
from optax_igr.operators import leaves, power_iteration

_NAME = "add_spectral_decay"


class SpectralDecayState(NamedTuple):
    """The number of updates, and for each operator its spectral norm and right singular vector so far.

    Both have the structure of the parameters, with None where a leaf is left alone. A norm by power iteration is at
    most the norm.
    """

    count: ArrayLike
    spectral_norms: Any
    singular_vectors: Any


def add_spectral_decay(
    coefficient: optax.ScalarOrSchedule,
    *,
    power_steps: int = 1,
    operator: Any = None,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of half the squared spectral norm of every weight.

    .. math:: g \leftarrow g + \nabla \tfrac{\mu}{2} \|W\|_2^2 = g + \mu \sigma u v^*

    It shrinks the largest singular value alone, until it meets the second. The singular vectors converge over the
    first updates, at the rate :math:`(\sigma_2/\sigma_1)^2` a power step, and follow the weight from there;
    :func:`optax_igr.add_schatten_decay` needs no vectors and bounds the norm from above, for more work. Where it
    stands in the chain decides whether it is coupled or decoupled, as there.

    Args:
      coefficient: :math:`\mu`, a number or a schedule.
      power_steps: of power iteration an update.
      operator: what each weight is, as in :func:`optax_igr.add_schatten_decay`. For a convolution the iteration
        runs with the convolution itself, whatever its padding.
      mask: a pytree prefix of booleans, or a function that makes one; a leaf where it is False is left alone.

    Returns:
      A transform whose `update` needs `params`. Its state holds `spectral_norms`, which `optax.tree.get` finds.

    Raises:
      ValueError: for a bad argument, or a leaf of more than two axes without an operator.

    .. note::
      Inside `optax.inject_hyperparams`, name `power_steps` in `static_args`, and an `operator` or a `mask` that is
      a function.

    Examples:
      Decoupled decay, and coupled decay, with Adam:

      >>> import jax.numpy as jnp, optax, optax_igr
      >>> decay = optax_igr.add_spectral_decay(1e-2)
      >>> decoupled = optax.chain(optax.scale_by_adam(), decay, optax.scale_by_learning_rate(1e-3))
      >>> coupled = optax.chain(decay, optax.adam(1e-3))

      The decay alone:

      >>> optimizer = optax.chain(optax_igr.add_spectral_decay(1.0, power_steps=50), optax.sgd(0.1))
      >>> params = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...     updates, state = optimizer.update(jnp.zeros_like(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     norm = optax.tree.get(state, "spectral_norms")
      ...     print([f"{p:.3f}" for p in jnp.diag(params)], f"norm before the step {norm:.3f}")
      ['2.700', '2.000', '1.000'] norm before the step 3.000
      ['2.430', '2.000', '1.000'] norm before the step 2.700
      ['2.187', '2.000', '1.000'] norm before the step 2.430

    References:
      Yoshida, Miyato, `Spectral Norm Regularization for Improving the Generalizability of Deep Learning
      <https://arxiv.org/abs/1705.10941>`_, 2017
    """
    coefficient = hyperparameters.checked(_NAME, "coefficient", coefficient)
    hyperparameters.check_positive_integer(_NAME, "power_steps", power_steps)

    def init(params):
        # A box says how its array is laid out over devices. That fits neither a norm nor a singular vector.
        params = paths.unboxed(params)
        chosen = leaves.resolve(_NAME, params, operator, mask)
        zeros, vectors = (
            leaves.as_state(leaves.map_operators(function, chosen, params))
            for function in (leaves.zero_norm, power_iteration.initial_vector)
        )
        return SpectralDecayState(jnp.zeros([], jnp.int32), zeros, vectors)

    def update(updates, state, params, **unused):
        del unused
        expected = jax.eval_shape(init, params).singular_vectors
        trees.check_state_like(_NAME, expected, singular_vectors=state.singular_vectors)
        chosen = leaves.resolve(_NAME, params, operator, mask)
        count = optax.safe_increment(state.count)
        if not jax.tree.leaves(chosen):
            return updates, state._replace(count=count)
        triples = leaves.map_operators(
            lambda choice, weight, vector: power_iteration.iterate(
                choice, weight, vector, power_steps
            ),
            chosen,
            params,
            state.singular_vectors,
        )
        gradient, measured, vectors = leaves.unzip(triples, chosen, 3)
        factor = hyperparameters.value_at(coefficient, state.count)
        updates = leaves.add_decay(updates, factor, gradient)
        return updates, SpectralDecayState(count, measured, vectors)

    return transform(_NAME, init, update, needs=("params",))
