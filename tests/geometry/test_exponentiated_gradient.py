import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_igr as igr

WEIGHTS = np.array([0.3, 1.0, 2.5])
GRADIENT = np.array([1.0, -2.0, 0.5])


def take_steps(optimizer, params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    ("domain", "options", "link"),
    [
        ("positive", {"floor": 0.01}, igr.exponentiate),
        ("simplex", {"axis": 0, "total": 3.8}, igr.exponentiate_simplex),
        ("hypentropy", {"beta": 0.5}, igr.exponentiate_hypentropy),
        ("signed", {}, igr.exponentiate_signed),
    ],
)
def test_each_domain_is_the_chain_that_it_names(domain, options, link):
    gradients = [jnp.asarray(GRADIENT), jnp.asarray(-2 * GRADIENT), jnp.asarray(GRADIENT**2)]
    alias = igr.exponentiated_gradient(
        0.1, momentum=0.9, weight_decay=0.3, domain=domain, **options
    )
    chain = optax.chain(
        optax.trace(0.9),
        optax.add_decayed_weights(0.3),
        optax.scale_by_learning_rate(0.1),
        link(**options),
    )
    params, _ = take_steps(alias, jnp.asarray(WEIGHTS), gradients)
    expected, _ = take_steps(chain, jnp.asarray(WEIGHTS), gradients)
    np.testing.assert_allclose(params, expected, rtol=1e-13)


def test_decay_acts_inside_the_exponent():
    optimizer = igr.exponentiated_gradient(0.1, weight_decay=0.5)
    params, _ = take_steps(optimizer, jnp.asarray(WEIGHTS), [jnp.zeros(3)])
    np.testing.assert_allclose(params, WEIGHTS * np.exp(-0.05 * WEIGHTS), rtol=1e-14)
    # A decay that makes plain SGD negative cannot do so here.
    strong, _ = take_steps(
        igr.exponentiated_gradient(1.0, weight_decay=10.0), jnp.asarray(WEIGHTS), [jnp.zeros(3)] * 3
    )
    assert jnp.all(strong > 0)


def test_on_the_simplex_decay_pulls_towards_the_uniform_weights():
    optimizer = igr.exponentiated_gradient(1.0, weight_decay=1.0, domain="simplex")
    params, _ = take_steps(optimizer, jnp.array([0.1, 0.2, 0.7]), [jnp.zeros(3)] * 300)
    np.testing.assert_allclose(params, 1 / 3, rtol=1e-10)


def test_schedules_are_evaluated_at_the_number_of_updates():
    counts = lambda factor: lambda count: factor * (count + 1.0)  # noqa: E731
    optimizer = igr.exponentiated_gradient(
        counts(0.1), momentum=lambda count: 0.5 * count, weight_decay=counts(0.2)
    )
    params, _ = take_steps(optimizer, jnp.asarray(WEIGHTS), [jnp.asarray(GRADIENT)] * 2)
    first = WEIGHTS * np.exp(-0.1 * (GRADIENT + 0.2 * WEIGHTS))
    second = first * np.exp(-0.2 * (1.5 * GRADIENT + 0.4 * first))
    np.testing.assert_allclose(params, second, rtol=1e-13)


def test_momentum_is_kept_in_float32_and_outlives_a_nan():
    optimizer = igr.exponentiated_gradient(0.1, momentum=0.9, log_state=True)
    params = jnp.ones(2, jnp.bfloat16)
    bad = jnp.array([jnp.nan, 1.0], jnp.bfloat16)
    params, state = take_steps(optimizer, params, [bad, jnp.ones(2, jnp.bfloat16)])
    assert state[0].trace.dtype == jnp.float32
    np.testing.assert_allclose(state[0].trace, [1.0, 1.9], rtol=1e-6)
    np.testing.assert_allclose(np.float64(params), np.exp([-0.1, -0.29]), rtol=2**-8)


def test_a_multiplicative_adam_moves_every_logarithm_by_the_rate():
    optimizer = optax.chain(
        optax.scale_by_adam(), optax.scale_by_learning_rate(0.01), igr.exponentiate()
    )
    params, _ = take_steps(optimizer, jnp.array([1e-3, 1.0, 1e3]), [jnp.asarray(GRADIENT)])
    np.testing.assert_allclose(
        params / np.array([1e-3, 1.0, 1e3]), np.exp(-0.01 * np.sign(GRADIENT)), rtol=1e-7
    )


def test_hyperparameters_may_be_injected():
    injected = optax.inject_hyperparams(igr.exponentiated_gradient)(
        learning_rate=0.1, momentum=0.9, weight_decay=0.3, floor=0.9
    )
    plain = igr.exponentiated_gradient(0.1, momentum=0.9, weight_decay=0.3, floor=0.9)
    gradients = [jnp.asarray(GRADIENT)] * 3
    params, _ = take_steps(injected, jnp.asarray(WEIGHTS), gradients)
    expected, _ = take_steps(plain, jnp.asarray(WEIGHTS), gradients)
    np.testing.assert_allclose(params, expected, rtol=1e-12)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`domain` must be one of 'positive', 'simplex'"):
        igr.exponentiated_gradient(0.1, domain="cone")
    with pytest.raises(ValueError, match=r"domain='signed'.*must be one of 'floor'; got 'axis'"):
        igr.exponentiated_gradient(0.1, domain="signed", axis=0)
    with pytest.raises(ValueError, match="`momentum` must be"):
        igr.exponentiated_gradient(0.1, momentum=1.0)
    optimizer = igr.exponentiated_gradient(0.1)
    with pytest.raises(ValueError, match="exponentiated_gradient needs the current parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


class MixtureOfExperts(nnx.Module):
    """Experts, a non-negative layer on top of them, and weights of a mixture over heads."""

    def __init__(self, rngs):
        self.experts = nnx.Linear(3, 8, rngs=rngs)
        self.mixture = nnx.Param(jnp.full([2, 4], 0.25))
        self.non_negative = nnx.Param(jnp.abs(rngs.params.normal((2, 1))))

    def __call__(self, x):
        heads = jnp.tanh(self.experts(x)).reshape(-1, 2, 4)
        return jnp.sum(heads * self.mixture[None], -1) @ self.non_negative[...]


@pytest.mark.parametrize("how", ["partition", "masked"])
def test_a_flax_model_mixes_geometries_while_its_other_layers_stay_additive(how):
    model = MixtureOfExperts(nnx.Rngs(0))
    _, params = nnx.split(model, nnx.Param)
    x = jax.random.normal(jax.random.key(1), (64, 3))
    y = jnp.abs(x[:, :1]) + 0.1

    def label(path, _):
        name = path[0].key
        return name if name in ("mixture", "non_negative") else "additive"

    labels = jax.tree_util.tree_map_with_path(label, nnx.as_pure(params))
    if how == "partition":
        optimizer = optax.partition(
            {
                "additive": optax.sgd(0.1),
                "mixture": igr.exponentiated_gradient(0.5, domain="simplex"),
                "non_negative": igr.exponentiated_gradient(0.5, momentum=0.5),
            },
            labels,
        )
    else:
        only = lambda name: jax.tree.map(lambda found: found == name, labels)  # noqa: E731
        optimizer = optax.chain(
            optax.sgd(0.1),
            optax.masked(igr.exponentiate_simplex(), only("mixture")),
            optax.masked(igr.exponentiate(), only("non_negative")),
        )
    training = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, training):
        def loss_fn(model):
            return jnp.mean((model(x) - y) ** 2)

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        training.update(model, grads)
        return loss, grads

    kernel = model.experts.kernel[...]
    losses = []
    for _ in range(60):
        loss, grads = train_step(model, training)
        losses.append(loss)
        if len(losses) == 1:
            # The other layers take a plain step of gradient descent.
            np.testing.assert_allclose(
                model.experts.kernel[...], kernel - 0.1 * grads["experts"]["kernel"][...], rtol=1e-5
            )
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_allclose(model.mixture.sum(-1), 1, rtol=1e-5)
    assert model.mixture[...].min() > 0
    assert model.mixture[...].max() > 0.3
    assert model.non_negative[...].min() > 0


def test_the_error_of_a_masked_leaf_names_its_path():
    params = {"attention": {"mixture": jnp.array([0.2, 0.2])}, "other": jnp.array([-1.0])}
    optimizer = optax.masked(igr.exponentiate_simplex(), {"attention": True, "other": False})
    with pytest.raises(ValueError, match=r"params\['attention'\]\['mixture'\] has a sum of 0.4"):
        optimizer.init(params)


BOUNDARIES = {"zero": 0.0, "one": 1.0, "above": 7.0, "below": -1.0, "nan": np.nan, "inf": np.inf}


@pytest.mark.parametrize("boundary", BOUNDARIES.values(), ids=BOUNDARIES)
@pytest.mark.parametrize("name", ["learning_rate", "momentum", "weight_decay"])
def test_a_schedule_at_its_boundary_leaves_all_finite_and_learning(name, boundary):
    good = {"learning_rate": 0.05, "momentum": 0.5, "weight_decay": 0.0}
    schedule = lambda t: jnp.where(t == 0, boundary, good[name])  # noqa: E731
    optimizer = igr.exponentiated_gradient(**{**good, name: schedule})
    target = jnp.array([0.5, 2.0], jnp.float32)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(params - target, state, params)
        return (optax.apply_updates(params, updates), state), (updates, state)

    params = jnp.ones(2, jnp.float32)
    (params, _), trail = jax.lax.scan(step, (params, optimizer.init(params)), length=600)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(trail))
    np.testing.assert_allclose(params, target, rtol=1e-3)


@pytest.mark.parametrize("alias", ["exponentiated_gradient", "eg_plus_minus"])
@pytest.mark.parametrize("rate", [None, True, 1j, np.nan, np.inf, "0.1"])
def test_a_learning_rate_that_is_none_or_no_number_is_an_error(alias, rate):
    options = {"total": 1.0} if alias == "eg_plus_minus" else {}
    with pytest.raises(ValueError, match=rf"{alias}.*learning_rate"):
        getattr(igr, alias)(rate, **options)


@pytest.mark.parametrize(
    ("optimizer", "params", "target"),
    [
        (igr.exponentiated_gradient(0.03, momentum=0.9), jnp.ones(4), [3.0, 0.1, 1.0, 0.5]),
        (
            igr.exponentiated_gradient(0.03, domain="hypentropy"),
            jnp.zeros(4),
            [0.5, -0.3, 0.0, 0.1],
        ),
        (igr.eg_plus_minus(0.1, total=2.0), jnp.zeros(4), [0.5, -0.3, 0.0, 0.1]),
    ],
    ids=["momentum", "hypentropy", "plus minus"],
)
def test_behind_a_clip_one_gradient_that_is_far_too_large_is_forgotten(optimizer, params, target):
    """As the docstrings say."""
    params, target = params.astype(jnp.float32), jnp.array(target, jnp.float32)
    signs = jnp.array([1.0, -1.0, 1.0, -1.0], jnp.float32)

    def distance_after(optimizer, num_steps=300):
        def step(carry, t):
            w, state = carry
            gradient = jnp.where(t == 200, 1e6 * signs, w - target)
            updates, state = optimizer.update(gradient, state, w)
            return (optax.apply_updates(w, updates), state), None

        start = (params, optimizer.init(params))
        (w, _), _ = jax.lax.scan(step, start, jnp.arange(200 + num_steps))
        return float(jnp.max(jnp.abs(w - target)))

    clipped = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
    assert distance_after(clipped) < 1e-2
    assert not distance_after(optimizer) < 1e-2
