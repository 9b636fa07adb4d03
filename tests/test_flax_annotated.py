"""NNX parameters that say how they are laid out over devices: a state keeps no annotation that does not fit it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

import optax_igr as igr
import optax_igr.flax

# Those whose state holds an array for each parameter that has not its shape.
OPTIMIZERS = {
    "egdd": igr.egdd(1e-2),
    "adapt_scale": igr.adapt_scale(optax.sgd(0.1), 1e-2, granularity="leaf"),
    "spectral": optax.chain(igr.add_spectral_decay(1e-3), optax.sgd(0.1)),
    "schatten": optax.chain(
        igr.add_schatten_decay(1e-3, gram_steps=1, refresh_interval=2), optax.sgd(0.1)
    ),
    "sqn": igr.sqn(0.1, memory_size=3, pair_interval=1),
    "multibatch_lbfgs": igr.multibatch_lbfgs(0.1, memory_size=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_annotated_model_trains_as_one_without_annotations(name):
    def trained(mesh, annotation):
        with jax.set_mesh(mesh):
            initializer = nnx.initializers.lecun_normal()
            if annotation:
                initializer = nnx.with_partitioning(initializer, annotation)
            model = nnx.Linear(4, 4, rngs=nnx.Rngs(0), kernel_init=initializer)
            optimizer = nnx.Optimizer(model, OPTIMIZERS[name], wrt=nnx.Param)

            def loss_fn(model, x):
                return jnp.mean((model(x) - 1) ** 2)

            @nnx.jit
            def step(model, optimizer, x):
                value_fn = optax_igr.flax.value_fn(model, loss_fn, x)
                functions = {"curvature_value_fn": value_fn, "overlap_value_fn": value_fn}
                optax_igr.flax.train_step(model, optimizer, loss_fn, x, extra_args=functions)

            for _ in range(4):
                step(model, optimizer, jnp.eye(4)[:2] + 0.5)
            return np.asarray(model.kernel[...])

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    found, expected = trained(mesh, ("data", None)), trained(mesh, None)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
