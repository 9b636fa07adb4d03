"""The one way to time: programs take turns, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")
Progress = Callable[[str], None]


def silent(message: str) -> None:
    """Says nothing."""
    del message


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns the seconds until the result of a call is there."""
    began = time.perf_counter()
    # JAX returns before the work is done.
    jax.block_until_ready(call())
    return time.perf_counter() - began


def interleaved(
    timed: Mapping[Key, Callable[[], Found]],
    rounds: int,
    *,
    once: Collection[Any] = (),
    progress: Progress = silent,
) -> dict[Key, list[Found]]:
    """Lets every program run once a round; returns what each gave, round by round, but for the first round.

    Args:
      timed: what runs a program once and returns its seconds.
      rounds: how often.
      once: what is too slow for more than one round.
      progress: told the round.
    """
    found: dict[Key, list[Found]] = {key: [] for key in timed}
    for index in range(rounds + 1):
        progress(f"timing, round {index} of {rounds}")
        for key, run in timed.items():
            if key in once and index != 1:
                continue
            given = run()
            # The first round fills caches and pages.
            if index:
                found[key].append(given)
    return found


def median_ratio(own: Sequence[float], other: Sequence[float]) -> float:
    """Returns the median over the rounds of the ratio of two programs' times in the same round."""
    # Not strict: what runs once has one round to compare.
    return statistics.median(a / b for a, b in zip(own, other, strict=False))
