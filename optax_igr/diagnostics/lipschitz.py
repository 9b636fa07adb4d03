r"""How far a model can carry two close inputs apart: a bound from below and one from above.

.. math::
  \max_{x \in \text{found}} \|J(x)\|_2 \;\le\; \sup_{x \ne y} \frac{\|f(x) - f(y)\|}{\|x - y\|} \;\le\;
  c \prod_\ell \|W_\ell\|_2

The constant itself is hard to compute. One of the bounds alone misleads: the product of the norms of diag(10, 0.1)
and diag(0.1, 10) is 100 where the constant is 1, and a search finds only what it finds.

Both bounds are on the safe side of rounding. The lower one is the norm of a derivative, never a quotient of
differences, whose rounding grows without limit as the difference shrinks.

References:
  Virmaux, Scaman, `Lipschitz Regularity of Deep Neural Networks: Analysis and Efficient Estimation
  <https://arxiv.org/abs/1805.10965>`_, 2018
  Bungert et al, `CLIP: Cheap Lipschitz Training of Neural Networks <https://arxiv.org/abs/2103.12531>`_, 2021
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_igr._core import hyperparameters, paths, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.diagnostics import _checks, _progress
from optax_igr.operators import leaves, schatten

_NAME = "lipschitz_bounds"
_POWER_STEPS = 3
# The length by which the search first moves every input, as a share of its step.
_FIRST_MOVE = 0.1
# How often the winner's derivative is measured, to see how it is rounded.
_MEASUREMENTS = 8


class LipschitzBounds(NamedTuple):
    """Bounds of the Lipschitz constant in the Euclidean norm.

    Attributes:
      lower: the largest norm of a Jacobian found, less what rounding may have added; the constant is no smaller.
      upper: the product of the norms of the layers, plus what rounding may have taken; for a sequential model the
        constant is no larger.
      input_at_lower: the input at which the lower bound was found.
    """

    lower: jax.Array
    upper: jax.Array
    input_at_lower: jax.Array


def lipschitz_bounds(
    apply_fn: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    inputs: jax.Array,
    *,
    operator: Any = None,
    activation_constant: Scalar = 1.0,
    num_steps: int = 50,
    step_size: Scalar | None = None,
    progress: _progress.Progress | None = None,
) -> LipschitzBounds:
    r"""Bounds the Lipschitz constant of a sequential model from below and from above.

    The lower bound is a search from every input at once. Power iteration follows the direction v that the Jacobian
    stretches most, while the input ascends on :math:`\|f(x + rv) - f(x - rv)\| / 2r`. At a finite r this quotient also
    has a gradient in a ReLU network, where that of the Jacobian's norm is zero. What counts is the norm of the
    derivative :math:`\|J(x) v\|` alone.

    Every input is moved a little at first: at a kink, such as a zero pixel in front of a leaky ReLU, the derivative
    that JAX chooses may be that of no point nearby.

    Args:
      apply_fn: `(params, inputs) -> outputs`, each output from the input of the same index alone.
      params: the parameters. Those of two and more axes are the layers; biases do not count.
      inputs: where the search starts, finite, of shape `[num_inputs, ...]`.
      operator: what each weight is, as in :func:`optax_igr.add_schatten_decay`; a convolution with zero padding
        counts with the norm of the circular one that contains it.
      activation_constant: the product of the Lipschitz constants of all that stands between the layers, at least 0: 1
        for ReLU, tanh and maxima of a pool, 1.13 for each GELU.
      num_steps: of the search; each costs about nine evaluations of the model.
      step_size: the length of a step of the search and the distance r, in the units of an input, above 0; by default
        a hundredth of the mean norm of `inputs`.
      progress: called with the number of steps done and to do.

    Returns:
      A :class:`LipschitzBounds`. The upper bound holds for layers that follow one another. With a residual
      connection, a product of two branches or attention it is not one.

    Raises:
      ValueError: for a bad argument, a normalisation layer (a leaf named `scale`), a stack of matrices, or a leaf
        without an operator.

    Examples:
      >>> import jax.numpy as jnp, optax_igr.diagnostics
      >>> params = [jnp.diag(jnp.array([10.0, 0.1])), jnp.diag(jnp.array([0.1, 10.0]))]
      >>> apply_fn = lambda params, x: x @ params[0] @ params[1]
      >>> bounds = optax_igr.diagnostics.lipschitz_bounds(apply_fn, params, jnp.eye(2))
      >>> print(f"between {bounds.lower:.2f} and {bounds.upper:.2f}")
      between 1.00 and 100.00

    References:
      Virmaux, Scaman, `Lipschitz Regularity of Deep Neural Networks: Analysis and Efficient Estimation
      <https://arxiv.org/abs/1805.10965>`_, 2018
    """
    hyperparameters.check_positive_integer(_NAME, "num_steps", num_steps)
    hyperparameters.check_scalar(_NAME, "activation_constant", activation_constant, at_least=0)
    if step_size is not None:
        hyperparameters.check_scalar(_NAME, "step_size", step_size, above=0)
    visible = _checks.visible(inputs)
    are_finite = _checks.require(_NAME, "inputs", "finite", visible, _checks.is_finite(visible))
    inputs, step_size = _prepared(inputs, step_size)
    params = trees.as_arrays(params)
    factors = _norms(params, operator)
    upper = jnp.asarray(activation_constant, factors.dtype) * jnp.prod(factors)
    tick = _progress.ticker(progress, num_steps)

    def model(x):
        return apply_fn(params, x[None])[0]

    def search(carry, _):
        tick()
        return jax.vmap(functools.partial(_search_step, model, step_size))(*carry), None

    keys = jax.random.split(jax.random.key(0))
    moves, vectors = (
        jax.vmap(_unit)(jax.random.normal(key, inputs.shape, inputs.dtype))[0] for key in keys
    )
    start = inputs + _FIRST_MOVE * step_size * moves
    # What a device rounds by default (TF32, bfloat16 passes) is another model than the one that is bounded.
    with jax.default_matmul_precision("highest"):
        carry = (start, vectors, jnp.zeros(inputs.shape[:1], inputs.dtype), start, vectors)
        (_, _, best, best_x, best_vector), _ = jax.lax.scan(search, carry, length=num_steps)
        winner = jnp.argmax(best)
        lower = _safe_stretch(model, best_x[winner], best_vector[winner], _num_roundings(params))
    return LipschitzBounds(_checks.where_right(are_finite, lower), upper, best_x[winner])


def _prepared(inputs, step_size):
    """Returns the inputs in float32 or wider, and the length of a step."""
    inputs = jnp.asarray(inputs)
    inputs = inputs.astype(trees.widest(inputs.dtype, jnp.float32))
    if inputs.ndim == 0 or not inputs.size or jnp.iscomplexobj(inputs):
        raise ValueError(
            f"{_NAME}: `inputs` must be real numbers of shape [num_inputs, ...], got {inputs.dtype}"
            f"{list(inputs.shape)}."
        )
    if step_size is None:
        per_input = inputs.reshape(inputs.shape[0], -1)
        step_size = jnp.mean(jnp.linalg.norm(per_input, axis=-1)) / 100
        # All inputs may be zero.
        step_size = jnp.where(step_size > 0, step_size, 1e-2)
    return inputs, jnp.asarray(step_size, inputs.dtype)


def _search_step(model, step_size, x, vector, best, best_x, best_vector):
    """One step of power iteration for v, and one of ascent for x; keeps the best pair so far."""
    stretch, pull_back = _linearized(model, x)
    norm = jnp.zeros([], best.dtype)
    for _ in range(_POWER_STEPS):
        left, norm = _unit(stretch(vector))
        right, pulled = _unit(pull_back(left))
        is_sound = jnp.isfinite(pulled) & (pulled > 0)
        used, vector = vector, jnp.where(is_sound, right.astype(x.dtype), vector)
    norm = norm.astype(best.dtype)
    is_better = jnp.isfinite(norm) & (norm > best)
    best, best_x, best_vector = (
        jnp.where(is_better, new, old)
        for new, old in ((norm, best), (x, best_x), (used, best_vector))
    )

    def squared_quotient(x):
        apart = trees.subtract(model(x + step_size * vector), model(x - step_size * vector))
        return trees.squared_norm(apart)

    # The square has the same direction of ascent, and a derivative also where the two outputs are equal.
    ascent = jax.grad(squared_quotient)(x)
    direction = _unit(jnp.where(jnp.isfinite(ascent), ascent, 0))[0]
    return x + step_size * direction, vector, best, best_x, best_vector


def _safe_stretch(model, x, vector, num_roundings):
    r"""Returns :math:`\|J(x) v\| / \|v\|`, less what rounding may have added to it.

    The vector at several lengths gives one norm in exact arithmetic, and as many samples of its rounding. Their spread
    shows what cancels between the layers, which no formula in the sizes of the weights does.
    """
    stretch, _ = _linearized(model, x)
    # Their mantissas differ, so the same products are rounded in other places.
    lengths = 1 + jnp.arange(_MEASUREMENTS, dtype=vector.dtype) / _MEASUREMENTS / 1.1

    def measure(length):
        lengthened = length * vector
        stretched = stretch(lengthened)
        norm, length = (trees.norm(v) for v in (stretched, lengthened))
        return norm.astype(vector.dtype) / jnp.where(length > 0, length, 1)

    norms = jax.lax.map(measure, lengths)
    # A model that computes in bfloat16 has outputs in bfloat16.
    output = jax.eval_shape(model, x).dtype
    epsilon = max(float(jnp.finfo(dtype).eps) for dtype in (x.dtype, output))
    relative = epsilon * num_roundings + 4 * jnp.std(norms) / jnp.maximum(
        jnp.mean(norms), jnp.finfo(norms.dtype).tiny
    )
    return jnp.maximum(jnp.min(norms) * (1 - relative), 0)


def _linearized(model, x):
    """Returns the Jacobian at x as a function, and its adjoint."""
    output, stretch = jax.linearize(model, x)
    if jnp.iscomplexobj(output):
        raise ValueError(f"{_NAME}: `apply_fn` must return real outputs, got {output.dtype}.")
    transpose = jax.linear_transpose(stretch, x)
    return stretch, lambda left: transpose(left.astype(output.dtype))[0]


def _num_roundings(params: Any) -> float:
    """Returns how many units of rounding the product of all layers and a vector may gather.

    A sum of n products gathers the root of n, since its roundings point up as often as down.
    """
    sizes = [leaf.size / leaf.shape[-1] for leaf in jax.tree.leaves(params) if _is_layer(leaf)]
    return 4 + sum(size**0.5 for size in sizes)


def _is_layer(leaf):
    return trees.is_inexact(leaf) and leaf.ndim > 1 and leaf.size > 0


def _unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    unit, norm = trees.unit(x)
    return jnp.asarray(unit), jnp.asarray(norm)


def _norms(params: Any, operator: Any) -> jax.Array:
    """Returns an upper bound of the norm of each layer."""
    for path, _ in paths.leaves_with_path(params):
        if "scale" in {getattr(entry, "key", getattr(entry, "name", None)) for entry in path}:
            raise ValueError(
                f"{_NAME}: {jax.tree_util.keystr(path)} is the scale of a normalisation layer, whose Lipschitz "
                f"constant depends on its statistics, and which is not among the known layers."
            )
    chosen = leaves.resolve(_NAME, params, operator)

    def norm(choice, weight):
        if choice.stack_shape(weight.shape):
            raise ValueError(
                f"{_NAME}: a weight of shape {list(weight.shape)} is a stack of matrices by {choice}; expected one "
                f"operator a layer."
            )
        bound = schatten.spectral_norm_bound(choice, weight)
        # Measured on random matrices of 2 to 1,024 rows, rounding takes up to five units from the norm.
        roundings = 2 + min(weight.size // weight.shape[-1], weight.shape[-1]) ** 0.5 / 4
        return bound * (1 + roundings * float(jnp.finfo(bound.dtype).eps))

    norms = jax.tree.leaves(leaves.map_operators(norm, chosen, params))
    dtype = trees.widest(jnp.float32, *(factor.dtype for factor in norms))
    return jnp.stack([jnp.ones([], dtype), *(factor.astype(dtype) for factor in norms)])
