"""What a Flax model sees when a transform evaluates its loss again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

import optax_igr
import optax_igr.flax as adapters

COEFFICIENT = 0.3


class Classifier(nnx.Module):
    """A layer, BatchNorm, dropout, a head."""

    def __init__(self, rngs):
        dense = functools.partial(nnx.Linear, param_dtype=jnp.float64, rngs=rngs)
        self.body = dense(3, 4)
        self.norm = nnx.BatchNorm(4, param_dtype=jnp.float64, rngs=rngs)
        # Flax makes the statistics in float32 whatever the parameters are.
        for statistic in (self.norm.mean, self.norm.var):
            statistic.set_value(statistic[...].astype(jnp.float64))
        self.dropout = nnx.Dropout(0.4, rngs=rngs)
        self.head = dense(4, 2)

    def __call__(self, x):
        return self.head(self.dropout(jnp.tanh(self.norm(self.body(x)))))


def squared_error(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def record(calls):
    """Keeps the extra arguments of each update in the list `calls`."""

    def update(updates, state, params=None, **extra_args):
        calls.append((params, extra_args))
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@pytest.fixture
def batch():
    x, y = jax.random.split(jax.random.key(1))
    return jax.random.normal(x, (5, 3)), jax.random.normal(y, (5, 2))


def make(tx, *, wrt=nnx.Param):
    model = Classifier(nnx.Rngs(0))
    return model, nnx.Optimizer(model, tx, wrt=wrt)


def pure(model, wrt=nnx.Param):
    return jax.tree.map(jnp.array, nnx.as_pure(nnx.state(model, wrt)))


def key_data(tree):
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, key_data(tree), key_data(other))


def written_out(mask, x, y):
    """The classifier's loss in plain JAX, given the multiplier that dropout drew."""

    def value_fn(params):
        hidden = x @ params["body"]["kernel"] + params["body"]["bias"][None]
        hidden = (hidden - hidden.mean(0)[None]) / jnp.sqrt(hidden.var(0)[None] + 1e-5)
        hidden = hidden * params["norm"]["scale"][None] + params["norm"]["bias"][None]
        outputs = (jnp.tanh(hidden) * mask) @ params["head"]["kernel"]
        return jnp.mean((outputs + params["head"]["bias"][None] - y) ** 2)

    return value_fn


def dense_step(value_fn, params, learning_rate, coefficient):
    """The step of gradient descent on L + c ‖∇L‖² with the Hessian as a matrix."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def flat_value(theta):
        return value_fn(unravel(theta))

    gradient = jax.jit(jax.grad(flat_value))(flat)
    hessian = jax.jit(jax.hessian(flat_value))(flat)
    return unravel(flat - learning_rate * (gradient + 2 * coefficient * hessian @ gradient))


def assert_close(tree, other):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12),
        *(key_data(nnx.to_pure_dict(t) if isinstance(t, nnx.State) else t) for t in (tree, other)),
    )


class TestValueFn:
    def test_is_the_loss_bit_for_bit_with_the_mask_of_the_gradient(self, batch):
        model = Classifier(nnx.Rngs(0))
        function = adapters.value_fn(model, squared_error, *batch)
        params = nnx.state(model, nnx.Param)
        loss = squared_error(model, *batch)
        assert function(nnx.as_pure(params)) == loss
        assert function(params) == loss
        assert squared_error(model, *batch) != loss  # the next mask is another one

    def test_leaves_the_model_where_it_is(self, batch):
        model = Classifier(nnx.Rngs(0))
        before = pure(model, ...)
        function = adapters.value_fn(model, squared_error, *batch)
        params = pure(model)
        function(params)
        jax.jit(lambda p: jax.jvp(jax.grad(function), (p,), (p,)))(params)
        assert_equal(pure(model, ...), before)

    def test_holds_what_the_arguments_of_the_loss_carry(self, batch):
        student, teacher, rngs = Classifier(nnx.Rngs(0)), Classifier(nnx.Rngs(1)), nnx.Rngs(2)

        def loss_fn(model, teacher, rngs, x):
            x = x + rngs.normal(x.shape)
            return jnp.mean((model(x) - teacher(x)) ** 2)

        before = pure(teacher, ...), pure(rngs, ...)
        function = adapters.value_fn(student, loss_fn, teacher, rngs, batch[0])
        params = pure(student)
        first, second = function(params), function(params)
        assert first == second
        assert_equal((pure(teacher, ...), pure(rngs, ...)), before)
        assert first == loss_fn(student, teacher, rngs, batch[0])

    def test_keeps_a_variable_shared_between_model_and_arguments_shared(self, batch):
        x, _ = batch
        model = nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

        def loss_fn(model, same):
            return jnp.sum(model(x) ** 2) + jnp.sum(same.kernel[...] ** 2)

        params = pure(model)
        slope = jax.grad(adapters.value_fn(model, loss_fn, model))(params)["kernel"]
        outputs = x @ params["kernel"]
        np.testing.assert_allclose(slope, 2 * x.T @ outputs + 2 * params["kernel"])

    def test_fills_masked_parameters_and_branches_from_the_model(self, batch):
        model = Classifier(nnx.Rngs(0))
        function = adapters.value_fn(model, squared_error, *batch)
        params = pure(model)
        keep = nnx.State({"body": False, "head": {"bias": False, "kernel": True}, "norm": True})
        masked = jax.tree.map(lambda kept, x: x if kept else optax.MaskedNode(), keep, params)
        assert function(masked) == function(params)
        slopes = jax.grad(function)(masked)
        assert jax.tree.structure(slopes) == jax.tree.structure(masked)
        np.testing.assert_array_equal(
            slopes["head"]["kernel"], jax.grad(function)(params)["head"]["kernel"]
        )

    def test_names_wrt_where_the_parameters_are_others(self, batch):
        model = Classifier(nnx.Rngs(0))
        head = nnx.All(nnx.Param, nnx.PathContains("head"))
        function = adapters.value_fn(model, squared_error, *batch, wrt=head)
        with pytest.raises(ValueError, match=r"value_fn: .*`wrt` of the optimizer"):
            function(pure(model))

    def test_sees_float32_parameters_of_a_bfloat16_model(self):
        model = nnx.Linear(2, 1, use_bias=False, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        x = jnp.ones((1, 2), jnp.float32)
        function = adapters.value_fn(model, lambda model: jnp.sum(model(x)))
        params = jax.tree.map(lambda p: p.astype(jnp.float32) + 1e-5, pure(model))
        assert function(params) == jnp.sum(params["kernel"])


def penalty(inner, **options):
    return optax_igr.extrapolated_gradient_penalty(inner, 0.02, **options)


# What learns from `grad`, first in the chain and behind others.
LEARNERS = {
    "extrapolated": lambda: penalty(optax.sgd(0.1)),
    "adapt_scale": lambda: optax_igr.adapt_scale(
        optax.sgd(0.1), 0.1, ema=0.0, decay=0.0, first_step=None, warmup_steps=None,
        max_relative_update=None,
    ),
    "egdd": lambda: optax_igr.egdd(0.1, gain_rate=0.1, scale_rate=0.1),
    "scale_by_gain": lambda: optax.chain(optax_igr.scale_by_gain(0.1), optax.sgd(0.1)),
}  # fmt: skip


class TestTrainStep:
    def test_of_a_gradient_penalty_is_that_of_the_dense_hessian(self, batch):
        model, optimizer = make(
            optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT), optax.sgd(0.1))
        )
        step = nnx.jit(adapters.train_step, static_argnums=2)
        for _ in range(2):
            mask = nnx.clone(model.dropout)(jnp.ones((5, 4)))
            value_fn = written_out(mask, *batch)
            params = nnx.to_pure_dict(pure(model))
            expected = dense_step(value_fn, params, 0.1, COEFFICIENT)
            loss = step(model, optimizer, squared_error, *batch)
            np.testing.assert_allclose(loss, value_fn(params), rtol=1e-12)
            assert_close(pure(model), expected)

    def test_moves_statistics_and_counters_as_plain_training_does(self, batch):
        model, optimizer = make(optax.chain(optax_igr.add_gradient_penalty(0.0), optax.sgd(0.1)))
        plain, plain_optimizer = make(optax.sgd(0.1))

        @nnx.jit
        def plain_step(model, optimizer, x, y):
            loss, grads = nnx.value_and_grad(squared_error)(model, x, y)
            optimizer.update(model, grads)
            return loss

        step = nnx.jit(adapters.train_step, static_argnums=2)
        for _ in range(3):
            loss = step(model, optimizer, squared_error, *batch)
            np.testing.assert_allclose(loss, plain_step(plain, plain_optimizer, *batch), rtol=1e-12)
        assert model.dropout.rngs.count[...] == 3
        assert_close(pure(model, ...), pure(plain, ...))

    def test_compiles_once(self, batch):
        traces = []
        model, optimizer = make(
            optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT), optax.adam(0.1))
        )

        @nnx.jit
        def step(model, optimizer, x, y):
            traces.append(None)
            return adapters.train_step(model, optimizer, squared_error, x, y)

        before = pure(optimizer, ...)
        for _ in range(3):
            step(model, optimizer, *batch)
        assert len(traces) == 1
        after = pure(optimizer, ...)
        jax.tree.map(lambda x, y: np.testing.assert_equal((x.shape, x.dtype), (y.shape, y.dtype)),
                     before, after)  # fmt: skip

    def test_trains_and_differentiates_what_the_optimizer_selects(self, batch):
        head = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("body")), nnx.PathContains("head"))
        model, optimizer = make(
            optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT), optax.sgd(0.1)), wrt=head
        )
        whole = nnx.to_pure_dict(pure(model))
        value_fn = written_out(nnx.clone(model.dropout)(jnp.ones((5, 4))), *batch)
        expected = dense_step(
            lambda head: value_fn(whole | {"head": head}), whole["head"], 0.1, COEFFICIENT
        )
        adapters.train_step(model, optimizer, squared_error, *batch)
        assert_close(pure(model), whole | {"head": expected})
        assert_equal(model.body.kernel[...], whole["body"]["kernel"])

    def test_hands_on_value_gradient_and_further_arguments(self, batch):
        calls = []
        model, optimizer = make(record(calls))
        full_value_fn = adapters.value_fn(model, squared_error, *batch)
        expected, slopes = jax.value_and_grad(full_value_fn)(pure(model))
        loss, aux = adapters.train_step(
            model,
            optimizer,
            lambda model, x, y: (squared_error(model, x, y), "aux"),
            *batch,
            has_aux=True,
            extra_args={"full_value_fn": full_value_fn},
        )
        params, extra_args = calls[0]
        assert aux == "aux"
        assert loss == expected == extra_args["value"]
        assert extra_args["value_fn"](params) == loss
        assert extra_args["full_value_fn"] is full_value_fn
        assert_close(extra_args["grad"], slopes)

    @pytest.mark.parametrize(
        "tx",
        [optax.scale(-0.1), optax.sgd(0.1), optax.MultiSteps(optax.sgd(0.1), 1)],
        ids=["without_extra_args", "ignoring_extra_args", "multi_steps"],
    )
    def test_works_with_transforms_that_need_no_extra_arguments(self, batch, tx):
        model, optimizer = make(tx)
        before = pure(model)
        function = adapters.value_fn(model, squared_error, *batch)
        adapters.train_step(model, optimizer, squared_error, *batch)
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, before, jax.grad(function)(before))
        assert_close(pure(model), expected)

    def test_hands_no_gradient_or_value_of_one_micro_batch_to_what_multi_steps_wraps(self, batch):
        calls = []
        model, optimizer = make(optax.MultiSteps(record(calls), 2))
        adapters.train_step(model, optimizer, squared_error, *batch)
        assert calls[0][1].keys() == {"value_fn"}

    @pytest.mark.parametrize("name", LEARNERS)
    def test_learns_from_the_accumulated_gradient_inside_multi_steps(self, batch, name):
        """Two halves of a batch through MultiSteps are the batch in one step."""
        x, y = (jnp.concatenate([part, 2 * part]) for part in batch)

        def train(tx, batches):
            model = nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
            step = nnx.jit(adapters.train_step, static_argnums=2)
            for _ in range(3):
                for x, y in batches:
                    step(model, optimizer, squared_error, x, y)
            return pure(model)

        whole = train(LEARNERS[name](), [(x, y)])
        halves = [(x[:5], y[:5]), (x[5:], y[5:])]
        # In float32, as the accumulator of MultiSteps is by default, the two differ by its rounding.
        options = {"accumulator_dtype": jnp.float64}
        found = train(optax.MultiSteps(LEARNERS[name](), 2, **options), halves)
        assert_close(found, whole)
        last = train(LEARNERS[name](), [halves[1]])
        assert jnp.abs(last["kernel"] - whole["kernel"]).max() > 1e-3

    def test_explains_what_cannot_be_accumulated(self, batch):
        model, optimizer = make(optax.MultiSteps(optax.lbfgs(), 2))
        with pytest.raises(ValueError, match=r"train_step: .*MultiSteps.*microbatched"):
            adapters.train_step(model, optimizer, squared_error, *batch)

    def test_works_with_a_model_and_optimizer(self, batch):
        def tx():
            return optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT), optax.sgd(0.1))

        model, optimizer = make(tx())
        both = Classifier(nnx.Rngs(0))
        joined = nnx.ModelAndOptimizer(both, tx(), wrt=nnx.Param)
        expected = adapters.train_step(model, optimizer, squared_error, *batch)
        assert adapters.train_step(both, joined, squared_error, *batch) == expected
        assert_equal(pure(both), pure(model))
        with pytest.raises(ValueError, match="train_step: `model` must be the one"):
            adapters.train_step(model, joined, squared_error, *batch)

    def test_of_replicas_is_the_step_of_the_whole_batch(self, batch):
        x, y = (jnp.stack([part, 2 * part]) for part in batch)

        def tx():
            return optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT), optax.sgd(0.1))

        def loss_after_step(x, y, axis_name):
            model = nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            optimizer = nnx.Optimizer(model, tx(), wrt=nnx.Param)
            loss = adapters.train_step(model, optimizer, squared_error, x, y, axis_name=axis_name)
            return loss, pure(model)

        expected = loss_after_step(x.reshape(10, 3), y.reshape(10, 2), None)
        found = jax.vmap(
            functools.partial(loss_after_step, axis_name="replica"), axis_name="replica"
        )(x, y)
        for replica in range(2):
            assert_close(jax.tree.map(lambda leaf, i=replica: leaf[i], found), expected)

    @pytest.mark.parametrize(
        "tx",
        [
            optax.lbfgs(),
            optax.chain(
                optax_igr.add_gradient_penalty(1e-3),
                optax.sgd(1.0),
                optax.scale_by_backtracking_linesearch(20),
            ),
        ],
        ids=["lbfgs", "penalty_and_backtracking"],
    )
    def test_descends_with_a_line_search_on_the_loss_of_the_step(self, batch, tx):
        model, optimizer = make(tx)
        step = nnx.jit(adapters.train_step, static_argnums=2)
        for _ in range(3):
            function = adapters.value_fn(model, squared_error, *batch)
            loss = step(model, optimizer, squared_error, *batch)
            assert function(pure(model)) < loss
            found = optax.tree.get(optimizer.opt_state, "value")[...]
            np.testing.assert_allclose(found, function(pure(model)), rtol=1e-10)
        assert model.dropout.rngs.count[...] == 3

    def test_shows_that_a_line_search_refuses_arguments_that_its_value_fn_does_not_name(
        self, batch
    ):
        model, optimizer = make(optax.lbfgs())
        with pytest.raises(TypeError, match="full_value_fn"):
            adapters.train_step(
                model, optimizer, squared_error, *batch, extra_args={"full_value_fn": None}
            )

    @pytest.mark.parametrize("wrapper", ["masked", "partition"])
    def test_penalises_the_selected_parameters_inside(self, batch, wrapper):
        def label(params):
            return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)

        def is_head(params):
            return jax.tree.map(lambda name: name == "head", label(params))

        penalty = optax_igr.add_gradient_penalty(COEFFICIENT)
        plain = optax.identity()
        if wrapper == "masked":
            wrapped = optax.masked(penalty, is_head, mask_compatible_extra_args=True)
        else:
            transforms = {"head": penalty, "body": plain, "norm": plain}
            wrapped = optax.partition(transforms, label, mask_compatible_extra_args=True)
        model, optimizer = make(optax.chain(wrapped, optax.sgd(0.1)))
        same, same_optimizer = make(
            optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT, mask=is_head), optax.sgd(0.1))
        )
        adapters.train_step(model, optimizer, squared_error, *batch)
        adapters.train_step(same, same_optimizer, squared_error, *batch)
        assert_close(pure(model), pure(same))

    def test_descends_along_complex_parameters(self):
        class Point(nnx.Module):
            def __init__(self):
                self.z = nnx.Param(jnp.asarray(1 + 1j))

        model = Point()
        optimizer = nnx.Optimizer(model, optax.sgd(0.25), wrt=nnx.Param)
        target = 2.0 - 3.0j
        loss = adapters.train_step(
            model, optimizer, lambda model: jnp.abs(model.z[...] - target) ** 2
        )
        np.testing.assert_allclose(loss, 17.0)
        np.testing.assert_allclose(model.z[...], 1.5 - 1j)  # half way

    def test_works_where_flax_is_in_tree_mode(self, batch):
        expected, optimizer = make(
            optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT), optax.sgd(0.1))
        )
        step = nnx.jit(adapters.train_step, static_argnums=2)
        step(expected, optimizer, squared_error, *batch)
        with nnx.set_graph_mode(False):
            model, optimizer = make(
                optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT), optax.sgd(0.1))
            )
            step = nnx.jit(
                lambda model, optimizer, x, y: adapters.train_step(
                    model, optimizer, squared_error, x, y
                )
            )
            step(model, optimizer, *batch)
        assert_close(pure(model, nnx.Param), pure(expected, nnx.Param))
        assert model.dropout.rngs.count[...] == 1


class NormalizedNetwork(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Dense(4, param_dtype=jnp.float64)(x)
        x = linen.BatchNorm(use_running_average=False, param_dtype=jnp.float64)(x)
        return linen.Dense(2, param_dtype=jnp.float64)(jnp.tanh(x))


class StateWithStatistics(adapters.TrainState):
    batch_stats: dict


class TestTrainState:
    def test_step_of_a_gradient_penalty_is_that_of_the_dense_hessian(self, batch):
        x, y = batch
        model = NormalizedNetwork()
        variables = model.init(jax.random.key(0), x)
        tx = optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT), optax.sgd(0.1))
        state = StateWithStatistics.create(apply_fn=model.apply, tx=tx, **variables)
        traces = []

        def loss_fn(params, batch_stats, x, y):
            variables = {"params": params, "batch_stats": batch_stats}
            outputs, changes = model.apply(variables, x, mutable="batch_stats")
            return jnp.mean((outputs - y) ** 2), changes

        @jax.jit
        def step(state, x, y):
            traces.append(None)

            def value_fn(params):
                return loss_fn(params, state.batch_stats, x, y)[0]

            (value, changes), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                state.params, state.batch_stats, x, y
            )
            extra_args = {"value": value, "grad": grads, "value_fn": value_fn}
            return state.apply_gradients(grads=grads, extra_args=extra_args, **changes)

        for count in range(1, 3):
            expected = dense_step(
                lambda params, state=state: loss_fn(params, state.batch_stats, x, y)[0],
                state.params,
                0.1,
                COEFFICIENT,
            )
            changes = loss_fn(state.params, state.batch_stats, x, y)[1]
            state = step(state, x, y)
            assert_close(state.params, expected)
            assert_close(state.batch_stats, changes["batch_stats"])
            assert state.step == count
            assert state.tx is tx
        # A state whose step is a Python int is one trace, a state whose step is an array another.
        assert len(traces) == 2

    @pytest.mark.parametrize("base", [adapters.TrainState, train_state.TrainState])
    def test_train_step_is_that_of_the_dense_hessian_with_statistics_and_dropout(self, batch, base):
        class Network(linen.Module):
            @linen.compact
            def __call__(self, x):
                x = linen.Dense(4, param_dtype=jnp.float64)(x)
                x = linen.BatchNorm(use_running_average=False, param_dtype=jnp.float64)(x)
                x = linen.Dropout(0.5, deterministic=False)(jnp.tanh(x))
                return linen.Dense(2, param_dtype=jnp.float64)(x)

        class State(base):
            batch_stats: dict

        x, y = batch
        model = Network()
        variables = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)
        tx = optax.chain(optax_igr.add_gradient_penalty(COEFFICIENT), optax.sgd(0.1))
        state = State.create(apply_fn=model.apply, tx=tx, **variables)

        def loss_fn(params, statistics, key, x, y):
            variables = {"params": params, "batch_stats": statistics}
            outputs, changes = model.apply(
                variables, x, mutable=["batch_stats"], rngs={"dropout": key}
            )
            return jnp.mean((outputs - y) ** 2), changes

        @jax.jit
        def step(state, key, x, y):
            inputs = (state.batch_stats, key, x, y)
            state, (loss, changes) = adapters.train_step(state, loss_fn, *inputs, has_aux=True)
            return state.replace(batch_stats=changes["batch_stats"]), loss

        for count, key in enumerate(jax.random.split(jax.random.key(2)), 1):
            inputs = (state.batch_stats, key, x, y)
            expected = dense_step(
                lambda p, inputs=inputs: loss_fn(p, *inputs)[0], state.params, 0.1, COEFFICIENT
            )
            value, changes = loss_fn(state.params, *inputs)
            state, loss = step(state, key, x, y)
            assert_close(state.params, expected)
            assert_close(state.batch_stats, changes["batch_stats"])
            np.testing.assert_allclose(loss, value)
            assert state.step == count
            assert state.tx is tx

    def test_train_step_of_replicas_of_overwritten_collections_and_of_multi_steps(self):
        calls = []
        params = {"params": {"w": jnp.ones(2)}, OVERWRITE_WITH_GRADIENT: {"scale": jnp.ones(())}}

        def state_of(tx):
            return adapters.TrainState.create(apply_fn=None, params=params, tx=tx)

        def loss_fn(params, x):
            scale = params[OVERWRITE_WITH_GRADIENT]["scale"]
            return scale * jnp.sum(params["params"]["w"] ** 3 * x)

        tx = optax.chain(record(calls), optax.sgd(0.5))
        state, loss = adapters.train_step(state_of(tx), loss_fn, jnp.array([1.0, 2.0]))
        given, extra_args = calls[0]
        assert loss == extra_args["value"] == extra_args["value_fn"](given) == 3.0
        assert_equal(extra_args["grad"], {"w": jnp.array([3.0, 6.0])})
        assert_equal(state.params["params"]["w"], jnp.array([-0.5, -2.0]))
        assert state.params[OVERWRITE_WITH_GRADIENT]["scale"] == 3.0

        def replica(x):
            state, loss = adapters.train_step(state_of(tx), loss_fn, x, axis_name="i")
            return state.params["params"]["w"], loss

        w, loss = jax.vmap(replica, axis_name="i")(jnp.array([[1.0, 0.0], [1.0, 4.0]]))
        np.testing.assert_allclose(w, [[-0.5, -2.0]] * 2)
        np.testing.assert_allclose(loss, [3.0, 3.0])

        calls.clear()
        adapters.train_step(state_of(optax.MultiSteps(record(calls), 2)), loss_fn, jnp.ones(2))
        assert calls[0][1].keys() == {"value_fn"}

    def test_learns_from_the_accumulated_gradient_inside_multi_steps(self):
        state = adapters.TrainState.create(
            apply_fn=None,
            params={"w": jnp.ones(1)},
            tx=optax.MultiSteps(penalty(optax.sgd(0.1)), 2),
        )
        for gradient in (jnp.array([1.0]), jnp.array([3.0])):
            grads = {"w": gradient}
            state = state.apply_gradients(grads=grads, extra_args={"grad": grads, "value": 0.0})
        displacement = optax.tree.get(state.opt_state, "displacement")
        np.testing.assert_allclose(displacement["w"], 2 * 0.02 * 2.0)

    @pytest.mark.parametrize("tx", [optax.scale(-0.1), optax.adam(0.1)])
    @pytest.mark.parametrize("extra_args", [None, {}, {"value": 1.0}])
    def test_is_the_state_of_flax_for_a_transform_that_needs_nothing(self, tx, extra_args):
        arguments = {"apply_fn": None, "params": {"w": jnp.array([1.0, -2.0])}, "tx": tx}
        grads = {"w": jnp.array([0.5, 0.25])}
        expected = train_state.TrainState.create(**arguments).apply_gradients(grads=grads)
        state = adapters.TrainState.create(**arguments)
        state = state.apply_gradients(grads=grads, extra_args=extra_args)
        assert_equal(state.params, expected.params)
        assert_equal(state.opt_state, expected.opt_state)
        assert state.step == expected.step
        assert state.tx is tx

    def test_overwrites_a_collection_with_its_gradient(self):
        params = {"params": {"w": jnp.ones(2)}, OVERWRITE_WITH_GRADIENT: {"scale": jnp.ones(())}}
        grads = {
            "params": {"w": jnp.ones(2)},
            OVERWRITE_WITH_GRADIENT: {"scale": jnp.full((), 7.0)},
        }
        calls = []
        state = adapters.TrainState.create(
            apply_fn=None, params=params, tx=optax.chain(record(calls), optax.sgd(0.5))
        )
        state = state.apply_gradients(grads=grads, extra_args={"value": 3.0})
        assert calls[0][1] == {"value": 3.0}
        assert_equal(calls[0][0], params["params"])
        assert_equal(state.params["params"]["w"], jnp.full(2, 0.5))
        assert state.params[OVERWRITE_WITH_GRADIENT]["scale"] == 7.0

    def test_replaces_the_transform_where_a_field_says_so(self):
        state = adapters.TrainState.create(
            apply_fn=None, params={"w": jnp.ones(2)}, tx=optax.sgd(0.5)
        )
        other = optax.sgd(0.1)
        state = state.apply_gradients(grads={"w": jnp.ones(2)}, extra_args={"value": 3.0}, tx=other)
        assert state.tx is other


def is_head(params):
    def selects(path, x):
        return "head" in jax.tree_util.keystr(path)

    return jax.tree_util.tree_map_with_path(selects, params)


COMPOSITIONS = {
    "alone": lambda: penalty(optax.sgd(0.1)),
    "masked": lambda: optax.chain(
        optax.masked(penalty(optax.sgd(0.1)), is_head, mask_compatible_extra_args=True),
        optax.masked(optax.sgd(0.1), lambda p: jax.tree.map(lambda keep: not keep, is_head(p))),
    ),
    "partition": lambda: optax.partition(
        {True: penalty(optax.sgd(0.1)), False: penalty(optax.sgd(0.1))},
        is_head,
        mask_compatible_extra_args=True,
    ),
}


class TestEvalParams:
    @pytest.mark.parametrize("composition", COMPOSITIONS)
    def test_are_those_of_the_inner_optimizer(self, batch, composition):
        model, optimizer = make(COMPOSITIONS[composition]())
        plain, plain_optimizer = make(optax.sgd(0.1))
        adapters.train_step(model, optimizer, squared_error, *batch)
        adapters.train_step(plain, plain_optimizer, squared_error, *batch)
        found = adapters.eval_params(optimizer, model)
        assert_close(found, pure(plain))
        assert jnp.abs(pure(model)["head"]["kernel"] - pure(plain)["head"]["kernel"]).max() > 1e-3
        evaluated = nnx.clone(model)
        nnx.update(evaluated, found)
        assert_close(pure(evaluated), pure(plain))

    def test_of_linen_and_of_a_model_and_optimizer(self, batch):
        both = Classifier(nnx.Rngs(0))
        joined = nnx.ModelAndOptimizer(both, penalty(optax.sgd(0.1)), wrt=nnx.Param)
        adapters.train_step(both, joined, squared_error, *batch)
        assert_equal(adapters.eval_params(joined), adapters.eval_params(joined, both))

        params = {"w": linen.Partitioned(jnp.ones(2), names=("x",))}
        for boxed in (params, linen.unbox(params)):
            state = adapters.TrainState.create(
                apply_fn=None, params=boxed, tx=penalty(optax.sgd(0.1))
            )
            state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, boxed))
            found = adapters.eval_params(state)
            assert jax.tree.structure(found) == jax.tree.structure(boxed)
            np.testing.assert_allclose(linen.unbox(found)["w"], 0.9)
            np.testing.assert_allclose(linen.unbox(state.params)["w"], 0.94)

    def test_names_what_is_missing(self):
        model, optimizer = make(optax.sgd(0.1))
        with pytest.raises(ValueError, match="holds no `displacement`"):
            adapters.eval_params(optimizer, model)
        with pytest.raises(ValueError, match=r"eval_params: an nnx\.Optimizer needs `model`"):
            adapters.eval_params(optimizer)
        with pytest.raises(ValueError, match=r"eval_params: expected an nnx\.Optimizer or a Linen"):
            adapters.eval_params({})
