r"""A family of decays from L2 to the spectral norm.

A layer :math:`x \mapsto Wx` multiplies distances by at most the spectral norm of W, and the Frobenius norm bounds
that: so L2 decay is a Lipschitz regulariser, a loose one. The Schatten norms lie between the two,

.. math::
  \|W\|_F = \|W\|_{S_2} \ge \|W\|_{S_4} \ge \|W\|_{S_8} \ge \dots \to \|W\|_2, \qquad
  \|W\|_{S_p} = \Big( \sum_i \sigma_i^p \Big)^{1/p},

each an upper bound of the spectral norm that needs no singular vector and no random start.

References:
  Delattre et al, `Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration
  <https://arxiv.org/abs/2305.16173>`_, 2023
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optax_igr._core import hyperparameters, paths, trees
from optax_igr._core.transform import transform
from optax_igr.operators import leaves, schatten

_NAME = "add_schatten_decay"


class SchattenDecayState(NamedTuple):
    """The number of updates, the norm of each operator, and the gradient where it is kept between refreshes.

    `schatten_norms` has the structure of the parameters, with None where a leaf is left alone. Each is an upper
    bound of the spectral norm at the last refresh; `optax.tree.get` finds them.
    """

    count: ArrayLike
    schatten_norms: Any
    cached_gradient: Any


def add_schatten_decay(
    coefficient: optax.ScalarOrSchedule,
    *,
    gram_steps: int = 0,
    refresh_interval: int = 1,
    operator: Any = None,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of half the squared Schatten norm of every weight.

    .. math::
      u \leftarrow u + \nabla \tfrac{\mu}{2} \|W\|_{S_p}^2 = u + \mu \|W\|_{S_p}^{2-p} \, W (W^* W)^{p/2-1},
      \qquad p = 2^{t+1}

    With t = 0 it is L2 decay: the gradient is W. With growing t it becomes the decay of the spectral norm,
    :math:`\sigma u v^*`, of :func:`optax_igr.add_spectral_decay`, and shrinks the large singular values alone. All
    members of the family pull equally hard for their norm,
    :math:`\langle W, \nabla \tfrac{1}{2} \|W\|^2 \rangle = \|W\|^2`.

    Where it stands in the chain decides, as for weight decay, whether it is coupled: before the
    preconditioner it is part of the loss, after it (and before the learning rate) it is decoupled.

    Args:
      coefficient: :math:`\mu`, a number or a schedule.
      gram_steps: t, at least 0. The cost for an m by n matrix, n the smaller side, is at most 2t matrix products
        of :math:`2 m n^2` operations a refresh, whatever the batch.
      refresh_interval: compute the gradient at the first and every k-th step, and add the one in the state, of the
        parameters' size, in between. The products of a refresh are :math:`2tn / 3B` of a training step with the batch
        size B; with :math:`k = 16tn / B` a step costs less than a tenth more.
      operator: what each weight is. By default a leaf of two axes is a matrix, one of fewer is left alone and one of
        more is an error. Else :func:`optax_igr.matrix_operator`, :func:`optax_igr.conv_operator`, a function
        `(path, leaf) -> operator or None` as :func:`optax_igr.flax.operators` makes it, or a pytree prefix of
        these; its None leaves a leaf alone.
      mask: a pytree prefix of booleans, or a function that makes one; a leaf where it is False is left alone.

    Returns:
      A transform whose `update` needs `params`.

    Raises:
      ValueError: for a bad argument, or a leaf of more than two axes without an operator.

    .. note::
      The norm is that of the whole operator. A convolution has one output for each place of its input, so its
      Frobenius norm is that of the kernel times the root of the number of places: at t = 0 the decay is that many
      times L2 decay. With zero padding it is the norm of the circular convolution that contains it, an upper bound.
      Inside `optax.inject_hyperparams`, name `gram_steps` and `refresh_interval` in `static_args`, and an
      `operator` or a `mask` that is a function.

    Examples:
      Decoupled decay, and coupled decay, with Adam:

      >>> import jax.numpy as jnp, optax, optax_igr
      >>> decay = optax_igr.add_schatten_decay(1e-2, gram_steps=2)
      >>> decoupled = optax.chain(optax.scale_by_adam(), decay, optax.scale_by_learning_rate(1e-3))
      >>> coupled = optax.chain(decay, optax.adam(1e-3))

      The decay alone shrinks the large singular values first; L2 decay shrinks all at one rate:

      >>> for gram_steps in (0, 2, 6):
      ...     decay = optax_igr.add_schatten_decay(1.0, gram_steps=gram_steps)
      ...     params = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
      ...     updates, state = decay.update(jnp.zeros_like(params), decay.init(params), params)
      ...     print(gram_steps, [f"{u:.2f}" for u in jnp.diag(updates)], f"{state.schatten_norms:.2f}")
      0 ['3.00', '2.00', '1.00'] 3.74
      2 ['2.91', '0.17', '0.00'] 3.01
      6 ['3.00', '0.00', '0.00'] 3.00

    References:
      Delattre et al, `Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration
      <https://arxiv.org/abs/2305.16173>`_, 2023
    """
    coefficient = hyperparameters.checked(_NAME, "coefficient", coefficient)
    hyperparameters.check_integer(_NAME, "gram_steps", gram_steps, at_least=0)
    hyperparameters.check_positive_integer(_NAME, "refresh_interval", refresh_interval)
    keeps_gradient = refresh_interval > 1

    def init(params):
        # A box says how its array is laid out over devices. That does not fit a norm.
        unboxed = paths.unboxed(params)
        chosen = leaves.resolve(_NAME, unboxed, operator, mask)
        zeros = leaves.map_operators(leaves.zero_norm, chosen, unboxed)
        return SchattenDecayState(
            count=jnp.zeros([], jnp.int32),
            schatten_norms=leaves.as_state(zeros),
            cached_gradient=jax.tree.map(_zeros, params) if keeps_gradient else None,
        )

    def update(updates, state, params, **unused):
        del unused
        expected = jax.eval_shape(init, params)
        for name in ("schatten_norms", "cached_gradient"):
            trees.check_state_like(_NAME, getattr(expected, name), **{name: getattr(state, name)})
        chosen = leaves.resolve(_NAME, params, operator, mask)

        count = optax.safe_increment(state.count)
        if not jax.tree.leaves(chosen):
            return updates, state._replace(count=count)
        is_due = state.count % refresh_interval == 0

        if keeps_gradient:
            refresh = functools.partial(_refresh_if, is_due, gram_steps=gram_steps)
            pairs = leaves.map_operators(
                refresh, chosen, params, state.cached_gradient, state.schatten_norms
            )
        else:
            pairs = leaves.map_operators(
                lambda choice, weight: schatten.gradient_and_norm(choice, weight, gram_steps),
                chosen,
                params,
            )
        gradient, measured = leaves.unzip(pairs, chosen, 2)
        cached = leaves.fill(gradient, state.cached_gradient) if keeps_gradient else None
        factor = hyperparameters.value_at(coefficient, state.count)
        updates = leaves.add_decay(updates, factor, gradient)
        return updates, SchattenDecayState(count, measured, cached)

    return transform(_NAME, init, update, needs=("params",))


# A branch for each leaf: one for all of them needs the temporaries of all leaves at once, five times the parameters in
# place of a tenth. Compiled once for each shape, so that an eager update does not compile the branch of every leaf.
@functools.partial(jax.jit, static_argnums=(1,), static_argnames=("gram_steps",))
def _refresh_if(is_due, choice, weight, kept, norm, *, gram_steps):
    return jax.lax.cond(
        is_due,
        lambda: schatten.gradient_and_norm(choice, weight, gram_steps),
        lambda: (kept, norm),
    )


def _zeros(weight):
    return jnp.zeros_like(weight, dtype=trees.widened(weight.dtype))
