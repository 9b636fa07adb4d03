"""Takes a training step with nothing but the installed wheel: no checkout, no Flax, no benchmarks."""

import importlib.metadata
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import optax

import optax_igr

package = pathlib.Path(optax_igr.__file__).parent
assert "site-packages" in package.parts, f"{package} is no installed wheel"
assert (package / "py.typed").exists(), "the types are not marked as such"
for absent in ("benchmarks", "tests", "flax", "diffrax", "sklearn"):
    assert importlib.util.find_spec(absent) is None, f"{absent} should not be here"
assert optax_igr.__version__ == importlib.metadata.version("optax_igr")


def value_fn(params):
    """A network of two layers that is to return 1."""
    return jnp.mean((jnp.tanh(x @ params["hidden"]) @ params["head"] - 1) ** 2)


x = jax.random.normal(jax.random.key(0), (16, 4))
params = {"hidden": jnp.full((4, 8), 0.1), "head": jnp.full((8, 1), 0.1)}
optimizer = optax.chain(
    optax_igr.add_gradient_penalty(0.01), optax_igr.add_spectral_decay(1e-3), optax.sgd(0.1)
)
state = optimizer.init(params)
value, grad = jax.value_and_grad(value_fn)(params)
updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
after = value_fn(optax.apply_updates(params, updates))
assert after < value
print(f"optax_igr {optax_igr.__version__}: {value:.3f} -> {after:.3f}")
