r"""Adapters for Flax: the extra arguments of an update, from an NNX model or a Linen train state.

A transform that needs more than the gradient takes `value_fn`, `value` and `grad` by keyword (see
:mod:`optax_igr`). In a Flax NNX model the loss also moves what is not a parameter: dropout draws a new
mask from a counter, BatchNorm updates its running statistics. :func:`value_fn` makes the pure function

.. math::
  L(\theta) = \text{loss\_fn}(\text{model}_{\theta, s}, \text{args}), \qquad s \text{ held fixed}

in which the remaining state :math:`s` is the one at the call of :func:`value_fn`. So every evaluation
draws the same mask, and none of them moves the model. :func:`train_step` takes that snapshot before the
gradient, so that the gradient and the extra evaluations are of one and the same function.

References:
  `Flax NNX <https://flax.readthedocs.io/en/stable/nnx_basics.html>`_
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx
from flax.training import train_state

import optax_igr

__all__ = ["TrainState", "operators", "train_step", "value_fn"]


def value_fn(
    model: Any, loss_fn: Callable[..., chex.Array], *args: Any, wrt: Any = nnx.Param
) -> Callable[[chex.ArrayTree], chex.Array]:
    """Returns the loss as a pure function of the parameters of an NNX model.

    Everything else is held as it is at this call: running statistics, random counters (those of an
    `nnx.Rngs` among `args` too), and the parameters that `wrt` leaves out. To see the dropout mask of
    the gradient, call this before the gradient is taken; :func:`train_step` does.

    Args:
      model: an NNX module.
      loss_fn: `(model, *args) -> scalar`, the mean over the batch.
      *args: the batch, and whatever else the loss needs.
      wrt: the filter of the parameters, the same as that of the `nnx.Optimizer`.

    Returns:
      `params -> scalar`. It takes what `nnx.Optimizer.update` hands to a transform, and equally
      `nnx.state(model, wrt)`. It needs no :func:`optax_igr.fill_masked` inside `optax.masked`
      and `optax.partition`; give these `mask_compatible_extra_args=True`, so that they mask `grad`.

    Raises:
      ValueError: from the function, where its argument has other parameters than `wrt` selects.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_igr.flax
      >>> from flax import linen, nnx
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optax.lbfgs(), wrt=nnx.Param)
      >>> x, y = jnp.eye(2), jnp.ones((2, 1))
      >>> loss_fn = lambda model, x, y: jnp.mean((model(x) - y) ** 2)
      >>> for _ in range(5):
      ...     loss_of_params = optax_igr.flax.value_fn(model, loss_fn, x, y)
      ...     value, grad = nnx.value_and_grad(loss_fn)(model, x, y)
      ...     _ = optimizer.update(model, grad, value=value, grad=grad, value_fn=loss_of_params)
      >>> print(f"{loss_fn(model, x, y):.1f}")
      0.0
    """
    # One split of both, so that a variable that model and args share stays shared in the copies.
    graphdef, state = nnx.split((model, args), graph=True)
    # The map makes new variables: those of the split are the model's own, which will move.
    state = jax.tree.map(lambda x: x, state)
    current = nnx.as_pure(nnx.state(model, wrt, graph=True))

    complete = optax_igr.fill_masked(_identity, current)

    def loss_of_params(params: chex.ArrayTree) -> chex.Array:
        try:
            params = complete(nnx.as_pure(params))
        except ValueError as error:
            raise ValueError(
                "value_fn: `params` must have the structure of `nnx.state(model, wrt)`; give "
                f"`value_fn` the `wrt` of the optimizer: {error}"
            ) from error
        # copy=True makes variables of the present trace, which BatchNorm may then write to.
        copied_model, copied_args = nnx.merge(graphdef, state, copy=True)
        nnx.update(copied_model, params)
        return loss_fn(copied_model, *copied_args)

    return loss_of_params


def train_step(
    model: Any,
    optimizer: nnx.Optimizer,
    loss_fn: Callable[..., Any],
    *args: Any,
    has_aux: bool = False,
    extra_args: Mapping[str, Any] | None = None,
) -> Any:
    """Takes one step: the gradient, the extra arguments `value`, `grad` and `value_fn`, the update.

    The model moves as in plain training: its running statistics and random counters once, however
    often a transform evaluates the loss. A transform that takes no extra arguments is given none.
    Call it inside `nnx.jit`, as in the example.

    Args:
      model: an NNX module; updated in place.
      optimizer: an `nnx.Optimizer` of the model; updated in place. Its `wrt` says what is trained.
      loss_fn: `(model, *args) -> scalar`, or `-> (scalar, aux)` with `has_aux`.
      *args: the batch, and whatever else the loss needs.
      has_aux: whether `loss_fn` returns auxiliary data beside the loss.
      extra_args: further extra arguments by name, as
        `{"full_value_fn": optax_igr.flax.value_fn(model, loss_fn, *everything)}`; an entry takes the
        place of the one made here. A line search of Optax refuses any that its `value_fn` does not
        name.

    Returns:
      What `loss_fn` returned, at the parameters before the step.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_igr.flax
      >>> from flax import linen, nnx
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optax.lbfgs(), wrt=nnx.Param)
      >>> @nnx.jit
      ... def step(model, optimizer, x, y):
      ...     loss_fn = lambda model, x, y: jnp.mean((model(x) - y) ** 2)
      ...     return optax_igr.flax.train_step(model, optimizer, loss_fn, x, y)
      >>> for _ in range(6):
      ...     loss = step(model, optimizer, jnp.eye(2), jnp.ones((2, 1)))
      >>> print(f"{loss:.1f}")
      0.0
    """

    def loss_alone(*inputs):
        return loss_fn(*inputs)[0] if has_aux else loss_fn(*inputs)

    # Before the gradient, which moves the random counters.
    loss_of_params = value_fn(model, loss_alone, *args, wrt=optimizer.wrt)
    output, grads = nnx.value_and_grad(
        loss_fn,
        argnums=nnx.DiffState(0, optimizer.wrt),
        has_aux=has_aux,
        graph=True,
        graph_updates=True,
    )(model, *args)
    # Optax steps along the direction of ascent; JAX returns its conjugate.
    grads = jax.tree.map(jnp.conj, grads)
    if _takes_extra_args(optimizer.tx):
        made = {
            "value": output[0] if has_aux else output,
            "grad": grads,
            "value_fn": loss_of_params,
        }
        optimizer.update(model, grads, **made | dict(extra_args or {}))
    else:
        optimizer.update(model, grads)
    return output


class TrainState(train_state.TrainState):
    """The Linen train state of Flax, whose `apply_gradients` hands extra arguments to the transform.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_igr.flax
      >>> from flax import linen
      >>> model = linen.Dense(1)
      >>> x, y = jnp.eye(2), jnp.ones((2, 1))
      >>> state = optax_igr.flax.TrainState.create(
      ...     apply_fn=model.apply, params=model.init(jax.random.key(0), x), tx=optax.lbfgs()
      ... )
      >>> value_fn = lambda params: jnp.mean((model.apply(params, x) - y) ** 2)
      >>> for _ in range(5):
      ...     value, grads = jax.value_and_grad(value_fn)(state.params)
      ...     extra_args = {"value": value, "grad": grads, "value_fn": value_fn}
      ...     state = state.apply_gradients(grads=grads, extra_args=extra_args)
      >>> print(f"{value_fn(state.params):.1f}")
      0.0
    """

    def apply_gradients(
        self, *, grads: Any, extra_args: Mapping[str, Any] | None = None, **fields: Any
    ) -> Self:
        """Updates `step`, `params`, `opt_state` and `fields`.

        Args:
          grads: gradients with the structure of `params`.
          extra_args: extra arguments of `tx.update` by name; a transform that takes none is given
            none. Where `params` holds a collection to be overwritten by its gradient (float8
            scales), they are functions and trees of `params["params"]`, which is what `tx` updates.
          **fields: other fields to replace, as `batch_stats`.

        Returns:
          The state after the step.
        """
        tx = self.tx
        if not extra_args or not _takes_extra_args(tx):
            return super().apply_gradients(grads=grads, **fields)
        bound = optax.GradientTransformation(tx.init, functools.partial(tx.update, **extra_args))
        # The parent takes the step, then puts `tx` back among the fields that it replaces.
        return super(TrainState, self.replace(tx=bound)).apply_gradients(
            grads=grads, **{"tx": tx, **fields}
        )


def operators(
    model: nnx.Module | linen.Module, *inputs: Any, **kwargs: Any
) -> Callable[[Any, jax.Array], Any]:
    """Derives from the modules of a model what each of its weights is as an operator.

    A kernel of `Linear`, `Dense`, `LinearGeneral`, `DenseGeneral` (attention is made of them) and `Conv` is known
    from its module; the shape of the input of a convolution from one abstract evaluation of the model. Biases, also
    those of two axes, and scales are left alone. Any other parameter of two axes counts as a matrix.

    Args:
      model: an NNX module, or a Linen one.
      *inputs: of the model, arrays or `jax.ShapeDtypeStruct`; an NNX model without convolutions needs none.
      **kwargs: further arguments of its call.

    Returns:
      A function `(path, leaf) -> operator or None` for the argument `operator` of
      :func:`optax_igr.add_schatten_decay`, :func:`optax_igr.add_spectral_decay`,
      :func:`optax_igr.projection_spectral_ball` and :func:`optax_igr.diagnostics.lipschitz_bounds`. It raises a
      `ValueError` for a kernel of more axes from another module.

    Raises:
      ValueError: for a convolution that has no operator here (input dilation, a mask, reflection), or which
        `inputs` do not reach, or reach in two sizes.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_igr.flax
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Conv(1, 4, (3, 3), padding="CIRCULAR", rngs=rngs), nnx.relu)
      >>> operator = optax_igr.flax.operators(model, jnp.ones([1, 8, 8, 1]))
      >>> decay = optax_igr.add_schatten_decay(1e-3, gram_steps=2, operator=operator)
      >>> optimizer = nnx.Optimizer(model, optax.chain(decay, optax.adam(1e-3)), wrt=nnx.Param)
    """
    if isinstance(model, linen.Module):
        table = _linen_operators(model, inputs, kwargs)
    else:
        table = _nnx_operators(model, inputs, kwargs)

    def operator(path: Any, leaf: jax.Array) -> Any:
        keys = tuple(getattr(entry, "key", getattr(entry, "idx", None)) for entry in path)
        # The leaf of a variable stands under it; Linen's collection stands above.
        keys = tuple(key for key in keys if key is not None)
        keys = keys[1:] if keys[:1] == ("params",) else keys
        if keys in table:
            return table[keys]
        if not keys or keys[-1] in ("bias", "scale") or leaf.ndim < 2:
            return None
        if leaf.ndim == 2:
            return optax_igr.matrix_operator()
        raise ValueError(
            f"operators: nothing is known of the parameter {jax.tree_util.keystr(path)} of shape "
            f"{list(leaf.shape)}. Wrap this function by one that returns its operator, or leave it out by `mask`."
        )

    return operator


def _nnx_operators(model, inputs, kwargs):
    table, shapes = {}, {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.LinearGeneral):
            num_inputs, num_outputs = len(module.in_features), len(module.out_features)
            table[*path, "kernel"] = _general_operator(num_inputs, num_outputs)

    def record(path, convolve):
        def recorded(padded, *args, **kwargs):
            _record_shape(shapes, path, padded.shape[1:-1])
            return convolve(padded, *args, **kwargs)

        return recorded

    graphdef, state = nnx.split(model, graph=True)

    def run(state, inputs, kwargs):
        copied = nnx.merge(graphdef, state, copy=True)
        for path, module in nnx.iter_modules(copied):
            if isinstance(module, nnx.Conv):
                module.conv_general_dilated = record(path, module.conv_general_dilated)
        copied(*inputs, **kwargs)

    if inputs or kwargs:
        jax.eval_shape(run, state, inputs, kwargs)
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Conv):
            shape = _reached_shape(shapes, path)
            if module.padding in ("CIRCULAR", "CAUSAL"):
                # NNX pads these itself before the convolution, by as much as the kernel reaches.
                extents = _per_axis(module.kernel_dilation, len(shape))
                taps = zip(shape, module.kernel_size, extents, strict=True)
                shape = tuple(n - (k - 1) * d for n, k, d in taps)
            table[*path, "kernel"] = _conv_operator(path, module, shape)
    return table


def _linen_operators(model, inputs, kwargs):
    table, shapes, convolutions = {}, {}, {}

    def record(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and isinstance(module, linen.Conv):
            convolutions[module.path] = module
            num_axes = len(_as_tuple(module.kernel_size))
            _record_shape(shapes, module.path, args[0].shape[-1 - num_axes : -1])
        elif context.method_name == "__call__" and isinstance(module, linen.DenseGeneral):
            num_inputs, num_outputs = (
                len(_as_tuple(axes)) for axes in (module.axis, module.features)
            )
            table[*module.path, "kernel"] = _general_operator(num_inputs, num_outputs)
        return call(*args, **kwargs)

    with linen.intercept_methods(record):
        jax.eval_shape(
            lambda *inputs, **kwargs: model.init(jax.random.key(0), *inputs, **kwargs),
            *inputs,
            **kwargs,
        )
    for path, module in convolutions.items():
        table[*path, "kernel"] = _conv_operator(path, module, _reached_shape(shapes, path))
    return table


def _general_operator(num_inputs, num_outputs):
    num_axes = num_inputs + num_outputs
    return optax_igr.matrix_operator(
        tuple(range(-num_axes, -num_outputs)), tuple(range(-num_outputs, 0))
    )


def _conv_operator(path, module, input_shape):
    num_axes = len(input_shape)
    padding: Any = module.padding
    if padding == "CAUSAL":
        extent = (_as_tuple(module.kernel_size)[0] - 1) * _per_axis(module.kernel_dilation, 1)[0]
        padding = ((extent, 0),)
    elif not isinstance(padding, str):
        pads = _per_axis(padding, num_axes)
        padding = tuple((pad, pad) if isinstance(pad, int) else tuple(pad) for pad in pads)
    input_dilation = _per_axis(module.input_dilation, num_axes)
    if set(input_dilation) != {1} or module.mask is not None or padding == "REFLECT":
        raise ValueError(
            f"operators: the convolution at {path} has an input dilation, a mask or reflecting padding, for which "
            f"there is no operator."
        )
    return optax_igr.conv_operator(
        input_shape,
        strides=_per_axis(module.strides, num_axes),
        padding=padding,
        kernel_dilation=_per_axis(module.kernel_dilation, num_axes),
        feature_group_count=module.feature_group_count,
    )


def _record_shape(shapes, path, shape):
    if shapes.setdefault(path, tuple(shape)) != tuple(shape):
        raise ValueError(
            f"operators: the convolution at {path} sees inputs of two shapes, {shapes[path]} and {tuple(shape)}; its "
            f"norm depends on the shape."
        )


def _reached_shape(shapes, path):
    if path not in shapes:
        raise ValueError(
            f"operators: the convolution at {path} is not reached by the inputs given; its norm depends on the "
            f"shape of its input: call `operators(model, *inputs)`."
        )
    return shapes[path]


def _as_tuple(value):
    return (value,) if isinstance(value, int) else tuple(value)


def _per_axis(value, num_axes):
    return (
        (1 if value is None else value,) * num_axes
        if value is None or isinstance(value, int)
        else tuple(value)
    )


def _identity(params: Any) -> Any:
    return params


def _takes_extra_args(tx: Any) -> bool:
    # `optax.MultiSteps` is no GradientTransformation, and takes them.
    return isinstance(tx, optax.GradientTransformationExtraArgs) or not isinstance(
        tx, optax.GradientTransformation
    )
