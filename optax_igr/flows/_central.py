r"""The central flow of any optimizer that preconditions averaged gradients: state and substep.

In the coordinates :math:`\tilde\theta = P^{1/2} \theta` the Hessian is :math:`\tilde H = P^{-1/2} H
P^{-1/2}`, with the learning rate in :math:`P`. Its critical eigenvectors are :math:`v_i`, with
eigenvalues :math:`a_i` near the threshold :math:`\tau`. The optimizer oscillates about its average
with the covariance :math:`\tilde\Sigma = \sum_{ij} X_{ij} v_i v_j^\top`, which moves the average by

.. math:: \dot{\tilde\theta} = -S \big(\tilde g + \tfrac12 \sum_{ij} X_{ij} \tilde D_{ij}\big),
  \qquad \tilde D_{ij} = P^{-1/2}\, \nabla_\theta (v_i^\top \tilde H v_j)

with the sum :math:`S` of the weights of the past gradients. X is the smallest matrix that keeps the
critical eigenvalues at or below the threshold at the end of a substep.

References:
  Cohen et al, `Understanding Optimization in Deep Learning with Central Flows
  <https://arxiv.org/abs/2410.24206>`_, 2025
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_igr._core import derivatives, hyperparameters, stability, trees
from optax_igr._core import top_eigenvectors as eigen
from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.trees import Tree
from optax_igr.flows import _averages, _complementarity, _critical, _trajectory

# From a random block to the largest eigenvalues of a network: later steps only follow them.
_INITIAL_PRODUCTS = 24


class CentralFlowState(NamedTuple):
    """Where a central flow stands.

    Attributes:
      params: the average about which the optimizer oscillates.
      count: the number of steps taken.
      momentum: the average of past gradients; None without momentum.
      second_moment: the average of past squared gradients; None without a preconditioner.
      directions: the leading eigenvectors of the preconditioned Hessian, a tree like the parameters
        with one more axis, the first.
    """

    params: Any
    count: jax.Array
    momentum: Any
    second_moment: Any
    directions: Any


class CentralFlowInfo(NamedTuple):
    r"""What a central flow says at the start of a step; `k` is the number of directions.

    Attributes:
      loss: the loss L at the average.
      averaged_loss: :math:`L + \frac{1}{2} \mathrm{tr}(H\Sigma)`, the loss that the optimizer has in
        the mean over its oscillation: L + tr Σ / h for gradient descent.
      averaged_squared_gradient: :math:`\|\nabla L\|^2 + \mathrm{tr}(H\Sigma H)`.
      eigenvalues: the largest of the Hessian, preconditioned but without the learning rate, of
        shape `(k,)`.
      residuals: how far each is from an eigenvalue, at most.
      covariance_eigenvalues: those of the covariance Σ of the oscillation, of shape `(k,)`.
      num_critical: the number of directions at the edge of stability.
      sharpness_ratio: the largest eigenvalue over its threshold; 1 at the edge.
      excess: by how much the largest eigenvalue will pass the threshold at the end of the substep,
        relative to it: above rounding where no covariance can hold it (on a quadratic).
    """

    loss: jax.Array
    averaged_loss: jax.Array
    averaged_squared_gradient: jax.Array
    eigenvalues: jax.Array
    residuals: jax.Array
    covariance_eigenvalues: jax.Array
    num_critical: jax.Array
    sharpness_ratio: jax.Array
    excess: jax.Array


class CentralFlow(NamedTuple):
    """A flow with a state.

    Attributes:
      init: `params -> state`.
      step: `state -> (state, info)`, the time of one step of the optimizer.
      trajectory: `(params or state, num_steps, observe=None) -> (state, info, observed)`, many steps
        in one compiled scan. The leaves of `info`, and of what `observe(params)` returns at the start
        of each step, have a leading axis of length `num_steps`.
    """

    init: Callable[[Any], CentralFlowState]
    step: Callable[[CentralFlowState], tuple[CentralFlowState, CentralFlowInfo]]
    trajectory: Callable[..., tuple[CentralFlowState, CentralFlowInfo, Any]]


class Settings(NamedTuple):
    """What every central flow is made from; see `central_flow` for the meaning of each."""

    name: str
    value_fn: derivatives.ValueFn
    learning_rate: Scalar
    gradients: _averages.GradientAverage
    preconditioner: _averages.Preconditioner | None
    num_directions: int
    threshold: Scalar
    correction: bool
    substeps: int | None
    krylov_steps: int
    mask: Any
    hvp: derivatives.Mode


def make(settings: Settings) -> CentralFlow:
    """Returns the flow, after a check of its arguments."""
    name = settings.name
    hyperparameters.check_scalar(name, "learning_rate", settings.learning_rate, above=0)
    hyperparameters.check_positive_integer(name, "num_directions", settings.num_directions)
    hyperparameters.check_scalar(name, "threshold", settings.threshold, above=0)
    hyperparameters.check_choice(name, "correction", settings.correction, (True, False))
    hyperparameters.check_positive_integer(name, "krylov_steps", settings.krylov_steps)
    derivatives.check_mode(name, settings.hvp)
    if settings.substeps is None:
        settings = settings._replace(substeps=1 if settings.correction else 4)
    hyperparameters.check_positive_integer(name, "substeps", settings.substeps)
    init = functools.partial(_init, settings)
    step = jax.jit(functools.partial(_step, settings))
    run = functools.partial(_trajectory.run, name, init, step, CentralFlowState)
    return CentralFlow(init, step, run)


def _init(settings: Settings, params: Tree) -> CentralFlowState:
    name = settings.name
    params, selected, fill = _trajectory.start(name, settings.value_fn, params, settings.mask)
    size = sum(x.size for x in jax.tree.leaves(selected))
    if settings.num_directions > size:
        raise ValueError(
            f"{name}: `num_directions` = {settings.num_directions} is more than the number of "
            f"parameters that move, {size}."
        )
    gradients, preconditioner = settings.gradients, settings.preconditioner
    momentum = gradients.init(selected)
    moment = None if preconditioner is None else preconditioner.init(selected)

    @jax.jit
    def directions(selected, moment):
        def value(p):
            return settings.value_fn(fill(p))

        gradient = derivatives.gradient(value, selected)
        _, half = _inverse_root(settings, moment, gradient, 0, 1 / settings.substeps)
        product = _product(settings, value, selected, half)
        k = settings.num_directions
        steps = max(_INITIAL_PRODUCTS // k, 2)
        start = eigen.random_block(jax.random.key(0), selected, k)
        return eigen.top_eigenvectors(product, start, steps).vectors

    count = jnp.zeros([], jnp.int32)
    return CentralFlowState(params, count, momentum, moment, directions(selected, moment))


def _step(settings: Settings, state: CentralFlowState):
    substeps = settings.substeps
    duration = 1 / substeps

    def substep(inner, index):
        return _substep(settings, inner, inner.count + index * duration, duration)

    state, info = _trajectory.first_of(substep, state, substeps)
    return state._replace(count=state.count + 1), info


def _inverse_root(settings, moment, gradient, time, duration):
    r"""Returns the second moment with the present gradient in it, and :math:`P^{-1/2}`."""
    preconditioner = settings.preconditioner
    if preconditioner is None:
        root = jnp.sqrt(settings.learning_rate)
        return None, jax.tree.map(
            lambda g: jnp.full(g.shape, root, jnp.finfo(g.dtype).dtype), gradient
        )
    moment = preconditioner.add(moment, preconditioner.square(gradient), duration)
    divisor = preconditioner.divisor(moment, time + duration)
    return moment, jax.tree.map(lambda d: jnp.sqrt(settings.learning_rate / d), divisor)


def _product(settings, value, selected, half):
    raw = derivatives.hessian_operator(value, selected, mode=settings.hvp, name=settings.name)
    return lambda vector: _critical.times(half, raw(_critical.times(half, vector)))


def _substep(settings: Settings, state: CentralFlowState, time, duration):
    gradients, preconditioner = settings.gradients, settings.preconditioner
    limit = stability.stability_threshold(
        gradients.momentum, gradients.nesterov, gradients.averaged
    )
    selected, fill = trees.select(settings.name, state.params, settings.mask)

    def value(p):
        return settings.value_fn(fill(p))

    loss, gradient = _trajectory.value_and_gradient(value, selected)
    moment, half = _inverse_root(settings, state.second_moment, gradient, time, duration)
    product = _product(settings, value, selected, half)
    top = eigen.top_eigenvectors(product, state.directions, settings.krylov_steps)
    curvature, vectors = top.values, top.vectors
    critical = curvature > settings.threshold * limit

    # The optimizer's own direction, and what relaxes along the critical eigenvectors in its place:
    # its oscillation there is in the covariance, and would be counted twice.
    momentum, direction = gradients.add(state.momentum, gradient, time, duration)
    slope, direction = _critical.times(half, gradient), _critical.times(half, direction)
    along = eigen.gram(vectors, _critical.one(slope))[:, 0]
    excess_order = gradients.missing_order(duration, settings.correction)
    if excess_order is not None:
        bent = product(direction)
        bent = _critical.without(vectors, critical, bent)
        direction = trees.add(direction, trees.scale(excess_order, bent))
    rate = gradients.total
    relaxed = jnp.where(critical, -jnp.expm1(-rate * curvature * duration), 0)
    relaxed = relaxed / jnp.where(critical, curvature, 1)
    own = jnp.where(critical, eigen.gram(vectors, _critical.one(direction))[:, 0], 0)
    stable = trees.add(
        trees.scale(-duration, direction),
        _critical.weighted_sum(duration * own - relaxed * along, vectors),
    )

    # How the critical curvatures change along every direction, and what the oscillation does to them.
    k = settings.num_directions
    first, second = jnp.triu_indices(k)
    third = _critical.third_derivatives(settings, value, selected, half, vectors, critical)
    held = jnp.where(critical, relaxed - rate * duration, 0)
    held = eigen.gram(third, vectors) * held[None]
    moved = trees.add(trees.scale(rate * duration, third), eigen.combine(held, vectors))
    gram = eigen.gram(third, moved) / 2
    gram = (gram + gram.T) / 2
    pair = _critical.pair_index(k)
    gram = gram[pair][:, :, pair]
    drift = eigen.gram(third, _critical.one(stable))[:, 0][pair]
    slack = limit * jnp.eye(k) - jnp.diag(curvature) - drift
    if preconditioner is not None:
        later, response = preconditioner.response(
            moment, gradient, time + duration, duration, half, vectors, settings.learning_rate
        )
        slack = slack + limit * later
        gram = gram + limit**3 * response
    # A direction that is not critical must not be held: give it room, and no hold.
    outer = jnp.logical_and.outer(critical, critical)
    room = jnp.eye(k) * limit
    slack = jnp.where(outer, slack, room).astype(curvature.dtype)
    gram = jnp.where(jnp.logical_and.outer(outer, outer), gram, 0).astype(curvature.dtype)
    covariance = _complementarity.solve(slack, gram)
    end = slack + jnp.einsum("ijkl,kl->ij", gram, covariance)

    weights = -covariance[first, second] * jnp.where(first == second, 0.5, 1)
    displacement = trees.add(stable, _critical.weighted_sum(weights, moved))
    params = trees.add(selected, _critical.times(half, displacement))

    spread = eigen.combine(_critical.square_root(covariance), vectors)
    shaking = jax.tree.map(lambda x, h: limit * x / h[None], spread, half)
    if preconditioner is not None:
        moment = preconditioner.add_oscillation(moment, shaking, duration)
    momentum = gradients.settle(momentum, critical, along, vectors, half)
    sigma = jax.tree.map(lambda x, h: h[None] * x, spread, half)
    squared = trees.squared_norm(gradient) + trees.squared_norm(shaking)
    info = CentralFlowInfo(
        loss=loss,
        averaged_loss=loss + limit / 2 * jnp.trace(covariance),
        averaged_squared_gradient=squared,
        eigenvalues=curvature / settings.learning_rate,
        residuals=top.residuals / settings.learning_rate,
        covariance_eigenvalues=jnp.linalg.eigvalsh(eigen.gram(sigma, sigma))[::-1],
        num_critical=jnp.sum(critical),
        sharpness_ratio=curvature[0] / limit,
        excess=jnp.maximum(-jnp.linalg.eigvalsh(end)[0], 0) / limit,
    )
    state = CentralFlowState(fill(params), state.count, momentum, moment, vectors)
    return state, info
