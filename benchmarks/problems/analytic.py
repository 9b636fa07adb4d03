"""Losses without data: their minima are known, so a target is a distance from the optimum."""

from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.problems.problem import Problem, Target


def _problem(name, init, loss, num_steps, target, about, **measures):
    return Problem(
        name=name,
        init=init,
        loss=lambda params, batch: loss(params),
        train=None,
        test=None,
        batch_size=None,
        num_steps=num_steps,
        measures={"train_loss": lambda p, train, test: loss(p), **measures},
        final_measures={"train_loss": lambda p, train, test: loss(p), **measures},
        target=Target("train_loss", target, higher_is_better=False),
        about=about,
    )


def quadratic(
    data_dir: Path | None = None, *, dimension: int = 50, condition: float = 1e3
) -> Problem:
    """An ill-conditioned quadratic in rotated coordinates; minimum 0 at the origin."""
    del data_dir
    curvatures = jnp.geomspace(1 / condition, 1.0, dimension)
    # In its own coordinates a diagonal method would solve it at once.
    rotation, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (dimension, dimension)))

    def loss(params):
        return 0.5 * jnp.sum(curvatures * (rotation @ params) ** 2)

    return _problem(
        "quadratic",
        lambda key: jax.random.normal(key, (dimension,)),
        loss,
        1000,
        1e-3,
        f"quadratic, {dimension} dimensions, condition number {condition:g}",
    )


def rosenbrock(data_dir: Path | None = None, *, dimension: int = 4) -> Problem:
    """The curved valley of Rosenbrock; minimum 0 at (1, ..., 1)."""
    del data_dir

    def loss(params):
        return jnp.sum(100 * (params[1:] - params[:-1] ** 2) ** 2 + (1 - params[:-1]) ** 2)

    return _problem(
        "rosenbrock",
        lambda key: jax.random.uniform(key, (dimension,), minval=-1.0, maxval=1.0),
        loss,
        4000,
        1e-2,
        f"Rosenbrock, {dimension} dimensions",
    )


def scalar_product(data_dir: Path | None = None) -> Problem:
    """(y - abx)²/2 from (2.8, 3.5): its minima are a hyperbola, the flattest one the nearest to zero.

    References:
      Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021
    """
    del data_dir

    def loss(params):
        return 0.5 * (0.6 - params[0] * params[1]) ** 2

    return _problem(
        "scalar_product",
        # The start of the paper, whatever the seed.
        lambda key: jnp.array([2.8, 3.5]),
        loss,
        2000,
        1e-6,
        "(0.6 - ab)²/2 from (2.8, 3.5)",
        squared_norm=lambda p, train, test: jnp.sum(p**2),
    )
