"""The cap at a fraction of the descent bound: its place, its report, what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_igr

CURVATURES = jnp.array([1.0, 4.0, 9.0])
PARAMS = jnp.array([1.0, -2.0, 0.5])


def value_fn(p):
    return jnp.sum(CURVATURES * p**2) / 2


GRADIENT = jax.grad(value_fn)(PARAMS)


def limited(updates, fraction=0.5, **extra):
    transform = optax_igr.limit_by_curvature(fraction)
    update = jax.jit(
        lambda u: transform.update(u, transform.init(PARAMS), PARAMS, value_fn=value_fn, **extra)
    )
    return update(updates)


@pytest.mark.parametrize("rate", [1.0, 1e6])
@pytest.mark.parametrize(("fraction", "fall"), [(0.5, 1.0), (1.0, 0.0), (0.25, 0.75)])
def test_a_long_step_ends_at_the_fraction_of_the_descent_bound(rate, fraction, fall):
    # φ(f · 2η*) = -4 f (1 - f) · η* gᵀg / 2, at its least for f = 1/2 and zero on the bound.
    updates, state = limited(-rate * GRADIENT, fraction)
    cauchy = GRADIENT @ GRADIENT / (GRADIENT @ (CURVATURES * GRADIENT))
    np.testing.assert_allclose(updates, -2 * fraction * cauchy * GRADIENT, rtol=1e-9)
    change = value_fn(PARAMS + updates) - value_fn(PARAMS)
    np.testing.assert_allclose(change, -fall * cauchy * GRADIENT @ GRADIENT / 2, atol=1e-9)
    assert int(state.limited_count) == 1


@pytest.mark.parametrize(("ratio", "ascends"), [(1.99, False), (2.01, True)])
def test_the_ratio_says_whether_the_step_would_ascend(ratio, ascends):
    cauchy = GRADIENT @ GRADIENT / (GRADIENT @ (CURVATURES * GRADIENT))
    step = -ratio * cauchy * GRADIENT
    _, state = limited(step)
    np.testing.assert_allclose(state.curvature_ratio, ratio, rtol=1e-6)
    assert (value_fn(PARAMS + step) > value_fn(PARAMS)) == ascends


def test_a_short_step_passes_bit_for_bit():
    updates, state = limited(-1e-3 * GRADIENT)
    np.testing.assert_array_equal(updates, -1e-3 * GRADIENT)
    assert int(state.limited_count) == 0
    assert 0 < state.curvature_ratio < 1


def test_a_step_of_ascent_passes_unchanged_and_is_counted():
    updates, state = limited(1e3 * GRADIENT)
    np.testing.assert_array_equal(updates, 1e3 * GRADIENT)
    assert (int(state.ascent_count), int(state.limited_count)) == (1, 0)
    across = jnp.cross(GRADIENT, PARAMS)
    updates, state = limited(across, grad=GRADIENT)
    np.testing.assert_array_equal(updates, across)
    assert (int(state.ascent_count), float(state.curvature_ratio)) == (1, 0)
    _, state = limited(jnp.zeros(3))
    assert (int(state.ascent_count), int(state.limited_count)) == (0, 0)


def test_schedules_are_evaluated_at_the_number_of_updates_so_far():
    def factors(value_fn, fraction=0.5, **arguments):
        transform = optax_igr.limit_by_curvature(fraction, **arguments)
        params = jnp.array([1.5])
        update = jax.jit(
            lambda s: transform.update(-jnp.ones(1), s, params, grad=params, value_fn=value_fn)
        )
        state = transform.init(params)
        for _ in range(2):
            updates, state = update(state)
            yield -float(updates[0])

    # κ = 12 / 1.5 = 8, and 2 f / κ.
    found = factors(lambda p: 6 * jnp.sum(p**2), lambda t: 0.25 * (1 + t))
    np.testing.assert_allclose(list(found), [0.0625, 0.125], rtol=1e-6)
    # The difference of 4 p³ over r along u, which points down, is 12 p² - 12 p r + 4 r².
    found = factors(
        lambda p: jnp.sum(p**4), hvp="forward_difference", radius=lambda t: 0.1 / (1 + t)
    )
    expected = [1.5 / (27 - 18 * r + 4 * r**2) for r in (0.1, 0.05)]
    np.testing.assert_allclose(list(found), expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_gradient_leaves_the_ratio_finite(bad):
    gradient = GRADIENT.at[0].set(bad)
    _, state = limited(-gradient, grad=gradient)
    assert (float(state.curvature_ratio), int(state.limited_count)) == (0, 0)


@pytest.mark.parametrize("size", [1e15, 1e25, 1e38])
def test_a_step_whose_curvature_overflows_is_shortened(size):
    params, curvatures = PARAMS.astype(jnp.float32), CURVATURES.astype(jnp.float32)
    gradient = curvatures * params
    transform = optax_igr.limit_by_curvature()
    updates, state = transform.update(
        -gradient / jnp.max(jnp.abs(gradient)) * jnp.float32(size),
        transform.init(params),
        params,
        value_fn=lambda p: jnp.sum(curvatures * p**2) / 2,
    )
    cauchy = GRADIENT @ GRADIENT / (GRADIENT @ (CURVATURES * GRADIENT))
    np.testing.assert_allclose(updates, -cauchy * GRADIENT, rtol=1e-5)
    assert int(state.limited_count) == 1
    assert np.isfinite(state.curvature_ratio)


def test_the_state_counts_over_all_updates():
    transform = optax_igr.limit_by_curvature()
    state = transform.init(PARAMS)
    update = jax.jit(lambda u, s: transform.update(u, s, PARAMS, value_fn=value_fn))
    for rate in (1.0, 1e-3, 1.0, -1.0, -1.0):
        _, state = update(-rate * GRADIENT, state)
    counts = (state.count, state.limited_count, state.ascent_count)
    assert tuple(map(int, counts)) == (5, 2, 2)


def test_negative_curvature_sets_no_limit():
    transform = optax_igr.limit_by_curvature()
    params = jnp.array([1.0])
    updates, state = transform.update(
        jnp.array([50.0]), transform.init(params), params, value_fn=lambda p: -jnp.sum(p**2)
    )
    np.testing.assert_array_equal(updates, 50)
    np.testing.assert_allclose(state.curvature_ratio, -50, rtol=1e-6)


def test_the_raw_gradient_and_the_curvature_may_be_given():
    derived, _ = limited(-GRADIENT)
    given, _ = limited(-GRADIENT, grad=GRADIENT)
    np.testing.assert_allclose(given, derived, rtol=1e-12)
    steeper, _ = limited(-GRADIENT, grad=2 * GRADIENT)
    np.testing.assert_allclose(steeper, 2 * derived, rtol=1e-12)
    halved, _ = limited(-GRADIENT, curvature_value_fn=lambda p: 2 * value_fn(p))
    np.testing.assert_allclose(halved, derived / 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 0.0}, "fraction.*> 0"),
        ({"hvp": "dense"}, "hvp"),
        ({"radius": 1.0, "hvp": "reverse_over_reverse"}, "radius.*exact"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=f"limit_by_curvature.*{message}"):
        optax_igr.limit_by_curvature(**arguments)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, 0), (-1.0, 0), (np.nan, 0), (0.5, 1), (1.0, 2), (np.inf, 1e3)],
)
def test_a_fraction_out_of_range_has_a_meaning(value, expected):
    # In units of the step to the minimizer of a quadratic with curvature one.
    transform = optax_igr.limit_by_curvature(lambda t: jnp.asarray(value))
    params = jnp.array([1.0])
    updates, state = transform.update(
        jnp.array([-1e3]), transform.init(params), params, value_fn=lambda p: jnp.sum(p**2) / 2
    )
    np.testing.assert_allclose(updates, -expected, rtol=1e-6)
    assert np.isfinite(state.curvature_ratio)
