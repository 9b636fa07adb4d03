r"""The accuracy of a classifier under attack, against the radius of the attack.

The attacks ascend on the margin :math:`\max_{j \ne y} z_j - z_y` of the logits. The cross-entropy of a confident
model has a vanishing gradient, and an attack on it would call such a model robust.

References:
  Goodfellow et al, `Explaining and Harnessing Adversarial Examples <https://arxiv.org/abs/1412.6572>`_, 2015 (FGSM)
  Madry et al, `Towards Deep Learning Models Resistant to Adversarial Attacks <https://arxiv.org/abs/1706.06083>`_,
  2018 (PGD) Carlini, Wagner,
  `Towards Evaluating the Robustness of Neural Networks <https://arxiv.org/abs/1608.04644>`_, 2017 (the margin)
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optax_igr._core import hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.diagnostics import _checks, _progress

_NAME = "input_robustness"
Norm = Literal["linf", "l2"]
NORMS = get_args(Norm)


class InputRobustness(NamedTuple):
    """Accuracy against the radius of the attack.

    Attributes:
      radii: of the attack, in increasing order.
      fgsm_accuracy: under one step of the full radius.
      pgd_accuracy: under projected ascent; an upper bound of the accuracy under the best attack.
      lower: the lower end of the 95 % interval of `pgd_accuracy`, by Wilson's formula.
      upper: the upper end.
    """

    radii: jax.Array
    fgsm_accuracy: jax.Array
    pgd_accuracy: jax.Array
    lower: jax.Array
    upper: jax.Array


def input_robustness(
    apply_fn: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    inputs: jax.Array,
    labels: jax.Array,
    radii: ArrayLike,
    *,
    norm: Norm = "linf",
    num_steps: int = 20,
    step_size: Scalar | None = None,
    bounds: tuple[float, float] | None = None,
    progress: _progress.Progress | None = None,
) -> InputRobustness:
    r"""Measures the accuracy under FGSM and PGD at several radii.

    .. math:: x \leftarrow \mathrm{P}_{\|x - x_0\| \le r} \big( x + \alpha\, d(\nabla_x \max_{j \ne y} z_j - z_y)
      \big)

    with d the sign for the maximum norm and the unit vector for the Euclidean one. An input counts as broken at a
    radius if any point that an attack visited within it is misclassified; each radius starts where the one before
    ended, so that accuracy does not increase. A tie of logits is an error.

    Args:
      apply_fn: `(params, inputs) -> logits`, of shape `[num_inputs, classes]`, each from the input of the same
        index alone.
      params: of the model in evaluation.
      inputs: finite, of shape `[num_inputs, ...]`.
      labels: integers from 0 to the number of classes less one, of shape `[num_inputs]`.
      radii: r, of shape `[radii]`, at least 0; 0 gives the clean accuracy.
      norm: `linf` or `l2`.
      num_steps: of PGD, a gradient each.
      step_size: :math:`\alpha` as a fraction of the radius, above 0; by default `2.5 / num_steps`.
      bounds: the least and the greatest value of an input, which an attack respects; `inputs` are within.
      progress: called with the number of radii done and to do.

    Returns:
      An :class:`InputRobustness`. An input with a NaN among its logits counts as broken. Where a traced argument has
      a value that would be an error, the accuracies are NaN.

    Raises:
      ValueError: for a bad argument, and for a label that is no class of the model.

    Examples:
      >>> import jax.numpy as jnp, optax_igr.diagnostics
      >>> apply_fn = lambda w, x: jnp.stack([x @ w, -x @ w], axis=-1)
      >>> inputs, labels = jnp.array([[0.1, 0.0], [0.3, 0.0], [-0.5, 0.0]]), jnp.array([0, 0, 1])
      >>> curve = optax_igr.diagnostics.input_robustness(
      ...     apply_fn, jnp.ones(2), inputs, labels, [0.0, 0.1, 0.2], norm="linf")
      >>> print([f"{accuracy:.2f}" for accuracy in curve.pgd_accuracy])
      ['1.00', '0.67', '0.33']

    References:
      Madry et al,
      `Towards Deep Learning Models Resistant to Adversarial Attacks <https://arxiv.org/abs/1706.06083>`_, 2018
    """
    hyperparameters.check_choice(_NAME, "norm", norm, NORMS)
    hyperparameters.check_positive_integer(_NAME, "num_steps", num_steps)
    visible_inputs, visible_labels, visible_radii = map(_checks.visible, (inputs, labels, radii))
    inputs, labels, radii = _as_arrays(inputs, labels, radii)
    num_classes = _num_classes(apply_fn, params, inputs)
    is_right = _is_in_range(visible_inputs, visible_labels, visible_radii, bounds, num_classes)
    radii = jnp.sort(radii)
    if step_size is not None:
        hyperparameters.check_scalar(_NAME, "step_size", step_size, above=0)
    fraction = 2.5 / num_steps if step_size is None else step_size
    tick = _progress.ticker(progress, radii.size)
    direct, project = _GEOMETRIES[norm]

    def margins(x):
        logits = apply_fn(params, x)
        logits = logits.astype(trees.widened(logits.dtype))
        is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
        right = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
        return jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1) - right

    def ascent(x):
        return direct(jax.grad(lambda x: jnp.sum(margins(x)))(x))

    def admissible(x, radius):
        x = inputs + project(x - inputs, radius)
        return x if bounds is None else jnp.clip(x, *bounds)

    fgsm_direction = ascent(inputs)

    def at_radius(carry, radius):
        tick()
        x, is_robust = carry
        fgsm = margins(admissible(inputs + radius * fgsm_direction, radius)) < 0

        def step(carry, _):
            x, is_robust = carry
            x = admissible(x + fraction * radius * ascent(x), radius)
            return (x, is_robust & (margins(x) < 0)), None

        start = admissible(x, radius)
        is_robust = is_robust & fgsm & (margins(start) < 0)
        carry, _ = jax.lax.scan(step, (start, is_robust), length=num_steps)
        return carry, (jnp.mean(fgsm, dtype=radii.dtype), jnp.mean(carry[1], dtype=radii.dtype))

    carry = (inputs, jnp.ones(inputs.shape[:1], bool))
    _, (fgsm_accuracy, pgd_accuracy) = jax.lax.scan(at_radius, carry, radii)
    fgsm_accuracy, pgd_accuracy = (
        _checks.where_right(is_right, accuracy) for accuracy in (fgsm_accuracy, pgd_accuracy)
    )
    lower, upper = _wilson_interval(pgd_accuracy, inputs.shape[0])
    return InputRobustness(radii, fgsm_accuracy, pgd_accuracy, lower, upper)


def _as_arrays(inputs, labels, radii):
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
    # Integer inputs, such as the bytes of an image, are attacked as real numbers.
    inputs = inputs.astype(trees.widest(inputs.dtype, jnp.float32))
    radii = jnp.asarray(radii, inputs.dtype)
    if radii.ndim != 1 or labels.shape != inputs.shape[:1] or not labels.size:
        raise ValueError(
            f"{_NAME}: expected `radii` of shape [radii] and `labels` of shape [num_inputs], as many as `inputs` and "
            f"at least one; got {radii.shape}, {labels.shape} and inputs of shape {inputs.shape}."
        )
    if not (jnp.issubdtype(labels.dtype, jnp.integer) or labels.dtype == bool):
        raise ValueError(f"{_NAME}: `labels` must be integers, got {labels.dtype}.")
    return inputs, labels.astype(jnp.int32), radii


def _num_classes(apply_fn, params, inputs):
    logits = jax.eval_shape(apply_fn, params, inputs)
    # With a single class there is no other one to be mistaken for, and every input would count as robust.
    if logits.ndim != 2 or logits.shape[0] != inputs.shape[0] or logits.shape[1] < 2:
        raise ValueError(
            f"{_NAME}: `apply_fn` must return logits of shape [num_inputs, classes] with at least two classes, got "
            f"{list(logits.shape)} for {inputs.shape[0]} inputs."
        )
    return logits.shape[1]


def _is_in_range(inputs, labels, radii, bounds, num_classes):
    """Raises an error for values out of range that can be seen, and says whether the others are in range."""
    low, high = (-np.inf, np.inf) if bounds is None else (_checks.visible(x) for x in bounds)
    demands = (
        ("bounds", "a least value below a greatest one", bounds, low < high),
        ("inputs", "finite", inputs, _checks.is_finite(inputs)),
        ("inputs", f"within `bounds`, {bounds}", inputs, (inputs >= low) & (inputs <= high)),
        (
            "labels",
            f"from 0 to {num_classes - 1}, since the model has {num_classes} classes",
            labels,
            (labels >= 0) & (labels < num_classes),
        ),
        ("radii", "finite and at least 0", radii, _checks.is_finite(radii) & (radii >= 0)),
    )
    answers = [_checks.require(_NAME, *demand) for demand in demands]
    return functools.reduce(operator.and_, answers)


def _norms(x):
    axes = tuple(range(1, x.ndim))
    return jnp.sqrt(jnp.sum(x**2, axes, keepdims=True))


def _unit(x):
    norms = _norms(x)
    return x / jnp.where(norms > 0, norms, 1)


def _into_ball(x, radius):
    norms = _norms(x)
    return x * jnp.where(norms > radius, radius / jnp.where(norms > 0, norms, 1), 1)


_GEOMETRIES = {
    "linf": (jnp.sign, lambda x, radius: jnp.clip(x, -radius, radius)),
    "l2": (_unit, _into_ball),
}


def _wilson_interval(share, count):
    z2 = 1.959963984540054**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = jnp.sqrt(z2 / count * (share * (1 - share) + z2 / (4 * count))) / (1 + z2 / count)
    return centre - spread, centre + spread
