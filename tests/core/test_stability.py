"""Thresholds against the optimizers themselves on a quadratic, just below and just above."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_igr._core import stability

CASES = {
    "descent": (0.0, False, False),
    "heavy_ball": (0.6, False, False),
    "nesterov": (0.6, True, False),
    "average": (0.6, False, True),
    "nesterov_average": (0.6, True, True),
}


def growth(momentum, nesterov, averaged, curvature):
    """The sizes after 600 steps from 1 on parabolas, at the rate 1."""
    if averaged:
        scale = optax.scale(1 - momentum)
        tx = optax.chain(scale, optax.sgd(1.0, momentum=momentum, nesterov=nesterov))
    else:
        tx = optax.sgd(1.0, momentum=momentum or None, nesterov=nesterov)

    def step(_, carry):
        x, state = carry
        updates, state = tx.update(curvature * x, state, x)
        return x + updates, state

    x = jnp.ones_like(curvature)
    return jnp.abs(jax.lax.fori_loop(0, 600, step, (x, tx.init(x)))[0])


@pytest.mark.parametrize("name", CASES)
def test_threshold_separates_decay_from_growth(name):
    threshold = stability.stability_threshold(*CASES[name])
    below, above = growth(*CASES[name], threshold * jnp.array([0.99, 1.01]))
    assert below < 0.1
    assert above > 10


@pytest.mark.parametrize("name", CASES)
def test_series_ends_where_the_characteristic_roots_leave_the_real_axis(name):
    momentum, nesterov, averaged = CASES[name]
    radius = float(stability.series_radius(momentum, nesterov, averaged))
    rate = (1 - momentum) if averaged else 1.0
    for factor, real in ((0.999, True), (1.001, False)):
        a = factor * radius * rate
        # z² - (1 + β - a(1 + nesterov β)) z + β (1 - nesterov a) = 0
        b = 1 + momentum - a * (1 + nesterov * momentum)
        c = momentum * (1 - nesterov * a)
        roots = np.roots([1, -b, c])
        if momentum:
            assert np.isreal(roots).all() == real
        else:
            assert (b > 0) == real
