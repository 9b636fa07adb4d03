r"""A metric of a model against noise in its parameters: a curve, not a point.

.. math::
  \theta (1 + s \epsilon), \qquad \theta + s \epsilon, \qquad
  \theta_f + s \frac{\|\theta_f\|}{\|\epsilon_f\|} \epsilon_f, \qquad \epsilon \sim N(0, I)

for multiplicative, additive and filter-normalised noise of scale s, with a filter f for each output of a layer.

References:
  Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021, section 5
  (multiplicative) Li et al, `Visualizing the Loss Landscape of Neural Nets <https://arxiv.org/abs/1712.09913>`_,
  2018 (filter-normalised)
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optax_igr._core import hyperparameters, trees
from optax_igr.diagnostics import _checks, _progress, _student

_NAME = "parameter_robustness"
Noise = Literal["multiplicative", "additive", "filter_normalised"]
NOISES = get_args(Noise)


class ParameterRobustness(NamedTuple):
    """A metric against the scale of the noise.

    Attributes:
      scales: of the noise.
      mean: of the metric over the draws, at each scale.
      lower: the lower end of the mean's 95 % interval, by Student's distribution of the draws.
      upper: the upper end.
      draws: the metric of each draw, of shape `[scales, draws]`. A draw is the same noise at every scale.
    """

    scales: jax.Array
    mean: jax.Array
    lower: jax.Array
    upper: jax.Array
    draws: jax.Array


def parameter_robustness(
    metric_fn: Callable[[Any], jax.Array],
    params: Any,
    key: jax.Array,
    scales: ArrayLike,
    noise: Noise = "multiplicative",
    draws: int = 10,
    *,
    progress: _progress.Progress | None = None,
) -> ParameterRobustness:
    """Measures a metric under noise in the parameters, at several scales, in one compiled program.

    Args:
      metric_fn: `params -> scalar`: an accuracy, a loss. A real number, an integer or a boolean.
      params: a pytree; only its floating leaves are perturbed.
      key: a typed random key.
      scales: s, of shape `[scales]`, finite and at least 0.
      noise: `multiplicative`, `additive` or `filter_normalised`. A filter is a slice along the last axis (the
        outputs, in Flax); a leaf of fewer than two axes is one filter.
      draws: of the noise at each scale, at least 2.
      progress: called with the number of evaluations done and to do.

    Returns:
      A :class:`ParameterRobustness`. Where `scales` are traced and one is out of range, it is NaN.

    Raises:
      ValueError: for a bad argument, and a metric that is no real scalar.

    Examples:
      >>> import jax, jax.numpy as jnp, optax_igr.diagnostics
      >>> loss = lambda w: jnp.mean((w - 1.0) ** 2)
      >>> curve = optax_igr.diagnostics.parameter_robustness(
      ...     loss, jnp.ones(1000), jax.random.key(0), [0.0, 0.1, 0.2])
      >>> print([f"{value:.2f}" for value in curve.mean])
      ['0.00', '0.01', '0.04']

    References:
      Barrett, Dherin, `Implicit Gradient Regularization <https://arxiv.org/abs/2009.11162>`_, 2021, section 5
    """
    hyperparameters.check_choice(_NAME, "noise", noise, NOISES)
    hyperparameters.check_integer(_NAME, "draws", draws, at_least=2)
    visible = _checks.visible(scales)
    scales = jnp.asarray(scales, jnp.result_type(float))
    if scales.ndim != 1:
        raise ValueError(f"{_NAME}: `scales` must be a list of numbers, got shape {scales.shape}.")
    in_range = _checks.is_finite(visible) & (visible >= 0)
    is_right = _checks.require(_NAME, "scales", "finite and at least 0", visible, in_range)
    params = trees.as_arrays(params)
    metric = jax.eval_shape(metric_fn, params)
    if metric.shape or jnp.issubdtype(metric.dtype, jnp.complexfloating):
        raise ValueError(
            f"{_NAME}: `metric_fn` must return a real scalar, got {metric.dtype}{list(metric.shape)}."
        )
    tick = _progress.ticker(progress, scales.size * draws)

    @jax.jit
    def measure(params, keys, scales):
        def at_scale(scale):
            def of_draw(key):
                tick()
                return metric_fn(perturb(params, key, scale, noise))

            return jax.lax.map(of_draw, keys)

        return jax.lax.map(at_scale, scales)

    samples = measure(params, jax.random.split(key, draws), scales)
    samples = jnp.asarray(samples, trees.widest(samples.dtype, jnp.float32))
    samples = _checks.where_right(is_right, samples)
    mean = jnp.mean(samples, axis=1)
    error = jnp.std(samples, axis=1, ddof=1) / draws**0.5
    half_width = _student.half_width(draws - 1) * error
    return ParameterRobustness(scales, mean, mean - half_width, mean + half_width, samples)


def perturb(params: Any, key: jax.Array, scale: ArrayLike, noise: Noise) -> Any:
    """Returns the parameters with noise of a scale, in their dtypes."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    perturbed = functools.partial(_perturb_leaf, scale=scale, noise=noise)
    return structure.unflatten(perturbed(x, k) for x, k in zip(leaves, keys, strict=False))


def _perturb_leaf(leaf, key, *, scale, noise):
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    wide = leaf.astype(trees.widened(leaf.dtype))
    drawn = jax.random.normal(key, wide.shape, wide.dtype)
    if noise == "multiplicative":
        drawn = wide * drawn
    elif noise == "filter_normalised":
        axes = tuple(range(max(leaf.ndim - 1, 0))) if leaf.ndim > 1 else None
        length, drawn_length = (
            jnp.sqrt(jnp.sum(jnp.abs(x) ** 2, axes, keepdims=True)) for x in (wide, drawn)
        )
        factor = length / jnp.where(drawn_length > 0, drawn_length, 1)
        drawn = factor.astype(wide.dtype) * drawn
    return (wide + jnp.asarray(scale).astype(wide.dtype) * drawn).astype(leaf.dtype)
