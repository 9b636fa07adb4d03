r"""The averages over past gradients that an optimizer keeps, for steps of any part of its own.

An average :math:`m \leftarrow \beta m + (1-\beta) g` has a continuous form whose step over the time
:math:`\delta \le 1` is the average with :math:`\beta^\delta` in the place of :math:`\beta`. At
:math:`\delta = 1` it is the optimizer's own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from optax_igr._core import drift, trees
from optax_igr._core import top_eigenvectors as eigen
from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.trees import Tree


class GradientAverage(NamedTuple):
    """The first moment: heavy ball, Nesterov's momentum, or a moving average.

    Attributes:
      momentum: the decay β; the number 0 for none.
      nesterov: whether the direction looks one step ahead.
      averaged: whether the weights of the gradients sum to one.
      debiased: whether the average is divided by the sum of its weights so far, as in Adam.
    """

    momentum: Scalar = 0.0
    nesterov: bool = False
    averaged: bool = False
    debiased: bool = False

    @property
    def has_memory(self) -> bool:
        """Whether the number of past gradients in use is more than one."""
        return isinstance(self.momentum, jax.core.Tracer) or float(self.momentum) != 0

    @property
    def total(self) -> Scalar:
        """The sum of the weights of all past gradients."""
        return drift.gradient_weight_moments(self.momentum, self.nesterov, self.averaged)[0]

    def init(self, like: Tree) -> Tree | None:
        """Returns the average before the first gradient."""
        return jax.tree.map(jnp.zeros_like, like) if self.has_memory else None

    def add(self, average: Tree | None, gradient: Tree, time, duration) -> tuple[Any, Tree]:
        """Returns the average with the present gradient in it, and the optimizer's direction."""
        if not self.has_memory:
            return None, gradient
        beta = self.momentum
        kept = beta**duration
        weight = 1 - kept if self.averaged else (1 - kept) / (1 - beta)
        average = trees.add(trees.scale(kept, average), trees.scale(weight, gradient))
        direction = average
        if self.debiased:
            direction = trees.scale(1 / (1 - beta ** (time + duration)), average)
        if self.nesterov:
            own = 1 - beta if self.averaged else 1
            direction = trees.add(trees.scale(own, gradient), trees.scale(beta, direction))
        return average, direction

    def settle(self, average, critical, along, vectors, half):
        """Puts the settled value along the critical vectors, where the average oscillates."""
        if not self.has_memory:
            return None
        target = along if self.averaged else along / (1 - self.momentum)
        scaled = jax.tree.map(lambda h, x: (h * x)[None], half, average)
        missing = jnp.where(critical, target - eigen.gram(vectors, scaled)[:, 0], 0)
        change = eigen.combine(missing[None], vectors)
        return jax.tree.map(lambda x, c, h: x + (c[0] / h).astype(x.dtype), average, change, half)

    def missing_order(self, duration: float, correction: bool) -> Scalar | None:
        r"""Returns the factor of :math:`\tilde H d` that the substep lacks; None where it is zero.

        A step of the optimizer delays the gradient by the mean age :math:`M` and half a step, a
        substep by :math:`M_\delta` and half a substep, the continuous average by :math:`M_0`.
        """
        sum_of_weights, first_moment = drift.gradient_weight_moments(
            self.momentum, self.nesterov, self.averaged
        )
        if correction:
            if duration == 1:
                return None
            target = first_moment + sum_of_weights / 2
        else:
            target = 0.0
        own = sum_of_weights * duration / 2
        if self.has_memory:
            share = first_moment * (1 - self.momentum) / self.momentum
            kept = self.momentum**duration
            own = own + share * duration * kept / (1 - kept)
            if not correction:
                target = -share / jnp.log(self.momentum)
        return target - own


class Preconditioner(NamedTuple):
    r"""The second moment ν and the divisor :math:`\sqrt{\hat\nu} + \epsilon` that is made from it.

    Attributes:
      decay: of the average of squared gradients.
      divide_by: `(ν, sum of the weights so far) -> divisor`, entry by entry.
      initial: the value of ν before the first gradient.
      pooled: whether ν is the average of the squared norm, one number for all parameters.
    """

    decay: Scalar
    divide_by: Callable[[jax.Array, Any], jax.Array]
    initial: Scalar = 0.0
    pooled: bool = False

    def init(self, like: Tree) -> Tree:
        """Returns ν before the first gradient."""
        return jax.tree.map(lambda x: jnp.full(x.shape, self.initial, x.dtype), like)

    def square(self, gradient: Tree) -> Tree:
        """Returns the squared gradient, or its sum in every entry."""
        squared = jax.tree.map(lambda g: jnp.abs(g) ** 2, gradient)
        return self._pool(squared)

    def add(self, moment: Tree, squared: Tree, duration) -> Tree:
        """Returns ν with the present squared gradient in it."""
        kept = self.decay**duration
        return trees.add(trees.scale(kept, moment), trees.scale(1 - kept, squared))

    def add_oscillation(self, moment: Tree, shaking: Tree, duration) -> Tree:
        """Adds what a block of oscillating gradients, the columns of HΣ^{1/2}, brings in."""
        squared = self._pool(jax.tree.map(lambda x: jnp.sum(jnp.abs(x) ** 2, axis=0), shaking))
        return trees.add(moment, trees.scale(1 - self.decay**duration, squared))

    def divisor(self, moment: Tree, time) -> Tree:
        """Returns what the direction is divided by, after the time since the start."""
        weights = 1 - self.decay**time
        return jax.tree.map(lambda n: self.divide_by(n, weights), moment)

    def response(self, moment, gradient, time, duration, half, vectors, learning_rate):
        r"""Returns :math:`U^\top \Delta P U` at the next substep, and its derivative by X over τ².

        The oscillation is in the next ν already; the rest of ν moves towards the present gradient.
        """
        squared = self.square(gradient)
        later = self.add(moment, squared, duration)
        now, then = self.divisor(moment, time), self.divisor(later, time + duration)
        change = jax.tree.map(lambda h, a, b: h**2 * (b - a) / learning_rate, half, now, then)
        stable = eigen.gram(vectors, jax.tree.map(lambda c, v: c[None] * v, change, vectors))

        weights = 1 - self.decay ** (time + duration)
        kept = self.decay**duration

        def slope(n):
            # The root has no slope at zero, where the gradient of a dead parameter stays.
            raw = jax.vmap(jax.grad(lambda x: self.divide_by(x, weights)))(n.reshape(-1))
            return jnp.where(jnp.isfinite(raw), raw, 0).reshape(n.shape) / learning_rate

        slopes = jax.tree.map(slope, later)
        k = stable.shape[0]
        first, second = (jnp.repeat(jnp.arange(k), k), jnp.tile(jnp.arange(k), k))
        products = jax.tree.map(
            lambda v, h, s: v[first] * v[second] * (h**2 * s)[None], vectors, half, slopes
        )
        arriving = jax.tree.map(lambda v, h: v[first] * v[second] / (h**2)[None], vectors, half)
        if self.pooled:
            own, sums = (_sums(block) for block in (products, arriving))
            gram = jnp.outer(own, sums)
        else:
            gram = eigen.gram(products, arriving)
        gram = kept * (1 - kept) * gram
        return stable, (gram + gram.T).reshape(k, k, k, k) / 2

    def _pool(self, squared: Tree) -> Tree:
        if not self.pooled:
            return squared
        total = functools.reduce(jnp.add, map(jnp.sum, jax.tree.leaves(squared)))
        return jax.tree.map(lambda x: jnp.broadcast_to(total.astype(x.dtype), x.shape), squared)


def _sums(block: Tree) -> jax.Array:
    """Returns the sum of all entries of each vector of a block."""
    sums = jax.tree.map(lambda x: jnp.sum(x, axis=tuple(range(1, x.ndim))), block)
    return functools.reduce(jnp.add, jax.tree.leaves(sums))
