r"""Edge flow: center, direction and magnitude of the oscillation at the edge of stability.

The iterates of gradient descent are written as :math:`\theta_t = c + (-1)^t \rho u` with
:math:`\|u\| = 1`. In the time of steps,

.. math::
  \dot c = -\tfrac{h}{2} \big(\nabla L(c + \rho u) + \nabla L(c - \rho u)\big), \qquad
  \dot u = h \,(I - u u^\top) H(c)\, u, \qquad
  \dot\rho = \rho \log |1 - h \lambda|

with the curvature :math:`\lambda = u^\top (\nabla L(c + \rho u) - \nabla L(c - \rho u)) / 2\rho`
that the oscillation meets. The center descends the symmetrized loss, the direction turns to a
leading eigenvector, and the magnitude grows where the curvature is above :math:`2/h` and shrinks
below.

References:
  Marion, `Edge Flow: A Tractable and Predictive Continuous-Time Model for Gradient Descent at the
  Edge of Stability <https://arxiv.org/abs/2606.18080>`_, 2026
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_igr._core import derivatives, hyperparameters, trees
from optax_igr._core import top_eigenvectors as eigen
from optax_igr._core.hyperparameters import Scalar
from optax_igr.flows import _trajectory

_NAME = "edge_flow"
_INITIAL_PRODUCTS = 20
# One step multiplies the magnitude by |1 - hλ|, which is zero at hλ = 1: the oscillation of real
# training never dies out that far, as the turning of its direction stirs it.
_LEAST_FACTOR = 0.1


class EdgeFlowState(NamedTuple):
    """Where an edge flow stands.

    Attributes:
      params: the center.
      direction: the unit vector along which the iterates alternate.
      magnitude: half the distance of two iterates along it.
    """

    params: Any
    direction: Any
    magnitude: jax.Array


class EdgeFlowInfo(NamedTuple):
    r"""What an edge flow says at the start of a step.

    Attributes:
      loss: the loss at the center, up to terms of fourth order in the magnitude.
      averaged_loss: the mean of the loss at the two ends.
      averaged_squared_gradient: the mean of the squared gradient norms at the two ends.
      curvature: :math:`u^\top H u` at the center.
      sharpness_ratio: :math:`h\lambda/2` with that curvature; 1 at the edge.
      magnitude: :math:`\rho`.
    """

    loss: jax.Array
    averaged_loss: jax.Array
    averaged_squared_gradient: jax.Array
    curvature: jax.Array
    sharpness_ratio: jax.Array
    magnitude: jax.Array


class EdgeFlow(NamedTuple):
    """A flow with a state; see `CentralFlow`, whose `init`, `step` and `trajectory` these are."""

    init: Callable[[Any], EdgeFlowState]
    step: Callable[[EdgeFlowState], tuple[EdgeFlowState, EdgeFlowInfo]]
    trajectory: Callable[..., tuple[EdgeFlowState, EdgeFlowInfo, Any]]


def edge_flow(
    value_fn: derivatives.ValueFn,
    learning_rate: Scalar,
    *,
    correction: bool = True,
    substeps: int | None = None,
    initial_magnitude: Scalar | None = None,
    least_magnitude: Scalar = 1e-6,
    mask: Any = None,
    hvp: derivatives.Mode = "auto",
) -> EdgeFlow:
    r"""The flow that resolves the onset of the oscillation, which `central_flow` averages away.

    .. math::
      \dot c = -\tfrac{h}{2} \big(\nabla L(c + \rho u) + \nabla L(c - \rho u)\big), \qquad
      \dot u = h \,(I - u u^\top) H u, \qquad \dot\rho = \rho \log |1 - h \lambda|

    A step costs two gradients and one product with the Hessian, for each substep, with the default
    `correction` and one substep: 4.4 gradients in compiled FLOPs (multi-layer perceptron
    64-128-128-10 with tanh), of which the product takes 2.3. It costs another product otherwise. The
    flow follows one direction: where a second one reaches the edge, nothing holds that one, and
    `central_flow` is the flow to take.

    It was measured on five small networks on digits, one seed each. The table has the distance from the
    mean of the iterates after 300 to 400 steps; the first row is the recorded run of `python -m
    benchmarks edge`, the others are those of `central_flow`:

    ======================= ==== ============= ============ ============ =========
    network, loss           h    gradient flow central flow corrected    edge flow
    ======================= ==== ============= ============ ============ =========
    tanh 12, squared error  0.22 0.161         0.0798       0.0131       0.0095
    GELU 12, squared error  0.17 0.289         0.0703       0.0727       0.0474
    tanh 24, squared error  0.20 0.271         0.135        0.0405       0.057
    tanh 12, cross-entropy  0.48 0.225         0.513        0.337        0.0032
    GELU 12, cross-entropy  0.20 0.115         0.235        0.238        0.111
    ======================= ==== ============= ============ ============ =========

    With mean squared error, where training stays at the edge, it ended 5 to 17 times nearer than gradient
    flow; on one of the three the corrected central flow ended nearer still. With cross-entropy training
    passes above the edge for a short time. There it ended 70 times nearer on one network, and on the
    other no nearer than gradient flow (1.03 times).

    The equations are derived from the description in the paper's abstract. The steps are exact along
    u where the curvature is constant. With `correction` the discretization of gradient descent is
    kept across u, as in `central_flow`.

    Args:
      value_fn: `params -> scalar`, the loss on all data.
      learning_rate: the number `h`.
      correction: whether the discretization is kept across the direction.
      substeps: how many in the time of one step of the optimizer; None takes 1 with `correction` and 4
        without.
      initial_magnitude: ρ at the start; None takes half the first step along the direction.
      least_magnitude: below this ρ does not shrink, so that an oscillation can grow where the edge is
        reached late. It stands for the perturbations of real training, and sets when the onset comes:
        tenfold less delays it by as many steps as it takes to grow tenfold.
      mask: the parameters that move: None (all), a pytree prefix of booleans, or a function that makes
        one. An integer or boolean leaf stands still.
      hvp: the mode of the product: "auto", an exact one, or a difference.

    Returns:
      An `EdgeFlow(init, step, trajectory)`, as `central_flow` returns.

    Raises:
      ValueError: if an argument is out of its range, or if `value_fn` is not a function of its
        parameters alone.
      FloatingPointError: from `trajectory`, if the flow leaves the finite numbers.

    Examples:
      The curvature :math:`y` along :math:`x` passes 2/h = 2 before the oscillation has grown, and
      comes back to it:

      >>> import jax.numpy as jnp
      >>> from optax_igr import flows
      >>> value_fn = lambda p: p[1] * p[0] ** 2 / 2 - 0.01 * p[1]
      >>> flow = flows.edge_flow(value_fn, learning_rate=1.0, initial_magnitude=1e-3)
      >>> state, info, _ = flow.trajectory(jnp.array([0.0, 1.9]), num_steps=100)
      >>> print(f"between {info.sharpness_ratio.min():.1f} and {info.sharpness_ratio.max():.1f}")
      between 0.7 and 1.2

    References:
      Marion, `Edge Flow: A Tractable and Predictive Continuous-Time Model for Gradient Descent at the
      Edge of Stability <https://arxiv.org/abs/2606.18080>`_, 2026
    """
    hyperparameters.check_scalar(_NAME, "learning_rate", learning_rate, above=0)
    hyperparameters.check_choice(_NAME, "correction", correction, (True, False))
    hyperparameters.check_scalar(_NAME, "least_magnitude", least_magnitude, at_least=0)
    derivatives.check_mode(_NAME, hvp)
    if initial_magnitude is not None:
        hyperparameters.check_scalar(_NAME, "initial_magnitude", initial_magnitude, at_least=0)
    substeps = (1 if correction else 4) if substeps is None else substeps
    hyperparameters.check_positive_integer(_NAME, "substeps", substeps)
    duration = 1 / substeps

    def init(params):
        params, selected, fill = _trajectory.start(_NAME, value_fn, params, mask)

        @jax.jit
        def along(selected):
            def value(p):
                return value_fn(fill(p))

            product = derivatives.hessian_operator(value, selected, mode=hvp, name=_NAME)
            start = eigen.random_block(jax.random.key(0), selected, 1)
            vectors = eigen.top_eigenvectors(product, start, _INITIAL_PRODUCTS).vectors
            direction = jax.tree.map(lambda x: x[0], vectors)
            gradient = derivatives.gradient(value, selected)
            step = learning_rate / 2 * jnp.abs(trees.inner_product(direction, gradient))
            return direction, step

        direction, magnitude = along(selected)
        if initial_magnitude is not None:
            magnitude = jnp.asarray(initial_magnitude, magnitude.dtype)
        return EdgeFlowState(params, direction, jnp.maximum(magnitude, least_magnitude))

    def substep(state):
        selected, fill = trees.select(_NAME, state.params, mask)

        def value(p):
            return value_fn(fill(p))

        direction, magnitude = state.direction, state.magnitude
        shift = trees.scale(magnitude, direction)
        one, ahead = _trajectory.value_and_gradient(value, trees.add(selected, shift))
        other, behind = _trajectory.value_and_gradient(value, trees.subtract(selected, shift))
        mean = trees.scale(0.5, trees.add(ahead, behind))
        bent = derivatives.hessian_vector_product(value, selected, direction, mode=hvp, name=_NAME)
        curvature = trees.inner_product(direction, bent)

        # The curvature across the whole oscillation holds what the one at its center does not: a
        # quartic loss stops the growth. Of a small oscillation the difference is rounding.
        across = trees.inner_product(direction, trees.subtract(ahead, behind)) / (2 * magnitude)
        epsilon = jnp.finfo(magnitude.dtype).eps
        resolved = magnitude > 1e3 * epsilon * (1 + trees.norm(selected))
        across = jnp.where(resolved, across, curvature)
        factor = jnp.maximum(jnp.abs(1 - learning_rate * across), _LEAST_FACTOR)
        following = jnp.maximum(magnitude * factor**duration, least_magnitude)

        # Euler's step is the optimizer's own at a duration of one; shorter ones lack, or without
        # the correction exceed, a multiple of HG.
        missing = (0.5 if correction else 0.0) - duration / 2
        across_mean = mean
        if missing:
            product = derivatives.hessian_vector_product(
                value, selected, mean, mode=hvp, name=_NAME
            )
            across_mean = trees.add(mean, trees.scale(missing * learning_rate, product))
        rate = learning_rate * curvature
        flat = jnp.abs(rate) < jnp.finfo(magnitude.dtype).eps
        relaxed = jnp.where(flat, duration, -jnp.expm1(-rate * duration) / jnp.where(flat, 1, rate))
        along = relaxed * trees.inner_product(direction, mean)
        along = along - duration * trees.inner_product(direction, across_mean)
        velocity = trees.add(trees.scale(duration, across_mean), trees.scale(along, direction))
        params = trees.subtract(selected, trees.scale(learning_rate, velocity))

        turn = trees.subtract(bent, trees.scale(curvature, direction))
        direction = trees.add(direction, trees.scale(relaxed * learning_rate, turn))
        direction = trees.cast_like(trees.unit(direction)[0], selected)

        # The gradients have the values at the two ends; one at the center would cost a third pass.
        averaged_loss = (one + other) / 2
        info = EdgeFlowInfo(
            loss=averaged_loss - across * magnitude**2 / 2,
            averaged_loss=averaged_loss,
            averaged_squared_gradient=(trees.squared_norm(ahead) + trees.squared_norm(behind)) / 2,
            curvature=curvature,
            sharpness_ratio=learning_rate * curvature / 2,
            magnitude=magnitude,
        )
        return EdgeFlowState(fill(params), direction, following), info

    step = jax.jit(lambda state: _trajectory.first_of(lambda s, _: substep(s), state, substeps))
    run = functools.partial(_trajectory.run, _NAME, init, step, EdgeFlowState)
    return EdgeFlow(init, step, run)
