import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_igr.geometry import _rounding

DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_positive_weight_stays_positive_under_any_step_down(dtype):
    # Jitted together, as in a training step, where XLA may widen what was rounded.
    @jax.jit
    def apply(weight):
        wide = weight.astype(jnp.promote_types(dtype, jnp.float32))
        return optax.apply_updates(weight, _rounding.land(weight, -2 * wide))

    info = jnp.finfo(dtype)
    top = float(jnp.log(info.max)) - 1
    weight = jnp.exp(jnp.linspace(float(jnp.log(_rounding.smallest(dtype))) + 0.1, top, 5001))
    weight = jnp.maximum(weight, _rounding.smallest(dtype)).astype(dtype)
    stepped = apply(weight)
    assert jnp.all(stepped > 0)
    wide, stepped_wide = weight.astype(jnp.float64), stepped.astype(jnp.float64)
    assert jnp.all(stepped_wide <= jnp.maximum(wide * 2 * info.eps, 2 * _rounding.smallest(dtype)))


def test_a_zero_stays_zero():
    weight = jnp.zeros(2, jnp.float32)
    assert jnp.all(_rounding.land(weight, jnp.array([0.0, -0.0], jnp.float32)) == 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_overflow_saturates_at_a_finite_weight(dtype):
    weight = jnp.array([1.0, 100.0], dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    stepped = optax.apply_updates(weight, _rounding.land(weight, jnp.full(2, jnp.inf, wide)))
    np.testing.assert_allclose(
        np.asarray(stepped, np.float64), _rounding.largest(dtype), rtol=float(jnp.finfo(dtype).eps)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_floor_holds_after_rounding(dtype):
    key_weight, key_floor = jax.random.split(jax.random.key(0))
    weight = jnp.exp(2 * jax.random.normal(key_weight, (4000,))).astype(dtype)
    floors = jnp.exp(4 * jax.random.normal(key_floor, (4000,)) - 4).astype(dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    update = jax.vmap(_rounding.land)(weight, jnp.full(4000, -jnp.inf, wide), floors.astype(wide))
    assert jnp.all(optax.apply_updates(weight, update) >= floors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_target_above_half_of_the_weight_is_hit_exactly(dtype):
    keys = jax.random.split(jax.random.key(1))
    param = jnp.exp(jax.random.normal(keys[0], (4000,))).astype(dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    target = param.astype(wide) * jax.random.uniform(
        keys[1], (4000,), wide, minval=0.51, maxval=1.99
    )
    landed = optax.apply_updates(param, _rounding.land_at(param, target))
    np.testing.assert_array_equal(landed, target.astype(dtype))
