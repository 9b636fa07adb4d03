r"""The quantiles of Student's distribution, for the interval of a mean of few draws.

With n degrees of freedom and :math:`\theta = \arctan(t / \sqrt n)`, the probability of :math:`|T| \le t` is

.. math::
  A = \frac{2}{\pi} \Big( \theta + \sin\theta \big( \cos\theta + \tfrac{2}{3} \cos^3\theta + \dots
  + \tfrac{2 \cdot 4 \cdots (n-3)}{1 \cdot 3 \cdots (n-2)} \cos^{n-2}\theta \big) \Big)

for odd n, without the sum for n = 1, and for even n

.. math::
  A = \sin\theta \Big( 1 + \tfrac{1}{2} \cos^2\theta + \dots
  + \tfrac{1 \cdot 3 \cdots (n-3)}{2 \cdot 4 \cdots (n-2)} \cos^{n-2}\theta \Big).

References:
  Abramowitz, Stegun, `Handbook of Mathematical Functions <https://personal.math.ubc.ca/~cbm/aands/page_948.htm>`_,
  1964, 26.7.3, 26.7.4 and 26.7.5
"""

import functools
import math

# Above it, the first term that the expansion leaves out is below 1e-9.
_MOST_EXACT = 200


@functools.cache
def half_width(degrees_of_freedom: int) -> float:
    """Returns the t with 95 % of the probability between -t and t, which is the quantile of 97.5 %."""
    n = degrees_of_freedom
    if n > _MOST_EXACT:
        return _expansion(n)
    low, high = 0.0, math.pi / 2
    # The interval is halved until it has no number inside.
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, n) < 0.95 else (low, middle)
    return math.sqrt(n) * math.tan((low + high) / 2)


def _probability(angle, n):
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = n % 2 == 1
    term = cosine if is_odd else 1.0
    total = 0.0
    # The term of cosine to the power k, for k = 1, 3, ..., n - 2 or k = 0, 2, ..., n - 2.
    for k in range(1 if is_odd else 0, n - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    return (angle + sine * total) * 2 / math.pi if is_odd else sine * total


def _expansion(n):
    """The expansion of Cornish and Fisher about the normal quantile."""
    z = 1.959963984540054
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
