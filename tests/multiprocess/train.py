"""One process of `test_two_processes.py`: data-parallel training of every entry of the registry.

Usage: `python train.py PROCESSES INDEX PORT`. Prints one line of JSON: the parameters of each entry
after three steps, as this process sees them. JAX_NUM_CPU_DEVICES says how many devices it has.
"""

import json
import sys

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests import problems, registry

NUM_DEVICES = 4


def train(entry, mesh):
    """Returns the parameters after three steps: they are replicated, the batch is sharded."""
    optimizer = entry.optimizer()
    coupled = problems.coupled(None)
    params = problems.parameters(entry.domain, {"w": (2, 4), "b": (4,)})
    params = jax.device_put(params, NamedSharding(mesh, P()))
    samples = np.linspace(-0.5, 0.5, 2 * NUM_DEVICES, dtype=np.float32)
    batch = jax.make_array_from_callback(
        samples.shape, NamedSharding(mesh, P("batch")), lambda index: samples[index]
    )

    @jax.jit
    def step(params, state, batch):
        def outputs_fn(params):
            shifted = jax.vmap(lambda shift: jax.tree.map(lambda x: x + shift, params))(batch)
            return jax.tree.map(
                lambda x: x / len(samples) ** 0.5, jax.vmap(coupled.outputs_fn)(shifted)
            )

        problem = problems.Problem(params, outputs_fn)
        arguments = problem.extra_arguments(entry.needs)
        updates, state = optimizer.update(problem.gradient(params), state, params, **arguments)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    for _ in range(3):
        params, state = step(params, state, batch)
    return {name: np.asarray(leaf).tolist() for name, leaf in params.items()}


def main():
    num_processes, process, port = (int(argument) for argument in sys.argv[1:])
    if num_processes > 1:
        jax.distributed.initialize(f"localhost:{port}", num_processes, process)
    assert jax.device_count() == NUM_DEVICES
    mesh = jax.make_mesh((NUM_DEVICES,), ("batch",), axis_types=(AxisType.Auto,))
    print(json.dumps({str(entry): train(entry, mesh) for entry in registry.ENTRIES}))


if __name__ == "__main__":
    main()
