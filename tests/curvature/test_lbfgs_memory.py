"""The memory against dense BFGS matrices in float64, at every offset of its ring buffer."""

import re

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optax_igr.curvature import _lbfgs_memory, _lbfgs_push
from tests.curvature import dense

SHAPES = {"a": (3,), "b": (2, 2)}
SIZE = 7
PARAMS = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
_, unravel = jax.flatten_util.ravel_pytree(PARAMS)

push = jax.jit(_lbfgs_push.push, static_argnames="powell_damping")
apply = jax.jit(_lbfgs_memory.apply, static_argnames="form")
apply_inverse = jax.jit(_lbfgs_memory.apply_inverse)
FORMS = _lbfgs_memory.FORMS


def ravel(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])


def matrix_of(function, memory):
    return np.stack([ravel(function(memory, unravel(row))) for row in jnp.eye(SIZE)], axis=1)


def pairs_of_a_quadratic(count, condition=30.0):
    rng = np.random.default_rng(1)
    matrix = dense.spd(SIZE, condition)
    # Steps of very different length, as they are when a run converges.
    steps = [rng.normal(size=SIZE) * 10.0 ** -(k % 4) for k in range(count)]
    return [(s, matrix @ s) for s in steps]


@pytest.fixture(scope="module")
def filling():
    """A memory of three slots after each of eight pairs, and the pairs that it should then hold."""
    memory, pairs, history = _lbfgs_memory.init(PARAMS, 3), [], []
    for s, y in pairs_of_a_quadratic(8):
        memory = push(memory, unravel(s), unravel(y))
        pairs.append((s, y))
        history.append((memory, pairs[-3:]))
    return history


@pytest.mark.parametrize("form", FORMS)
def test_a_product_is_that_of_the_dense_matrix_at_every_offset(filling, form):
    for memory, pairs in filling:
        found = matrix_of(lambda m, v: apply(m, v, form=form), memory)
        expected = dense.inverse_hessian(pairs)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
        assert np.linalg.eigvalsh((found + found.T) / 2).min() > 0


@pytest.mark.parametrize("form", FORMS)
def test_the_newest_pair_satisfies_the_secant_equation(filling, form):
    for memory, pairs in filling:
        s, y = pairs[-1]
        np.testing.assert_allclose(
            ravel(apply(memory, unravel(y), form=form)), s, rtol=0, atol=1e-13 * np.abs(s).max()
        )


def test_the_gram_form_is_the_two_loop_recursion(filling):
    vector = unravel(np.random.default_rng(2).normal(size=SIZE))
    for memory, _ in filling:
        two_loop, gram = (ravel(apply(memory, vector, form=f)) for f in ("two_loop", "gram"))
        np.testing.assert_allclose(gram, two_loop, rtol=0, atol=1e-14 * np.abs(two_loop).max())


def test_the_inverse_product_is_that_of_the_inverse_matrix(filling):
    for memory, pairs in filling:
        found = matrix_of(apply_inverse, memory)
        expected = np.linalg.inv(dense.inverse_hessian(pairs))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


def test_an_empty_memory_is_the_identity():
    memory = _lbfgs_memory.init(PARAMS, 3)
    vector = unravel(np.arange(1.0, SIZE + 1))
    for product in (
        apply(memory, vector, form="two_loop"),
        apply(memory, vector, form="gram"),
        apply_inverse(memory, vector),
    ):
        chex.assert_trees_all_equal(product, vector)


def broken_pairs():
    s, y = pairs_of_a_quadratic(1)[0]
    orthogonal = y - (s @ y) / (s @ s) * s
    return {
        "negative curvature": (s, -y),
        "no curvature": (s, orthogonal),
        "zero step": (0 * s, y),
        "zero change": (s, 0 * y),
        "NaN": (s, np.where(np.arange(SIZE) == 2, np.nan, y)),
        "infinity": (np.where(np.arange(SIZE) == 2, np.inf, s), y),
        "overflow": (1e200 * s, 1e200 * y),
        "underflow": (1e-200 * s, 1e-200 * y),
    }


@pytest.mark.parametrize("reason", broken_pairs())
def test_a_rejected_pair_leaves_every_bit_and_is_counted(filling, reason):
    s, y = broken_pairs()[reason]
    for memory, _ in [(_lbfgs_memory.init(PARAMS, 3), []), *filling[::3]]:
        found = push(memory, unravel(s), unravel(y))
        assert found.rejected_count == memory.rejected_count + 1
        assert found.rejected_in_a_row == memory.rejected_in_a_row + 1
        counts = {"rejected_count": 0, "rejected_in_a_row": 0}
        chex.assert_trees_all_equal(found._replace(**counts), memory._replace(**counts))


@pytest.mark.parametrize(("factor", "is_accepted"), [(0.99e6, True), (1.01e6, False)])
def test_a_pair_far_from_the_size_of_the_newest_is_rejected(factor, is_accepted):
    s, other = np.eye(SIZE)[:2]
    for scale in (1e-9, 1.0, 1e9):
        memory = push(
            _lbfgs_memory.init(PARAMS, 3), unravel(s), unravel(scale * (0.6 * s + 0.8 * other))
        )
        assert memory.pair_count == 1
        for power in (1, -1):
            y = 0.1 * scale * factor**power * (0.8 * s - 0.6 * other)
            assert (push(memory, unravel(0.1 * s), unravel(y)).pair_count == 2) == is_accepted
        # An empty memory knows no scale.
        first = push(_lbfgs_memory.init(PARAMS, 3), unravel(s), unravel(factor * scale * s))
        assert first.pair_count == 1


def products_of(memory):
    """The matrices that the memory multiplies by: H in both forms, and B."""
    forms = [matrix_of(lambda m, v, f=form: apply(m, v, form=f), memory) for form in FORMS]
    return *forms, matrix_of(apply_inverse, memory)


def test_a_memory_that_only_rejects_is_dropped(filling):
    """At every offset of the ring; the pairs that are still in its slots must not be seen."""
    broken = unravel(np.full(SIZE, np.nan))
    pairs = pairs_of_a_quadratic(8)
    for memory, held in filling:
        s, y = held[-1]
        gamma = min(s @ y / (y @ y), 1)
        for _ in range(9):
            memory = push(memory, broken, broken)
        np.testing.assert_allclose(products_of(memory)[0], dense.inverse_hessian(held), atol=1e-12)
        dropped = push(memory, broken, broken)
        assert (dropped.held_count, dropped.dropped_count, dropped.rejected_count) == (0, 1, 10)
        assert dropped.pair_count == memory.pair_count
        # From its last scale H grows by 10 with every further rejection, and ends at I.
        for factor in (gamma, min(10 * gamma, 1), min(100 * gamma, 1), min(1000 * gamma, 1)):
            *forms, inverse = products_of(dropped)
            for matrix in forms:
                np.testing.assert_allclose(matrix, factor * np.eye(SIZE), rtol=1e-12, atol=0)
            np.testing.assert_allclose(inverse, np.eye(SIZE) / factor, rtol=1e-12, atol=0)
            dropped = push(dropped, broken, broken)
        assert dropped.dropped_count == 1

        for count, (s, y) in enumerate(pairs[:4], 1):
            dropped = push(dropped, unravel(s), unravel(y))
            assert dropped.held_count == min(count, 3)
            expected = dense.inverse_hessian(pairs[:count][-3:])
            *forms, inverse = products_of(dropped)
            for matrix in forms:
                np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-12)
            np.testing.assert_allclose(inverse, np.linalg.inv(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("powell_damping", [None, 0.2])
def test_the_first_pair_after_a_drop_is_not_damped(filling, powell_damping):
    memory, _ = filling[-1]
    broken = unravel(np.full(SIZE, np.nan))
    for _ in range(10):
        memory = push(memory, broken, broken)
    s = np.linspace(1, 2, SIZE)
    memory = push(memory, unravel(s), unravel(1e-4 * s), powell_damping=powell_damping)
    np.testing.assert_allclose(products_of(memory)[0], 1e4 * np.eye(SIZE), rtol=1e-12, atol=1e-8)


def test_a_pair_that_is_not_due_is_neither_made_nor_counted(filling):
    made = []

    def make_pair():
        jax.debug.callback(lambda: made.append(True))
        return tuple(map(unravel, pairs_of_a_quadratic(1)[0]))

    push_if = jax.jit(lambda condition, memory: _lbfgs_push.push_if(condition, memory, make_pair))
    memory, _ = filling[-1]
    chex.assert_trees_all_equal(push_if(False, memory), memory)
    jax.effects_barrier()
    assert made == []
    assert push_if(True, memory).pair_count == memory.pair_count + 1


def test_the_histories_are_updated_in_place():
    params = {"w": jnp.zeros([5000]), "b": jnp.zeros([100, 30])}
    memory = _lbfgs_memory.init(params, 4)

    def update(memory, condition, vector):
        memory = _lbfgs_push.push_if(condition, memory, lambda: (vector, vector))
        return memory, _lbfgs_memory.apply(memory, vector)

    compiled = jax.jit(update, donate_argnums=0).lower(memory, True, params).compile()
    history = r"f64\[4,(5000|100,30)\]"
    assert re.search(history, compiled.as_text())
    assert re.findall(history + r"\S* copy\(", compiled.as_text()) == []


def test_the_guard_is_the_angle_alone():
    """Against every scaling of the loss and of the parameters, just on either side of the limit."""
    s, other = np.eye(SIZE)[:2]
    for cosine, accepted in ((0.0099, 0), (0.0101, 1)):
        y = cosine * s + np.sqrt(1 - cosine**2) * other
        for loss_scale in (1e-60, 1.0, 1e60):
            for parameter_scale in (1e-40, 1.0, 1e40):
                memory = push(
                    _lbfgs_memory.init(PARAMS, 2),
                    unravel(parameter_scale * s),
                    unravel(loss_scale / parameter_scale * y),
                    min_cosine=0.01,
                )
                assert memory.pair_count == accepted


def test_powell_damping_stores_the_damped_pair_exactly():
    memory, pairs = _lbfgs_memory.init(PARAMS, 3), []
    rng = np.random.default_rng(3)
    num_damped = 0
    for s, y in pairs_of_a_quadratic(8):
        y = y * rng.choice([1.0, -0.3, 0.01])
        if not pairs:
            y = np.abs(s @ y) / (s @ y) * y
        memory = push(memory, unravel(s), unravel(y), powell_damping=0.2)
        damped = dense.powell(pairs[-3:], s, y, 0.2)
        if pairs and not np.array_equal(damped, y):
            curved = np.linalg.inv(dense.inverse_hessian(pairs[-3:])) @ s
            num_damped += 1
            stored = memory.products[(memory.pair_count - 1) % 3, 3 + (memory.pair_count - 1) % 3]
            assert float(stored / (s @ curved)) == pytest.approx(0.2, rel=1e-11)
        pairs.append((s, damped))
        expected = dense.inverse_hessian(pairs[-3:])
        found = matrix_of(lambda m, v: apply(m, v, form="two_loop"), memory)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    assert memory.rejected_count == 0
    assert 2 <= num_damped <= 6


@pytest.mark.parametrize("memory_size", [1, 3, SIZE])
@pytest.mark.parametrize("form", FORMS)
def test_exact_line_searches_end_on_a_quadratic_in_n_steps(memory_size, form):
    matrix = dense.spd(SIZE, 10.0)
    x = np.random.default_rng(4).normal(size=SIZE)
    memory = _lbfgs_memory.init(PARAMS, memory_size)
    gradient = first_gradient = matrix @ x
    for _ in range(SIZE):
        direction = ravel(apply(memory, unravel(gradient), form=form))
        s = -(gradient @ direction) / (direction @ matrix @ direction) * direction
        x = x + s
        memory = push(memory, unravel(s), unravel(matrix @ s))
        gradient = matrix @ x
    assert np.linalg.norm(gradient) <= 1e-11 * np.linalg.norm(first_gradient)
    if memory_size == SIZE:
        product = matrix_of(lambda m, v: apply(m, v, form=form), memory) @ matrix
        np.testing.assert_allclose(product, np.eye(SIZE), atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_bfloat16_history_is_reduced_in_float32(form):
    rng = np.random.default_rng(5)
    params = {"w": jnp.zeros([10_000], jnp.bfloat16)}
    memory = _lbfgs_memory.init(params, 2, jnp.bfloat16)
    assert memory.steps["w"].dtype == jnp.bfloat16
    for _ in range(3):
        s = rng.normal(size=10_000)
        memory = push(
            memory,
            *({"w": jnp.asarray(v, jnp.float32)} for v in (s, s * rng.uniform(1, 2, 10_000))),
        )
    newest = (memory.pair_count - 1) % 2
    y, s = (
        {"w": history["w"][newest].astype(jnp.float32)}
        for history in (memory.gradient_changes, memory.steps)
    )
    np.testing.assert_allclose(apply(memory, y, form=form)["w"], s["w"], atol=2e-6)


def test_default_dtypes_are_float32_or_wider():
    dtypes = {"h": jnp.bfloat16, "f": jnp.float32, "d": jnp.float64, "c": jnp.complex64}
    params = {name: jnp.zeros([2], dtype) for name, dtype in dtypes.items()}
    memory = _lbfgs_memory.init(params, 4)
    found = {name: leaf.dtype for name, leaf in memory.steps.items()}
    assert found == {**dtypes, "h": jnp.float32}


def test_the_gram_form_reduces_once_on_a_mesh():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    params = {"w": jax.device_put(jnp.zeros([16]), sharding)}
    memory = _lbfgs_memory.init(params, 4)
    assert memory.steps["w"].sharding.spec == PartitionSpec(None, "x")

    text = apply.lower(memory, params, form="gram").compile().as_text()
    assert text.count(" all-reduce(") == 1
    assert "all-gather" not in text
