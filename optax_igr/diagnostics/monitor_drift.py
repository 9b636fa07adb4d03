r"""The drift of gradient descent from gradient flow, measured as it happens and without another gradient.

A step :math:`-h g` leaves gradient flow by the velocity :math:`-\frac{h}{2} H g`. The next gradient, which training
takes anyway, tells it: :math:`g_{t+1} = g_t - h H g_t + O(h^2)`, so

.. math::
  \frac{g_t - g_{t+1}}{2} = \frac{h}{2} H g_t + O(h^2), \qquad
  \frac{\langle g_t, g_t - g_{t+1} \rangle}{\|g_t\|^2} = h\,\frac{g_t^\top H g_t}{\|g_t\|^2} + O(h^2).

References:
  Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021
  Miyagawa, `Toward Equation of Motion for Deep Neural Networks: Continuous-time Gradient Descent and
  Discretization Error Analysis <https://arxiv.org/abs/2210.15898>`_, 2022
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import hyperparameters, transform, trees


class MonitorDriftState(NamedTuple):
    r"""What the last two gradients that were compared say.

    Attributes:
      count: the number of updates with a finite gradient.
      reference_gradient: the gradient that the next one to be compared is compared with.
      drift_norm: :math:`\|g_t - g_{t+k}\| / 2k`.
      relative_drift: the same over :math:`\|g_t\|`.
      scaled_curvature: :math:`\langle g_t, g_t - g_{t+k}\rangle / k\|g_t\|^2`, the curvature along the
        gradient in units of one over the learning rate.
    """

    count: ArrayLike
    reference_gradient: Any
    drift_norm: ArrayLike
    relative_drift: ArrayLike
    scaled_curvature: ArrayLike


def monitor_drift(*, interval: int = 1) -> optax.GradientTransformationExtraArgs:
    r"""Measures how far each step of gradient descent leaves gradient flow; passes the updates unchanged.

    .. math::
      \text{drift}_t = \frac{g_t - g_{t+1}}{2} = \frac{h}{2} H g_t + O(h^2)

    It costs one copy of the gradient and no gradient. It belongs first in a chain, where the incoming updates
    are the gradient; elsewhere pass the raw gradient as `grad`. Read the state by name, with `optax.tree.get(state,
    "relative_drift")`. All measures are zero until the second gradient, and a gradient that is not finite leaves
    them as they were.

    `scaled_curvature` is :math:`h\lambda` along the gradient: the modified flow describes the steps well while it is
    well below 1, along a direction that is above 1 the steps overshoot, and above 2 they diverge. With momentum the
    measures are those of the whole step: half the change of the gradient along it.

    The gradients must be those of one loss. On minibatches the difference holds the noise of two batches, which
    is mostly larger: `interval` divides it, since the drifts of k successive steps sum to half the difference of
    their first and last gradient. In float32 a drift below :math:`10^{-7}\|g\|` is rounding.

    Args:
      interval: k, how many steps lie between two gradients that are compared. The measures are means over these
        steps.

    Returns:
      A transform whose `update` uses `grad` if it is given.

    Raises:
      ValueError: if `interval` is not a positive integer.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optax_igr import diagnostics
      >>> optimizer = optax.chain(diagnostics.monitor_drift(), optax.sgd(0.1))
      >>> params = jnp.array([3.0, 4.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...   grads = jax.grad(lambda x: jnp.sum(x**2))(params)
      ...   updates, state = optimizer.update(grads, state)
      ...   params = optax.apply_updates(params, updates)
      >>> for name in ("drift_norm", "relative_drift", "scaled_curvature"):
      ...   print(f"{name} {optax.tree.get(state, name):.2f}")
      drift_norm 1.00
      relative_drift 0.10
      scaled_curvature 0.20

    References:
      Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021
    """
    hyperparameters.check_positive_integer("monitor_drift", "interval", interval)

    def init(params):
        reference = jax.tree.map(lambda x: jnp.zeros_like(x, trees.widened(x.dtype)), params)
        dtype = trees.squared_norm(reference).dtype
        return MonitorDriftState(
            jnp.zeros([], jnp.int32), reference, *(jnp.zeros([], dtype) for _ in range(3))
        )

    def update(updates, state, params=None, *, gradient, **unused):
        del params, unused
        reference = state.reference_gradient
        gradient = trees.cast_like(gradient, reference)
        measures = drift_measures(reference, gradient, interval)
        is_due = trees.all_finite(gradient) & (state.count % interval == 0)
        old = state[2:]
        measures = [
            jnp.where(is_due & (state.count > 0), new.astype(was.dtype), was)
            for new, was in zip(measures, old, strict=True)
        ]
        reference = jax.tree.map(lambda g, r: jnp.where(is_due, g, r), gradient, reference)
        count = jnp.where(
            trees.all_finite(gradient), optax.safe_increment(state.count), state.count
        )
        return updates, MonitorDriftState(count, reference, *measures)

    return transform.transform(
        "monitor_drift", init, update, state_like_params=("reference_gradient",)
    )


def drift_measures(
    earlier: Any, later: Any, num_steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Returns the mean drift's norm over the steps between two gradients, relative norm and :math:`h\lambda`.

    The last two are zero where the earlier gradient is.
    """
    difference = trees.subtract(earlier, later)
    squared_norm = trees.squared_norm(earlier)
    drift_norm = trees.norm(difference) / (2 * num_steps)
    is_zero = squared_norm == 0
    divisor = jnp.where(is_zero, 1, squared_norm)
    relative_drift = jnp.where(is_zero, 0, drift_norm / jnp.sqrt(divisor))
    scaled_curvature = jnp.divide(trees.inner_product(earlier, difference), num_steps * divisor)
    return drift_norm, relative_drift, scaled_curvature
