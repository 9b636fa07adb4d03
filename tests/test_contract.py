"""What every transform of `registry.py` must do, and what Optax asks of its own contributions."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_igr
from tests import problems, registry
from tests.contract import (
    DTYPES,
    SHAPES_WITHOUT_SCALAR,
    WIDEST,
    X64,
    assert_close_of,
    assert_finite,
    assert_no_nan,
    every_entry,
    every_transform,
    every_wrapper,
    injected_step,
    params_of,
    plain_run,
    poisoned_step,
    train,
    training_step,
    types,
)


@every_entry
def test_one_compilation_serves_donated_steps_with_unknown_extra_arguments(entry):
    run = plain_run(entry)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(run.after[0])]
    assert len(set(pointers)) == len(pointers), "a fresh state shares a buffer"
    for before, after in itertools.pairwise(run.after):
        # The compiled step has refused another shape, dtype or structure, not another weak type.
        assert types(after) == types(before)
    assert_finite(run.after[3])


@every_entry
@pytest.mark.parametrize("target", problems.TARGETS, ids=lambda f: f.__name__)
def test_reaches_the_target(entry, target):
    problem = target(entry.domain)
    optimizer = entry.optimizer(entry.base_on_targets, **entry.on_targets)
    step = training_step(entry, optimizer, problem)

    @jax.jit
    def run(params):
        carry = (params, optimizer.init(params))
        return jax.lax.scan(lambda c, _: (step(*c), None), carry, length=entry.num_steps)[0]

    params, state = run(problem.params)
    if entry.eval_params is not None:
        params = entry.eval_params(state, params)
    chex.assert_trees_all_close(params, problem.minimiser, rtol=3e-2, atol=3e-2)


@every_entry
def test_injected_hyperparameters_are_the_hyperparameters(entry):
    optimizer, step = injected_step(entry)
    run = plain_run(entry)
    injected, state = train(step, optimizer, run.problem.params, 3)
    expected, _ = run.after[3]
    assert_close_of(entry, injected, expected)
    for name, value in entry.hyperparameters.items():
        if isinstance(value, float):
            assert optax.tree.get(state, "hyperparams")[name] == pytest.approx(value)


@every_entry
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
def test_types_of_updates_and_state_are_stable(entry, dtype):
    optimizer = entry.optimizer()
    params = params_of(entry, dtype=dtype)
    problem = problems.coupled(params)

    def update(params, state):
        arguments = problem.extra_arguments(entry.needs)
        return optimizer.update(problem.gradient(params), state, params, **arguments)

    state = jax.eval_shape(optimizer.init, params)
    updates, new_state = jax.eval_shape(update, params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    assert types(state) == types(optimizer.init(params))


@functools.cache
def second_update(entry):
    """Returns `(params, learning_rate, total) -> (updates, state)`, where the gradient is the parameter.

    So its size is known.
    """
    problem = problems.Problem(None, lambda p: p.astype(jnp.float32) / jnp.float32(2**0.5))

    @jax.jit
    def second_update(params, learning_rate, total):
        domain = {"total": total} if "total" in entry.hyperparameters else {}
        optimizer = entry.optimizer(optax.sgd(learning_rate), **domain)
        state = optimizer.init(params)
        for _ in range(2):
            arguments = problem.extra_arguments(entry.needs)
            grads = problem.gradient(params)
            updates, state = optimizer.update(grads, state, params, **arguments)
            params = optax.apply_updates(params, updates)
        return updates, state

    return second_update


@every_entry
@pytest.mark.parametrize(
    ("dtype", "magnitude"), [(jnp.float16, 300.0), (jnp.float16, 1e-4), (jnp.bfloat16, 1.0)]
)
def test_a_narrow_leaf_is_reduced_in_float32(entry, dtype, magnitude):
    """In float16 the squared norms overflow and underflow; a bfloat16 sum of ones stops at 256."""
    size, precision = 1000, jnp.finfo(dtype)
    smallest = 2 * float(precision.smallest_subnormal)
    if entry.domain == "simplex":
        # Equal weights stay where they are, to their own precision.
        magnitude, smallest = 1 / size, float(precision.eps) / size
    elif entry.place is registry.last or entry.eval_params is not None:
        # Such an update is the way to a parameter that the dtype can hold.
        smallest += float(precision.eps) / 2 * magnitude
    # A factor exp(-15) on a weight is beyond float16, whatever reduces it.
    rate = 0.05 if magnitude <= 1 else 1e-3
    # Nor is a tree in the domain whose norm is above the given one.
    total = 2 * size * magnitude

    params = jnp.full([size], magnitude, jnp.float32)
    narrow, state = second_update(entry)(params.astype(dtype), rate, total)
    wide, _ = second_update(entry)(params, rate, total)
    assert narrow.dtype == dtype
    assert_finite(state)
    tolerance = 8 * float(precision.eps)
    chex.assert_trees_all_close(narrow.astype(jnp.float32), wide, rtol=tolerance, atol=smallest)


@every_transform
def test_accumulates_under_multi_steps(entry):
    accumulating = optax.MultiSteps(entry.optimizer(), every_k_schedule=2)
    run = plain_run(entry)
    step = jax.jit(training_step(entry, accumulating, run.problem))
    unmoved, _ = train(step, accumulating, run.problem.params, 1)
    chex.assert_trees_all_equal(unmoved, run.problem.params)
    moved, _ = train(step, accumulating, run.problem.params, 4)
    expected, _ = run.after[2]
    assert_close_of(entry, moved, expected)


@every_entry
def test_schedules_are_evaluated_at_the_number_of_updates_so_far(entry):
    """Against numbers that the loop itself injects, so that a constant schedule is the number."""
    values = entry.scheduled()
    schedules = {name: lambda t, v=value: v * (1 - t / 8) for name, value in values.items()}
    problem = plain_run(entry).problem

    scheduled = entry.optimizer(**schedules)
    step = jax.jit(training_step(entry, scheduled, problem))
    by_schedule, _ = train(step, scheduled, problem.params, 3)

    injecting, step = injected_step(entry)
    by_number, state = problem.params, injecting.init(problem.params)
    for t in range(3):
        count = t + entry.acts_on_next_step
        numbers = {name: jnp.float32(schedule(count)) for name, schedule in schedules.items()}
        hyperparameters = optax.tree.get(state, "hyperparams")
        state = optax.tree.set(state, hyperparams=hyperparameters | numbers)
        by_number, state = step(by_number, state)
    assert_close_of(entry, by_schedule, by_number)


@every_transform
def test_chains_with_the_value_fn_transforms_of_optax(entry):
    """With a line search; and with L-BFGS, where it shares its value_fn and has no direction of its own."""
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
    if entry.needs and entry.place is not registry.alias:
        optimizer = entry.optimizer(optax.lbfgs(memory_size=3, linesearch=search))
    else:
        optimizer = optax.chain(entry.optimizer(), search)
    params = params_of(entry, SHAPES_WITHOUT_SCALAR)
    problem = problems.coupled(params)

    @jax.jit
    def step(params, state):
        arguments = problem.extra_arguments({*entry.needs, "value_fn"})
        value, grads = problem.value_fn(params), problem.gradient(params)
        updates, state = optimizer.update(
            grads, state, params, value=value, grad=grads, **arguments
        )
        return optax.apply_updates(params, updates), state

    params, _ = train(step, optimizer, params, 3)
    assert_finite(params)
    assert problem.value_fn(params) < problem.value_fn(problem.params)


@every_entry
@pytest.mark.parametrize("composition", ["partition", "masked"])
def test_sees_a_part_of_the_parameters(entry, composition):
    """As if the others were constants of the loss."""
    run = plain_run(entry)
    frozen = {"v": jnp.array([0.5, -1.0, 2.0], jnp.float32)}
    params = {"frozen": frozen} | run.problem.params
    optimizer = entry.optimizer()
    if composition == "partition":
        labels = dict.fromkeys(params, "trained") | {"frozen": "frozen"}
        transforms = {"trained": optimizer, "frozen": optax.set_to_zero()}
        composed = optax.partition(transforms, labels)
    else:
        trained = {name: name != "frozen" for name in params}
        others = {name: name == "frozen" for name in params}
        composed = optax.chain(
            optax.masked(optimizer, trained), optax.masked(optax.set_to_zero(), others)
        )

    def outputs_fn(params):
        waves, [total] = run.problem.outputs_fn({k: v for k, v in params.items() if k != "frozen"})
        # Other values than these constants change every derivative, and theirs would show in a norm.
        return waves, [total * (1 + jnp.sum(jnp.sin(params["frozen"]["v"] - frozen["v"])))]

    problem = dataclasses.replace(run.problem, outputs_fn=outputs_fn)

    @jax.jit
    def step(params, state):
        arguments = {
            name: fn if name == "output_loss_fn" else optax_igr.fill_masked(fn, params)
            for name, fn in problem.extra_arguments(entry.needs).items()
        }
        updates, state = composed.update(problem.gradient(params), state, params, **arguments)
        return optax.apply_updates(params, updates), state

    found, _ = train(step, composed, params, 2)
    chex.assert_trees_all_equal(found.pop("frozen"), frozen)
    expected, _ = run.after[2]
    assert_close_of(entry, found, expected)


@every_entry
def test_a_zero_or_broken_gradient_is_survived(entry):
    """Both as the very first gradient and after a good one."""
    run = plain_run(entry)
    for bad in (0.0, np.nan, np.inf, 1e30):
        for history in ([bad], [1.0, bad]):
            params, state = run.after[0]
            for factor in history:
                params, state, finite = run.step(params, state, factor)
            assert finite or bad != 0.0, "a zero gradient gives a non-finite update"
            for _ in range(2):
                params, state, finite = run.step(params, state)
            assert finite, f"the updates stay broken after a gradient times {bad}"
            assert_no_nan(state)


@every_transform
def test_a_broken_gradient_leaves_no_trace_under_apply_if_finite(entry):
    optimizer = optax.apply_if_finite(entry.optimizer(), max_consecutive_errors=5)
    run = plain_run(entry)
    step = jax.jit(poisoned_step(entry, optimizer, run.problem))
    params, state = run.problem.params, optimizer.init(run.problem.params)
    for factor in (np.nan, 1.0, np.nan, 1.0):
        params, state, _ = step(params, state, jnp.float32(factor))
    assert_close_of(entry, (params, state.inner_state), run.after[2])


@every_entry
def test_none_scalar_and_empty_leaves(entry):
    """None and empty leaves change nothing for the others; a scalar is a parameter like any other."""
    run = plain_run(entry)
    params = run.problem.params
    holes = {"none": None, "empty": jnp.zeros([0, 3]), "nested": {"deep": (None, [])}}
    optimizer = entry.optimizer()
    step = training_step(entry, optimizer, run.problem)
    found, state = train(jax.jit(step), optimizer, {**params, **holes}, 2)
    assert_finite(state)
    expected, _ = run.after[2]
    # Another program rounds otherwise, and conjugate gradients amplify it.
    chex.assert_trees_all_close(found, {**expected, **holes}, rtol=1e-4, atol=1e-5)

    if "scalar leaf" in entry.refuses:
        scalar = {"s": jnp.float32(1)}
        with pytest.raises(ValueError, match=f"{entry.name}.*'s'"):
            train(step, optimizer, scalar, 1)
    else:
        assert found["s"].shape == ()


@every_entry
@pytest.mark.parametrize("empty", [{}, (), {"none": None}], ids=repr)
def test_an_empty_tree(entry, empty):
    optimizer = entry.optimizer()
    step = jax.jit(training_step(entry, optimizer, problems.coupled(empty)))
    params, state = train(step, optimizer, empty, 2)
    assert params == empty
    assert_finite(state)


@every_entry
def test_a_complex_parameter_is_the_pair_of_its_parts(entry):
    """Or, for a transform that acts on moduli, commutes with a phase that the loss does not see."""
    shapes = jax.tree.map(jnp.shape, params_of(entry))
    params = problems.parameters("real", shapes, jnp.complex64)
    optimizer = entry.optimizer()

    def outputs_fn(z):
        waves = [x + jnp.sin(x * x.conj()) / 4 * x for x in jax.tree.leaves(z)]
        return waves, [sum(jnp.sum(x) for x in jax.tree.leaves(z)) / 4]

    problem = problems.Problem(params, outputs_fn)
    step = jax.jit(training_step(entry, optimizer, problem))
    if "complex" in entry.refuses:
        with pytest.raises(ValueError, match=rf"{entry.name}.*complex"):
            train(step, optimizer, params, 1)
        return
    found, _ = train(step, optimizer, params, 3)

    if entry.complex_as == "phase":
        phase = jnp.complex64(np.exp(0.7j))
        turned, _ = train(step, optimizer, jax.tree.map(lambda z: z * phase, params), 3)
        expected = jax.tree.map(lambda z: z / phase, turned)
    else:

        def to_complex(pairs):
            return jax.tree.map(lambda x: jax.lax.complex(x[..., 0], x[..., 1]), pairs)

        real = problems.Problem(None, lambda pairs: outputs_fn(to_complex(pairs)))
        pairs = jax.tree.map(lambda z: jnp.stack([z.real, z.imag], axis=-1), params)
        trained, _ = train(jax.jit(training_step(entry, optimizer, real)), optimizer, pairs, 3)
        expected = to_complex(trained)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


@every_entry
def test_init_is_abstract_and_map_params_finds_every_tree_like_the_parameters(entry):
    optimizer = entry.optimizer()
    params = params_of(entry)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    state = optimizer.init(params)
    assert types(jax.eval_shape(optimizer.init, abstract)) == types(state)
    assert types(optimizer.init(abstract)) == types(state)

    kinds = optax.tree.map_params(
        optimizer, lambda _: "parameter", state, transform_non_params=lambda _: "other"
    )
    for kind, leaf in zip(jax.tree.leaves(kinds), jax.tree.leaves(state), strict=True):
        assert kind == "parameter" or leaf.shape != params["w"].shape
        assert leaf.dtype != jnp.uint32, "a random key in a state is a typed key"


@every_transform
def test_resumes_from_a_checkpoint_as_if_uninterrupted(entry, tmp_path):
    optimizer = entry.optimizer()
    run = plain_run(entry)
    params, state = run.after[2]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step_2", (params, state))
        checkpointer.wait_until_finished()
        target = jax.eval_shape(lambda p: (p, optimizer.init(p)), params)
        restored = checkpointer.restore(tmp_path / "step_2", target)
    chex.assert_trees_all_equal(run.step(*restored)[:2], run.after[3])


@every_entry
def test_vmap_and_scan_equal_a_loop(entry):
    optimizer = entry.optimizer()
    run = plain_run(entry)
    step = training_step(entry, optimizer, run.problem)

    @jax.jit
    @jax.vmap
    def scanned(params):
        carry = (params, optimizer.init(params))
        return jax.lax.scan(lambda c, _: (step(*c), None), carry, length=3)[0]

    others = [params_of(entry, seed=seed) for seed in (1, 2)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), others[0], run.problem.params, others[1])
    found = jax.tree.map(lambda x: x[1], scanned(batch))
    chex.assert_trees_all_close(found, run.after[3], rtol=1e-4, atol=1e-5)


@every_entry
def test_the_derivative_through_two_steps_is_the_limit_of_differences(entry):
    optimizer = entry.optimizer()
    params = params_of(entry, dtype=WIDEST)
    problem = problems.coupled(params)
    step = training_step(entry, optimizer, problem)
    direction = jax.tree.map(lambda x: jnp.cos(3 * x), params)
    if entry.domain == "simplex":
        direction = jax.tree.map(lambda x: x - x.mean(axis=-1, keepdims=True), direction)

    def after(t):
        start = jax.tree.map(lambda x, d: x + t * d, params, direction)
        carry = (start, optimizer.init(start))
        (end, _), _ = jax.lax.scan(lambda c, _: (step(*c), None), carry, length=2)
        value = problem.value_fn(end)
        return value, value

    differentiate = jax.jacfwd if entry.without_reverse_mode else jax.grad
    derivative_and_value = jax.jit(differentiate(after, has_aux=True))
    (before, lower), (derivative, _), (behind, upper) = (
        derivative_and_value(jnp.array(offset, WIDEST)) for offset in (-1e-5, 0, 1e-5)
    )
    assert_finite([before, derivative, behind])
    if X64:
        np.testing.assert_allclose(derivative, (upper - lower) / 2e-5, rtol=1e-5)


def per_sample_problem(problem, weights, reduce=lambda mean: mean):
    """The mean of a loss over samples; `reduce` turns the mean of a shard into the global one."""

    def outputs_fn(params):
        return jax.tree.map(lambda x, w: w * x[None], problem.outputs_fn(params), weights)

    def output_loss_fn(outputs):
        num_samples = jax.tree.leaves(weights)[0].shape[0]
        return reduce(problems.sum_of_squares(outputs) / num_samples)

    return problems.Problem(None, outputs_fn, output_loss_fn=output_loss_fn)


def weights_with_mean_square_one(outputs, num_samples):
    """Weights of every output in every sample, so that samples differ in every direction."""

    def of_leaf(x):
        samples = 2 * np.pi * np.arange(num_samples).reshape([-1] + [1] * x.ndim) / num_samples
        return np.sqrt(1 + np.cos(samples + np.arange(x.size).reshape(x.shape)) / 2, dtype="f4")

    return jax.tree.map(of_leaf, outputs)


@every_entry
def test_shard_map_with_a_sharded_batch_equals_one_device(entry):
    optimizer = entry.optimizer()
    run = plain_run(entry)
    weights = weights_with_mean_square_one(
        jax.eval_shape(run.problem.outputs_fn, run.problem.params), 8
    )
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(), P(), P("batch")), out_specs=(P(), P())
    )
    def sharded(params, state, weights):
        mean = functools.partial(jax.lax.pmean, axis_name="batch")
        problem = per_sample_problem(run.problem, weights, mean)
        return training_step(entry, optimizer, problem)(params, state)

    found = run.after[0]
    for _ in range(2):
        found = sharded(*found, weights)
    chex.assert_trees_all_close(jax.device_get(found), run.after[2], rtol=1e-4, atol=1e-5)


def over_replicas(step, *, check_vma):
    """Runs a step on copies of parameters and state, as `pmap` does, on four devices."""
    mesh = jax.make_mesh((4,), ("replica",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    sharded = jax.shard_map(
        lambda params, state, weights: step(params, state, jax.tree.map(lambda x: x[0], weights)),
        mesh=mesh,
        in_specs=(P(), P(), P("replica")),
        out_specs=P(),
        check_vma=check_vma,
    )

    def run(params, state, weights):
        first = jax.tree.map(lambda x: x[0], (params, state))
        return jax.tree.map(lambda x: jnp.stack([x] * 4), sharded(*first, weights))

    return jax.jit(run)


REPLICATING = {
    "pmap": lambda step: jax.pmap(step, axis_name="replica"),
    "vmap": lambda step: jax.jit(jax.vmap(step, axis_name="replica")),
    "shard_map": functools.partial(over_replicas, check_vma=False),
    "shard_map check_vma": functools.partial(over_replicas, check_vma=True),
}


# What JAX calls an untracked axis is one thing in all of them: two stand for it in every run, the others at night.
@pytest.mark.parametrize(
    "entry", [e for e in registry.ENTRIES if e.needs and not e.variant], ids=str
)
@pytest.mark.parametrize(
    "replicating",
    [
        pytest.param(wrap, id=name, marks=() if name in ("vmap", "shard_map") else pytest.mark.slow)
        for name, wrap in REPLICATING.items()
    ],
)
def test_mean_over_replicas_equals_one_device(entry, replicating):
    """The loop takes gradient and value of the wrapped loss, and no mean of its own."""
    optimizer = entry.optimizer()
    run = plain_run(entry)
    weights = weights_with_mean_square_one(
        jax.eval_shape(run.problem.outputs_fn, run.problem.params), 8
    )
    weights = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), weights)
    mean = functools.partial(optax_igr.mean_over, "replica")

    def step(params, state, weights):
        local = per_sample_problem(run.problem, weights)
        arguments = local.extra_arguments(entry.needs)
        pair = [arguments.pop(name) for name in registry.OUTPUTS if name in arguments]
        arguments = {name: mean(fn) for name, fn in arguments.items()}
        if pair:
            arguments |= dict(zip(registry.OUTPUTS, mean(*pair), strict=True))
        value, grad = jax.value_and_grad(mean(local.value_fn))(params)
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, **arguments)
        return optax.apply_updates(params, updates), state

    found = jax.tree.map(lambda x: jnp.stack([x] * 4), run.after[0])
    stepped = replicating(step)
    for _ in range(2):
        found = stepped(*found, weights)
    expected = jax.tree.map(lambda x: jnp.stack([x] * 4), run.after[2])
    chex.assert_trees_all_close(jax.device_get(found), expected, rtol=1e-4, atol=1e-5)


def assert_sharded_alike(leaf, param):
    assert leaf.shape != param.shape or jax.typeof(leaf).sharding == jax.typeof(param).sharding


@every_entry
def test_shardings_are_kept_on_an_explicit_mesh(entry):
    optimizer = entry.optimizer()
    run = plain_run(entry)
    step = training_step(entry, optimizer, run.problem)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        specs = {"w": P(None, "x"), "b": P("x"), "s": P()}
        params = {
            name: jax.device_put(x, NamedSharding(mesh, specs[name]))
            for name, x in run.problem.params.items()
        }
        state = optimizer.init(params)
        assert types(jax.jit(optimizer.init)(params)) == types(state)
        optax.tree.map_params(optimizer, assert_sharded_alike, state, params)
        found, new_state = train(jax.jit(step), optimizer, params, 2)
        assert types((found, new_state)) == types((params, state))
    expected, _ = run.after[2]
    assert_close_of(entry, jax.device_get(found), expected)


@every_transform
def test_a_missing_argument_is_named(entry):
    transform = entry.alone()
    params = params_of(entry)
    problem = problems.coupled(params)
    grads, state = problem.gradient(params), transform.init(params)
    arguments = problem.extra_arguments(entry.needs)

    def update(params, **given):
        return jax.eval_shape(lambda: transform.update(grads, state, params, **given))

    for missing in entry.needs:
        given = {name: fn for name, fn in arguments.items() if name != missing}
        with pytest.raises(ValueError, match=rf"{entry.name}.*`{missing}`"):
            update(params, **given)
    try:
        update(None, **arguments)
    except ValueError as error:
        message = str(error)
    else:
        without_params, expected = jax.jit(
            lambda: [transform.update(grads, state, p, **arguments)[0] for p in (None, params)]
        )()
        chex.assert_trees_all_equal(without_params, expected)
        return
    assert entry.name in message
    assert "parameters" in message


@every_transform
@pytest.mark.parametrize(
    "change",
    [
        lambda tree: {**tree, "b": jnp.full([7], 1 / 7, jnp.float32)},
        lambda tree: {**tree, "b": tree["b"].astype(jnp.float16)},
        lambda tree: {"w": tree["w"], "c": tree["b"]},
    ],
    ids=["shape", "dtype", "structure"],
)
def test_a_mismatch_names_the_leaf(entry, change):
    transform = entry.alone()
    params = params_of(entry, SHAPES_WITHOUT_SCALAR)
    problem = problems.coupled(params)
    grads, state = problem.gradient(params), transform.init(params)
    arguments = problem.extra_arguments(entry.needs)

    def update(grads, state, **given):
        return jax.eval_shape(lambda: transform.update(grads, state, params, **arguments | given))

    message = rf"(?s){entry.name}.*\['[bc]'\]"
    with pytest.raises(ValueError, match=message):
        update(change(grads), state)
    if reads_grad(entry):
        with pytest.raises(ValueError, match=message):
            update(grads, state, grad=change(grads))
    other = transform.init(change(params))
    if types(other) != types(state):
        with pytest.raises(ValueError, match=message):
            update(grads, other)


@functools.cache
def reads_grad(entry):
    """Says whether the second update changes where another `grad` is given."""
    transform = entry.alone()
    params = params_of(entry)
    problem = problems.coupled(params)
    grads = problem.gradient(params)
    arguments = problem.extra_arguments(entry.needs)

    @jax.jit
    def second_update(grad):
        state = transform.init(params)
        for _ in range(2):
            updates, state = transform.update(grads, state, params, grad=grad, **arguments)
        return updates

    other = jax.tree.map(lambda x: jnp.flip(x) + 1, grads)
    pairs = jax.tree.map(jnp.array_equal, second_update(grads), second_update(other))
    return not all(jax.tree.leaves(pairs))


@every_wrapper
def test_a_wrapper_forwards_every_extra_argument(entry):
    received = {}

    def update(updates, state, params=None, **extra_args):
        received.update(extra_args)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    optimizer = entry.optimizer(inner)
    params = params_of(entry)
    problem = problems.coupled(params)
    given = problem.extra_arguments(entry.needs) | {"value": 1.0, "unheard_of": "anything"}
    optimizer.update(problem.gradient(params), optimizer.init(params), params, **given)
    assert given.items() <= received.items()

    plain = optax.GradientTransformation(optax.init_empty_state, lambda u, s, p=None: (u, s))
    optimizer = entry.optimizer(plain)
    optimizer.update(problem.gradient(params), optimizer.init(params), params, **given)
