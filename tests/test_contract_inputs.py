"""What other people's programs hand to a transform, and what every entry of `registry.py` makes of it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems, registry
from tests.contract import (
    SHAPES_WITHOUT_SCALAR,
    X64,
    assert_close_of,
    assert_finite,
    every_entry,
    every_transform,
    params_of,
    plain_run,
    training_step,
)


def one_step(entry, problem, params, state, gradient):
    """Returns the parameters after one step whose inputs are as they stand here, not traced.

    What a compiled function closes over reaches the transform as it would in an eager call.
    """
    optimizer = entry.optimizer()

    @jax.jit
    def step():
        arguments = problem.extra_arguments(entry.needs)
        updates, new_state = optimizer.update(gradient, state, params, **arguments)
        return optax.apply_updates(params, updates), new_state

    return step()


@every_transform
def test_numpy_arrays_are_arrays(entry):
    """Parameters loaded from disk, a restored state. Without float64 they are narrowed, as Optax's own are."""
    run = plain_run(entry)
    dtype = np.float32 if X64 else np.float64
    params = jax.tree.map(lambda x: np.asarray(x, dtype), run.problem.params)
    state = jax.tree.map(np.asarray, entry.optimizer().init(params))
    gradient = jax.tree.map(
        lambda x: np.asarray(x, dtype), jax.jit(run.problem.gradient)(run.problem.params)
    )
    found, _ = one_step(entry, run.problem, params, state, gradient)
    expected, _ = run.after[1]
    assert_close_of(entry, found, expected)


@every_transform
def test_python_numbers_are_scalars(entry):
    """And what they become has no weak type, with which a second step would compile again."""
    if "scalar leaf" in entry.refuses:
        pytest.skip("it has no scalar parameters")
    params = {"a": 0.5, "b": 0.75}
    problem = problems.coupled(params)
    state = entry.optimizer().init(params)
    gradient = jax.tree.map(float, problem.gradient(params))
    found, new_state = one_step(entry, problem, params, state, gradient)

    wide = jnp.result_type(float)
    arrays = jax.tree.map(lambda x: jnp.asarray(x, wide), params)
    strong = entry.optimizer().init(arrays)
    expected, _ = one_step(entry, problem, arrays, strong, problem.gradient(arrays))
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    assert not any(
        x.weak_type for x in jax.tree.leaves((state, new_state)) if hasattr(x, "weak_type")
    )


@every_transform
def test_leaves_that_are_no_real_numbers_are_left_alone(entry):
    """An epoch counter, a mask: the others move as if they were not there."""
    run = plain_run(entry)
    others = {"epoch": jnp.int32(3), "mask": np.array([True, False])}
    params = run.problem.params | others
    no_gradient = jax.tree.map(jnp.zeros_like, others)
    gradient = jax.jit(run.problem.gradient)(run.problem.params) | no_gradient

    def of_all(fn):
        """The loss finds the other leaves where it left them."""

        def wrapped(params, *rest):
            assert params["epoch"].dtype == jnp.int32
            return fn({name: x for name, x in params.items() if name not in others}, *rest)

        return wrapped

    problem = problems.Problem(None, of_all(run.problem.outputs_fn))
    found, state = one_step(entry, problem, params, entry.optimizer().init(params), gradient)
    expected, expected_state = run.after[1]
    chex.assert_trees_all_equal({name: found.pop(name) for name in others}, others)
    assert_close_of(entry, found, expected)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(expected_state))


@every_transform
def test_keyword_arguments_reach_the_functions_that_name_them(entry):
    """As in `update(..., value_fn=fn, x=x, y=y)` of Optax's line searches."""
    run = plain_run(entry)
    params, state = run.after[0]
    optimizer = entry.optimizer()

    def naming(name, fn):
        if name == "output_loss_fn":
            return lambda outputs, *, weight: weight * fn(outputs)
        if name == "outputs_fn":
            # The square root of the weight would be traced into a sum of squares.
            return lambda params, *, offset: jax.tree.map(lambda x: x + offset, fn(params))
        if name == "microbatch_value_fn":
            return lambda params, index, *, weight: weight * fn(params, index)
        return lambda params, *, weight, offset=1.0: weight * fn(params) + offset

    @jax.jit
    def step(params, state, weight, offset):
        arguments = {
            name: naming(name, fn) for name, fn in run.problem.extra_arguments(entry.needs).items()
        }
        updates, _ = optimizer.update(
            run.problem.gradient(params),
            state,
            params,
            weight=weight,
            offset=offset,
            unheard_of=0.0,
            **arguments,
        )
        return optax.apply_updates(params, updates)

    found = step(params, state, jnp.float32(1), jnp.float32(0))
    expected, _ = run.after[1]
    assert_close_of(entry, found, expected)


@every_entry
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: jnp.dtype(d).name)
def test_promotes_no_dtype_and_no_rank_by_itself(entry, dtype):
    """Under the strictest settings of JAX, with which many a code base is kept clean."""
    optimizer = entry.optimizer()
    params = params_of(entry, dtype=dtype)
    problem = problems.coupled(params)
    gradient = problem.gradient(params)

    def update(params, state):
        arguments = problem.extra_arguments(entry.needs)
        return optimizer.update(gradient, state, params, **arguments)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        state = jax.eval_shape(optimizer.init, params)
        updates, new_state = jax.eval_shape(update, params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes((updates, new_state), (params, state))


@every_transform
def test_no_step_of_an_eager_update_is_nan(entry):
    """`jax_debug_nans` looks at every operation, where a later one may have hidden a NaN: at a zero gradient."""
    optimizer = entry.optimizer()
    params = params_of(entry, SHAPES_WITHOUT_SCALAR)
    problem = problems.Problem(
        None, lambda p: jax.tree.map(lambda x: 0 * x, problems.coupled(p).outputs_fn(p))
    )
    gradient = jax.jit(problem.gradient)(params)
    with jax.debug_nans(True):
        state = optimizer.init(params)
        for _ in range(2):
            arguments = problem.extra_arguments(entry.needs)
            updates, state = optimizer.update(gradient, state, params, **arguments)
    assert_finite((updates, state))


@pytest.mark.parametrize(
    "entry", [e for e in registry.ENTRIES if e.needs and not e.variant], ids=str
)
def test_an_eager_step_compiles_nothing_that_the_one_before_did_not(entry):
    """Each step brings a new `value_fn`. A branch or a loop over it would compile anew, at seconds a step."""
    optimizer = entry.optimizer()
    params = params_of(entry, SHAPES_WITHOUT_SCALAR)
    state = optimizer.init(params)
    compiled = []

    def count(event, duration, **unused):
        del duration, unused
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for _ in range(7):
            # Past the first steps, at which some transforms measure, move an anchor or make a pair.
            before = len(compiled)
            problem = problems.coupled(params)
            arguments = problem.extra_arguments(entry.needs)
            gradient = problem.gradient(params)
            updates, state = optimizer.update(gradient, state, params, **arguments)
            params = optax.apply_updates(params, updates)
        assert len(compiled) == before, f"the last step compiled {len(compiled) - before} programs"
    finally:
        jax.monitoring.clear_event_listeners()


@every_transform
def test_a_value_function_with_auxiliary_data_is_named(entry):
    """There is no `has_aux`, and JAX's own error would name nothing that the user wrote."""
    scalars = [name for name in entry.needs if name.endswith("value_fn")]
    if not scalars:
        pytest.skip("it evaluates no loss")
    transform = entry.alone()
    params = params_of(entry, SHAPES_WITHOUT_SCALAR)
    problem = problems.coupled(params)
    grads, state = problem.gradient(params), transform.init(params)
    arguments = problem.extra_arguments(entry.needs)
    for name in scalars:
        given = arguments | {name: lambda *args, fn=arguments[name]: (fn(*args), "aux")}
        with pytest.raises(ValueError, match=rf"(?s){entry.name}: `{name}`.*has_aux"):
            jax.eval_shape(
                lambda given=given: transform.update(grads, state, params, grad=grads, **given)[0]
            )


@every_transform
def test_the_derivative_through_a_step_at_a_zero_gradient_is_finite(entry):
    """Of the derivatives that a step takes of its norms and logarithms none may be infinite there."""
    if entry.without_reverse_mode:
        pytest.skip("it has forward derivatives alone")
    optimizer = entry.optimizer()
    params = params_of(entry, SHAPES_WITHOUT_SCALAR)

    def after(scale):
        # Not of the parameters, in which a loss without a gradient has no curvature either.
        problem = problems.Problem(
            None,
            lambda p: jax.tree.map(lambda x: scale * x, problems.coupled(p).outputs_fn(p)),
        )
        carry = (params, optimizer.init(params))
        step = training_step(entry, optimizer, problem)
        (end, _), _ = jax.lax.scan(lambda c, _: (step(*c), None), carry, length=2)
        return sum(jnp.sum(x) for x in jax.tree.leaves(end))

    assert_finite(jax.jit(jax.grad(after))(jnp.zeros([])))
