"""The makers of value functions: the mask filled, the micro-batches equal to the whole."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_igr
from optax_igr._core import derivatives


def test_filled_value_function_serves_both_sides_of_a_partition():
    def value_fn(p):
        return jnp.sum(jnp.sin(p["a"] * p["b"]["c"]) + p["a"] ** 2 * p["b"]["c"])

    params = {"a": jnp.array([0.3, 0.7]), "b": {"c": jnp.array([1.1, -0.4])}}
    gradient = jax.grad(value_fn)(params)
    optimizer = optax.partition(
        {"one": optax_igr.add_gradient_penalty(0.1), "two": optax_igr.add_gradient_penalty(0.2)},
        {"a": "one", "b": "two"},
    )
    updates, _ = optimizer.update(
        gradient,
        optimizer.init(params),
        params,
        value_fn=optax_igr.fill_masked(value_fn, params),
        grad=gradient,
    )
    # Each side penalises its own part of the gradient with the other side held constant: ∇_a ‖∇_a E‖².
    for name, coefficient in (("a", 0.1), ("b", 0.2)):

        def own(part, name=name):
            return value_fn({**params, name: part})

        penalty = jax.grad(
            lambda part, own=own: sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(own)(part)))
        )(params[name])
        jax.tree.map(
            lambda u, g, p, c=coefficient: np.testing.assert_allclose(u, g + c * p, rtol=1e-12),
            updates[name],
            gradient[name],
            penalty,
        )


@pytest.fixture
def regression():
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.normal(size=(12, 3))), "y": jnp.asarray(rng.normal(size=12))}

    def loss_fn(w, samples):
        return jnp.mean(jnp.cosh(samples["x"] @ w - samples["y"]))

    return loss_fn, batch, jnp.array([0.1, -0.2, 0.3])


def test_microbatches_recombine_to_the_batch(regression):
    loss_fn, batch, w = regression
    value_fn, microbatch_value_fn = optax_igr.microbatched(loss_fn, batch, 4)
    assert float(value_fn(w)) == pytest.approx(float(loss_fn(w, batch)), rel=1e-14)
    parts = [microbatch_value_fn(w, b) for b in range(4)]
    assert float(sum(parts)) / 4 == pytest.approx(float(loss_fn(w, batch)), rel=1e-14)
    second = {"x": batch["x"][1::4], "y": batch["y"][1::4]}
    assert float(parts[1]) == pytest.approx(float(loss_fn(w, second)), rel=1e-14)
    v = jnp.array([1.0, 2.0, -1.0])
    for mode in derivatives.EXACT_MODES:
        np.testing.assert_allclose(
            derivatives.hessian_vector_product(value_fn, w, v, mode=mode),
            derivatives.hessian_vector_product(lambda w: loss_fn(w, batch), w, v),
            rtol=1e-12,
        )


def test_gradients_of_bfloat16_parameters_are_added_in_float32():
    """Their sum over micro-batches is rounded once, as by `optax.MultiSteps`, not once for each."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1024, 32)), jnp.float32)
    w = jnp.asarray(rng.normal(size=32), jnp.bfloat16)

    def loss_fn(w, x):
        return jnp.mean((jnp.tanh(x @ w.astype(jnp.float32)) - 1) ** 2)

    expected = jax.grad(loss_fn)(w.astype(jnp.float32), x)
    value_fn, _ = optax_igr.microbatched(loss_fn, x, 256)
    found = jax.grad(value_fn)(w)
    assert found.dtype == jnp.bfloat16
    error = jnp.linalg.norm(found.astype(jnp.float32) - expected) / jnp.linalg.norm(expected)
    # Each gradient is rounded to 2 ** -9; the sum of 256 in bfloat16 was off by 2 ** -6.
    assert error < 2**-8


def test_memory_is_that_of_one_microbatch():
    def loss_fn(w, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ w) ** 2)

    w, batch = jnp.ones((64, 64)), jnp.ones((4096, 64))
    whole = jax.jit(jax.grad(lambda w: loss_fn(w, batch))).lower(w).compile()
    value_fn, _ = optax_igr.microbatched(loss_fn, batch, 16)
    parts = jax.jit(jax.grad(value_fn)).lower(w).compile()
    temporary = [c.memory_analysis().temp_size_in_bytes for c in (parts, whole)]
    assert temporary[0] < temporary[1] / 4


def test_batch_that_does_not_divide_is_named(regression):
    loss_fn, batch, _ = regression
    with pytest.raises(ValueError, match=r"multiple of num_microbatches=5; leaf \['x'\]"):
        optax_igr.microbatched(loss_fn, batch, 5)


def assert_all_close(found, expected):
    # A difference has the rounding of its radius.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), found, expected
    )


def replicated_loss(w, samples):
    return jnp.sum(jnp.sin(w) * samples) + jnp.sum(w**4) * jnp.mean(samples)


def stacked(tree):
    return jax.tree.map(lambda x: jnp.stack([x] * 4), tree)


def on_pmap(function, w, samples):
    return jax.pmap(function, axis_name="i")(stacked(w), samples)


def on_vmap(function, w, samples):
    return jax.vmap(function, axis_name="i")(stacked(w), samples)


def on_vmap_with_one_copy(function, w, samples):
    return jax.vmap(function, in_axes=(None, 0), axis_name="i")(w, samples)


def on_shard_map(function, w, samples, *, check_vma):
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    sharded = jax.shard_map(
        lambda w, samples: function(w, samples[0]),
        mesh=mesh,
        in_specs=(P(), P("i")),
        out_specs=P(),
        check_vma=check_vma,
    )
    return stacked(jax.jit(sharded)(w, samples))


REPLICAS = {
    "pmap": on_pmap,
    "vmap": on_vmap,
    "vmap one copy": on_vmap_with_one_copy,
    "shard_map": functools.partial(on_shard_map, check_vma=False),
    "shard_map check_vma": functools.partial(on_shard_map, check_vma=True),
}
every_loop = pytest.mark.parametrize("loop", REPLICAS.values(), ids=REPLICAS.keys())
W = jnp.array([0.3, 0.7, -0.2])
SAMPLES = jnp.arange(12.0).reshape(4, 3) - 4


def derivatives_of_value_fn(value_fn, w):
    """The value, the gradient, H v in every mode, and a third derivative."""
    v = jnp.array([1.0, 2.0, 3.0])
    products = [
        derivatives.hessian_vector_product(value_fn, w, v, mode=mode) for mode in derivatives.MODES
    ]
    curvature = jax.grad(
        lambda w: v @ derivatives.hessian_vector_product(
            value_fn, w, v, mode="reverse_over_forward"
        )
    )  # fmt: skip
    _, product = jax.linearize(jax.grad(value_fn), w)
    checkpointed = jax.grad(jax.checkpoint(value_fn))(w)
    return [value_fn(w), jax.grad(value_fn)(w), products, curvature(w), product(v), checkpointed]


@every_loop
def test_mean_over_replicas_is_one_device_in_every_derivative(loop):
    def local(w, samples):
        value_fn = optax_igr.mean_over("i", lambda w: replicated_loss(w, samples))
        return derivatives_of_value_fn(value_fn, w)

    found = loop(local, W, SAMPLES)
    expected = derivatives_of_value_fn(
        lambda w: jnp.mean(jax.vmap(replicated_loss, (None, 0))(w, SAMPLES)), W
    )
    assert_all_close(found, stacked(expected))


@every_loop
def test_mean_over_replicas_is_one_device_for_gauss_newton(loop):
    """The outputs stay those of the replica: only the loss is averaged."""
    v = jnp.array([1.0, -1.0, 2.0])

    def outputs_fn(w, samples):
        return jnp.sin(w * samples)

    def output_loss_fn(outputs):
        return jnp.sum(jnp.cosh(outputs))

    def local(w, samples):
        functions = optax_igr.mean_over("i", lambda w: outputs_fn(w, samples), output_loss_fn)
        product = derivatives.gauss_newton_vector_product(*functions, w, v)
        return product, functions[1](functions[0](w))

    found = loop(local, W, SAMPLES)
    whole = derivatives.gauss_newton_vector_product(
        lambda w: outputs_fn(w[None], SAMPLES), lambda o: output_loss_fn(o) / 4, W, v
    )
    assert_all_close(found, stacked((whole, output_loss_fn(outputs_fn(W[None], SAMPLES)) / 4)))


def test_mean_over_two_axes_keyword_arguments_and_auxiliary_data():
    def loss_fn(w, samples, *, power):
        return jnp.sum(w**power * samples), samples

    wrapped = optax_igr.mean_over(("i", "j"), loss_fn, has_aux=True)
    assert list(inspect.signature(wrapped).parameters) == ["w", "samples", "power"]

    def local(w, samples):
        return jax.value_and_grad(wrapped, has_aux=True)(w, samples, power=3)

    samples = SAMPLES.reshape(2, 2, 3)
    inner = jax.vmap(local, in_axes=(None, 0), axis_name="j")
    (value, aux), grad = jax.vmap(inner, in_axes=(None, 0), axis_name="i")(W, samples)
    mean = SAMPLES.mean(0)
    np.testing.assert_allclose(value, jnp.full((2, 2), jnp.sum(W**3 * mean)))
    np.testing.assert_allclose(grad, jnp.broadcast_to(3 * W**2 * mean, (2, 2, 3)))
    np.testing.assert_array_equal(aux, samples)


def test_mean_over_leaves_integers_and_holes_alone_and_keeps_bfloat16_exactly():
    params = {
        "w": jnp.linspace(0.1, 3.3, 7, dtype=jnp.bfloat16),
        "n": jnp.arange(3),
        "none": None,
        "masked": optax.MaskedNode(),
    }
    seen = optax_igr.mean_over("i", lambda p: (jnp.float32(0), p), has_aux=True)
    # A mean over seven equal numbers of eight bits would be rounded.
    copies = jax.tree.map(lambda x: jnp.stack([x] * 7), params)
    _, found = jax.vmap(seen, axis_name="i")(copies)
    jax.tree.map(np.testing.assert_array_equal, found, copies)
    assert found["n"].dtype == params["n"].dtype


def test_mean_over_names_what_it_needs():
    value_fn = optax_igr.mean_over("i", lambda w: jnp.sum(w**2))
    with pytest.raises(ValueError, match=r"mean_over: the axis \('i',\) is not bound"):
        value_fn(W)
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    varying = jax.shard_map(
        lambda w: value_fn({"w": w[0]}), mesh=mesh, in_specs=P("i"), out_specs=P()
    )
    with pytest.raises(ValueError, match=r"mean_over: .* leaf \['w'\] varies along \('i',\)"):
        varying(stacked(W))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_microbatches_keep_every_device_busy(kind, optimized_compilation):
    """FLOPs of one device; the compiler counts the body of the loop over micro-batches once."""

    def loss_fn(w, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ w) ** 2)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        w = jax.device_put(np.eye(32, dtype="f4") + 0.1, NamedSharding(mesh, P()))
        x = np.random.default_rng(0).normal(size=(128, 32)).astype("f4")
        x = jax.device_put(x, NamedSharding(mesh, P("data")))

        @functools.partial(jax.jit, static_argnums=2)
        def gradient(w, x, num_microbatches):
            value_fn, microbatch_value_fn = optax_igr.microbatched(loss_fn, x, num_microbatches)
            parts = [microbatch_value_fn(w, b) for b in range(num_microbatches)]
            return jax.grad(value_fn)(w), sum(parts) / num_microbatches

        plain = jax.jit(jax.value_and_grad(loss_fn)).lower(w, x).compile()
        value, expected = plain(w, x)
        for num_microbatches in (2, 4, 8, 16):
            step = jax.jit(
                lambda w, x, k=num_microbatches: jax.grad(optax_igr.microbatched(loss_fn, x, k)[0])(
                    w
                )
            )
            compiled = step.lower(w, x).compile()
            flops = compiled.cost_analysis()["flops"] * num_microbatches
            assert flops < 1.3 * plain.cost_analysis()["flops"]
            assert "all-gather" not in compiled.as_text()
            np.testing.assert_allclose(compiled(w, x), expected, rtol=1e-4, atol=1e-7)
            found, mean = gradient(w, x, num_microbatches)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
            np.testing.assert_allclose(mean, value, rtol=1e-5)
        if kind == AxisType.Explicit:
            with pytest.raises(ValueError, match="multiple of the 8 devices"):
                gradient(w, x, 32)
