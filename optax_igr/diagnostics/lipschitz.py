r"""How far a model can carry two close inputs apart: a bound from below and one from above.

.. math::
  \max_{x \in \text{found}} \|J(x)\|_2 \;\le\; \sup_{x \ne y} \frac{\|f(x) - f(y)\|}{\|x - y\|} \;\le\;
  c \prod_\ell \|W_\ell\|_2

The constant itself is hard to compute. One of the bounds alone misleads: the product of the norms of diag(10, 0.1)
and diag(0.1, 10) is 100 where the constant is 1, and a search finds only what it finds.

References:
  Virmaux, Scaman, `Lipschitz Regularity of Deep Neural Networks: Analysis and Efficient Estimation
  <https://arxiv.org/abs/1805.10965>`_, 2018
  Bungert et al, `CLIP: Cheap Lipschitz Training of Neural Networks <https://arxiv.org/abs/2103.12531>`_, 2021
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_igr._core import hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.diagnostics import _progress
from optax_igr.operators import leaves, schatten

_NAME = "lipschitz_bounds"
_POWER_STEPS = 3


class LipschitzBounds(NamedTuple):
    """Bounds of the Lipschitz constant in the Euclidean norm.

    Attributes:
      lower: the largest quotient found; the constant is no smaller.
      upper: the product of the norms of the layers; for a sequential model the constant is no larger.
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
    has a gradient in a ReLU network, where that of the Jacobian's norm is zero; it is itself a lower bound.

    Args:
      apply_fn: `(params, inputs) -> outputs`, each output from the input of the same index alone.
      params: the parameters. Those of two and more axes are the layers; biases do not count.
      inputs: where the search starts, of shape `[num_inputs, ...]`.
      operator: what each weight is, as in :func:`optax_igr.add_schatten_decay`; a convolution with zero padding
        counts with the norm of the circular one that contains it.
      activation_constant: the product of the Lipschitz constants of all that stands between the layers: 1 for ReLU,
        tanh and maxima of a pool, 1.13 for each GELU.
      num_steps: of the search; each costs about nine evaluations of the model.
      step_size: the length of a step of the search and the distance r, in the units of an input; by default a
        hundredth of the mean norm of `inputs`.
      progress: called with the number of steps done and to do.

    Returns:
      A :class:`LipschitzBounds`. The upper bound holds for layers that follow one another. With a residual
      connection, a product of two branches or attention it is not one.

    Raises:
      ValueError: for a normalisation layer (a leaf named `scale`), a stack of matrices, or a leaf without an
      operator.

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
    upper = activation_constant * _product_of_norms(params, operator)
    inputs = jnp.asarray(inputs, trees.widened(jnp.asarray(inputs).dtype))
    per_input = inputs.reshape(inputs.shape[0], -1)
    if step_size is None:
        step_size = jnp.mean(jnp.linalg.norm(per_input, axis=-1)) / 100
    step_size = jnp.where(step_size > 0, step_size, 1e-2)
    tick = _progress.ticker(progress, num_steps)

    def model(x):
        return apply_fn(params, x[None])[0]

    def search_step(x, vector, best, best_x):
        for _ in range(_POWER_STEPS):
            _, stretched = jax.jvp(model, (x,), (vector,))
            left = _unit(stretched)[0]
            _, pull_back = jax.vjp(model, x)
            (pulled,) = pull_back(left.astype(stretched.dtype))
            right, norm = _unit(pulled)
            vector = jnp.where(norm > 0, right, vector)

        def quotient(x):
            apart = model(x + step_size * vector) - model(x - step_size * vector)
            return jnp.sqrt(trees.squared_norm(apart)) / (2 * step_size)

        ratio, ascent = jax.value_and_grad(quotient)(x)
        found = jnp.maximum(norm, ratio)
        best, best_x = jax.tree.map(
            lambda new, old: jnp.where(found > best, new, old), (found, x), (best, best_x)
        )
        direction = _unit(jnp.where(jnp.isfinite(ascent), ascent, 0))[0]
        return x + step_size * direction, vector, best, best_x

    def search(carry, _):
        tick()
        return jax.vmap(search_step)(*carry), None

    vectors = jax.random.normal(jax.random.key(0), inputs.shape, inputs.dtype)
    vectors = jax.vmap(_unit)(vectors)[0]
    zeros = jnp.zeros(inputs.shape[:1], inputs.dtype)
    (_, _, best, best_x), _ = jax.lax.scan(
        search, (inputs, vectors, zeros, inputs), length=num_steps
    )
    winner = jnp.argmax(best)
    return LipschitzBounds(best[winner], upper, best_x[winner])


def _unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    unit, norm = trees.unit(x)
    return jnp.asarray(unit), jnp.asarray(norm)


def _product_of_norms(params: Any, operator: Any) -> jax.Array:
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
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
        return schatten.spectral_norm_bound(choice, weight)

    factors = jax.tree.leaves(leaves.map_operators(norm, chosen, params))
    product = jnp.ones([], jnp.result_type(jnp.float32, *factors))
    for factor in factors:
        product = product * factor
    return product
