"""Each sampling has its own modified loss: exact means over all orders and all draws of the batches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_igr import flows

VALUE_FNS = (
    lambda x: jnp.cosh(x),
    lambda x: 0.5 * (x - 1.0) ** 2 + 0.2 * x**3,
    lambda x: jnp.sin(2 * x) / 3,
)
START = 0.6
VISITS = {
    "shuffled": list(itertools.permutations(range(3))),
    "with_replacement": list(itertools.product(range(3), repeat=3)),
}


def mean_after_an_epoch(sampling, h):
    ends = []
    for order in VISITS[sampling]:
        x = START
        for index in order:
            x = x - h * jax.grad(VALUE_FNS[index])(x)
        ends.append(x)
    return np.mean(ends)


@pytest.mark.parametrize("sampling", VISITS)
def test_error_of_one_epoch_has_slope_three_for_its_own_sampling_alone(sampling):
    @jax.jit(static_argnames="formula")
    def flow(h, formula):
        field = flows.minibatch_flow(VALUE_FNS, h, sampling=formula)
        return flows.integrate(field, jnp.array(START), 3 * h, rtol=1e-13, atol=1e-13)

    for formula in VISITS:
        coarse, fine = (
            abs(mean_after_an_epoch(sampling, h) - flow(h, formula)) for h in (0.01, 0.005)
        )
        slope = np.log2(coarse / fine)
        assert abs(slope - (3 if formula == sampling else 2)) < 0.15


def test_shuffled_flow_descends_the_loss_plus_the_batches_squared_norms():
    """-∇(L + h/(4M) Σ‖∇L_k‖²), differentiated as it stands."""
    h = 0.3

    def modified_loss(x):
        norms = sum(jax.grad(value_fn)(x) ** 2 for value_fn in VALUE_FNS)
        return sum(value_fn(x) for value_fn in VALUE_FNS) / 3 + h / 12 * norms

    np.testing.assert_allclose(
        flows.minibatch_flow(VALUE_FNS, h)(0.7), -jax.grad(modified_loss)(0.7), rtol=1e-12
    )


def test_one_batch_is_gradient_descent_for_both():
    expected = flows.optimizer_flow(VALUE_FNS[0], 0.1)(0.7)
    for sampling in VISITS:
        flow = flows.minibatch_flow(VALUE_FNS[:1], 0.1, sampling=sampling)
        np.testing.assert_allclose(flow(0.7), expected, rtol=1e-13)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"minibatch_flow: .sampling. must be one of 'shuffled'"):
        flows.minibatch_flow(VALUE_FNS, 0.1, sampling="random")
    with pytest.raises(ValueError, match=r"minibatch_flow: .value_fns. must hold at least one"):
        flows.minibatch_flow([], 0.1)
