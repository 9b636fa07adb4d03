"""What the builder of transforms does for all of them, seen through a technique of three lines."""

import functools

import chex
import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from optax_igr._core import hyperparameters, paths, transform, trees


def add_loss_gradient():
    """Adds the gradient of `value_fn` to the gradient, and counts the updates in the shape of the parameters."""

    def init(params):
        return {"seen": jax.tree.map(jnp.zeros_like, params)}

    def update(updates, state, params, *, gradient, value_fn, **unused):
        del unused
        more = jax.grad(value_fn)(params)
        total = jax.tree.map(lambda u, g, m: u + 10 * g + 100 * m, updates, gradient, more)
        return total, {"seen": jax.tree.map(lambda s: s + 1, state["seen"])}

    return transform.transform("add_loss_gradient", init, update, needs=("params", "value_fn"))


def loss(params):
    return jnp.sum(params["w"] ** 2) / 2


def test_gradient_is_grad_where_given_and_the_updates_elsewhere():
    params = {"w": jnp.array([3.0])}
    updates, grad = {"w": jnp.array([0.25])}, {"w": jnp.array([0.5])}
    built = add_loss_gradient()
    state = built.init(params)
    found, _ = built.update(updates, state, params, value_fn=loss)
    np.testing.assert_allclose(found["w"], 0.25 + 2.5 + 300)
    found, _ = built.update(updates, state, params, value_fn=loss, grad=grad)
    np.testing.assert_allclose(found["w"], 0.25 + 5 + 300)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (np.array([3.0]), 3.0),
        (np.array([3.0], np.float32), 3.0),
        (np.float64(3.0), 3.0),
        (3.0, 3.0),
        (jnp.asarray(3.0), 3.0),
    ],
    ids=["float64 array", "float32 array", "float64 scalar", "Python number", "weak type"],
)
def test_numpy_and_python_leaves_are_arrays(params, expected):
    built = add_loss_gradient()
    params = {"w": params}
    state = jax.tree.map(np.asarray, built.init(params))
    grads = jax.tree.map(lambda x: 0.5 * x, params)
    found, state = built.update(grads, state, params, value_fn=loss)
    np.testing.assert_allclose(found["w"], 11 * 0.5 * expected + 100 * expected)
    assert isinstance(found["w"], jax.Array)
    assert not found["w"].weak_type
    assert not state["seen"]["w"].weak_type


def test_a_second_step_with_weak_parameters_compiles_once_more_at_most():
    """The first step makes them strong, as it does under Optax's own transforms."""
    built = add_loss_gradient()

    @jax.jit
    @chex.assert_max_traces(2)
    def step(params, state):
        updates, state = built.update(jax.grad(loss)(params), state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    params = {"w": jnp.asarray(1.0)}
    state = built.init(params)
    for _ in range(4):
        params, state = step(params, state)


def test_other_leaves_are_left_alone_and_given_back_to_the_loss():
    """The loss reads the integer; the technique never sees it."""
    params = {
        "w": jnp.array([3.0]),
        "step": jnp.array(7),
        "flag": np.array(True),
        "key": jax.random.key(0),
    }

    def scaled_loss(p):
        assert jnp.issubdtype(p["key"].dtype, jax.dtypes.prng_key)
        return p["step"] * loss(p)

    updates = {"w": jnp.array([0.25]), "step": jnp.array(5), "flag": None, "key": None}
    updates["flag"], updates["key"] = params["flag"], params["key"]
    built = add_loss_gradient()
    state = built.init(params)
    assert state["seen"]["step"] is None
    found, state = jax.jit(functools.partial(built.update, value_fn=scaled_loss))(
        updates, state, params
    )
    np.testing.assert_allclose(found["w"], 0.25 + 2.5 + 2100)
    assert found["step"] == 5
    assert found["flag"]
    assert found["key"] == params["key"]
    assert state["seen"]["step"] is None


def test_keyword_arguments_go_to_the_functions_that_name_them():
    def batch_loss(params, x, *, y=0.0):
        return loss(params) * x + y * params["w"][0]

    params, built = {"w": jnp.array([3.0])}, add_loss_gradient()
    state = built.init(params)
    zeros = {"w": jnp.zeros(1)}
    found, _ = built.update(zeros, state, params, value_fn=batch_loss, x=2.0, unheard_of=1)
    np.testing.assert_allclose(found["w"], 600)
    jitted = jax.jit(batch_loss)
    found, _ = built.update(zeros, state, params, value_fn=jitted, x=2.0, y=0.5)
    np.testing.assert_allclose(found["w"], 650)


def test_a_wrapper_hands_on_the_arguments_and_a_line_search_inside_takes_them():
    def wrapped_update(updates, state, params, *, gradient, **extra):
        del gradient
        return inner.update(updates, state, params, **extra)

    inner = optax.lbfgs()
    outer = transform.transform("outer", inner.init, wrapped_update)

    def batch_loss(params, x):
        return jnp.sum((params["w"] - x) ** 2)

    params, x = {"w": jnp.zeros(2), "count": jnp.array(1)}, jnp.array([1.0, -2.0])
    state = outer.init(params)
    for _ in range(3):
        value, grad = jax.value_and_grad(batch_loss, allow_int=True)(params, x)
        updates, state = outer.update(
            grad, state, params, value=value, grad=grad, value_fn=batch_loss, x=x
        )
        params["w"] += updates["w"]
    np.testing.assert_allclose(params["w"], x, atol=1e-5)


@pytest.mark.parametrize("missing", ["params", "value_fn"])
def test_a_missing_argument_is_named(missing):
    params, built = {"w": jnp.array([3.0])}, add_loss_gradient()
    given = {"params": params, "value_fn": loss}
    del given[missing]
    with pytest.raises(ValueError, match=r"add_loss_gradient needs"):
        built.update(params, built.init(params), **given)


def test_a_function_that_is_none_is_named():
    params, built = {"w": jnp.array([3.0])}, add_loss_gradient()
    with pytest.raises(ValueError, match=r"add_loss_gradient: `value_fn` must be a function"):
        built.update(params, built.init(params), params, value_fn=1.0)


@pytest.mark.parametrize("rate", [None, np.nan, 1j, True, "fast", np.inf, np.ones(2)])
def test_a_learning_rate_that_is_no_real_number_is_refused(rate):
    with pytest.raises(ValueError, match="an_optimizer: `learning_rate` must be"):
        transform.scale_by_learning_rate("an_optimizer", rate)


def test_a_schedule_of_learning_rates_leaves_out_what_is_not_finite():
    descend = transform.scale_by_learning_rate("an_optimizer", lambda count: 1.0 / count)
    state = descend.init(jnp.array(2.0))
    found = []
    for _ in range(3):
        update, state = descend.update(jnp.array(2.0), state)
        found.append(float(update))
    np.testing.assert_allclose(found, [0.0, -2.0, -1.0])


@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.5, 0.5), (0.0, 0.0), (-1.0, 0.0), (np.nan, 0.25), (np.inf, 0.25), (-np.inf, 0.25)],
)
def test_a_schedule_stays_in_its_range(kind, value, expected):
    bounded = hyperparameters.checked(
        "t", "a", lambda _: kind(value), at_least=0, below=1, otherwise=0.25
    )
    assert float(bounded(0)) == expected


@pytest.mark.parametrize("kind", [float, jnp.float32, jnp.bfloat16])
def test_a_schedule_stays_below_a_bound(kind):
    for value in (1.0, 2.0):
        found = hyperparameters.checked("t", "a", lambda _, v=value: kind(v), at_least=0, below=1)(
            0
        )
        assert 0.99 < float(found) < 1


def test_a_schedule_that_is_not_above_its_bound_takes_another_value():
    values = jnp.array([0.0, -1.0, 2.0, jnp.nan, jnp.inf])
    found = hyperparameters.checked("t", "a", lambda i: values[i], above=0, otherwise=3.0)
    np.testing.assert_array_equal(jax.vmap(found)(jnp.arange(5)), [3, 3, 2, 3, 3])
    unlimited = hyperparameters.checked(
        "t", "a", lambda i: values[i], above=0, otherwise=3.0, allow_infinite=True
    )
    np.testing.assert_array_equal(jax.vmap(unlimited)(jnp.arange(5)), [3, 3, 2, 3, np.inf])


def test_a_traced_number_stays_in_its_range():
    def construct(rate):
        return hyperparameters.checked("t", "rate", rate, at_least=0)

    np.testing.assert_array_equal(
        jax.vmap(construct)(jnp.array([0.5, -1.0, jnp.nan])), [0.5, 0.0, 0.0]
    )


class Dense(linen.Module):
    """A Linen layer whose kernel comes in a box with the names of its axes."""

    @linen.compact
    def __call__(self, x):
        boxed = linen.with_partitioning(linen.initializers.ones, ("in", "out"))
        return linen.Dense(2, kernel_init=boxed, name="dense")(x)


def test_paths_do_not_see_boxes():
    model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    boxed = nnx.state(model, nnx.Param)
    variables = Dense().init(jax.random.key(0), jnp.ones((1, 2)))
    mlp = equinox.filter(equinox.nn.Linear(2, 2, key=jax.random.key(0)), equinox.is_array)
    expected = {
        "nnx": (boxed, ["layers/0/bias", "layers/0/kernel"]),
        "pure": (nnx.as_pure(boxed), ["layers/0/bias", "layers/0/kernel"]),
        "linen": (variables, ["params/dense/bias", "params/dense/kernel"]),
        "unboxed": (linen.unbox(variables), ["params/dense/bias", "params/dense/kernel"]),
        "equinox": (mlp, ["weight", "bias"]),
        # A leaf that is called so by its owner is no box.
        "dict": ({"value": jnp.ones(2)}, ["value"]),
        "tree in a variable": (nnx.Param({"a": jnp.ones(2)}), ["a"]),
        "one leaf": (jnp.ones(2), ["at the root"]),
    }
    for name, (tree, spelled_paths) in expected.items():
        assert [paths.spell(path) for path, _ in paths.leaves_with_path(tree)] == spelled_paths, (
            name
        )
        spelled = paths.map_with_path(lambda path, x, y: (paths.spell(path), x is y), tree, tree)
        chex.assert_trees_all_equal_structs(
            jax.tree.map(lambda _: 0, tree),
            jax.tree.map(lambda _: 0, spelled, is_leaf=lambda x: isinstance(x, tuple)),
        )
        assert jax.tree.leaves(spelled, is_leaf=lambda x: isinstance(x, tuple)) == [
            (path, True) for path in spelled_paths
        ]


def test_a_mask_is_made_from_values_and_fits_boxes():
    """The same function of the paths masks what `init` and what `update` sees."""
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    boxed = nnx.state(model, nnx.Param)

    def is_kernel(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    for mask in (is_kernel, is_kernel(nnx.as_pure(boxed)), jax.tree.map(lambda _: True, boxed)):
        for tree in (boxed, nnx.as_pure(boxed)):
            selected, fill = trees.select("t", tree, mask)
            kept = {paths.spell(path) for path, _ in paths.leaves_with_path(selected)}
            assert "kernel" in kept
            chex.assert_trees_all_equal(fill(selected), tree)


def test_a_module_that_can_be_called_is_a_mask_and_no_function():
    """`optax.masked` calls it: https://github.com/patrick-kidger/equinox/issues/193."""
    model = equinox.filter(equinox.nn.Linear(2, 2, key=jax.random.key(0)), equinox.is_array)
    mask = jax.tree.map(lambda x: x.ndim == 2, model)
    assert callable(mask)
    selected, _ = trees.select("t", model, mask)
    assert selected.weight is model.weight
    assert selected.bias is None
