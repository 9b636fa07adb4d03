"""Calls from a compiled loop back to the host, to say how far it is."""

from collections.abc import Callable

import jax

Progress = Callable[[int, int], object]


def ticker(progress: Progress | None, total: int) -> Callable[[], None]:
    """Returns a function that a compiled loop calls `total` times, and that calls `progress(done, total)`.

    The host counts, because a loop inside another library does not say where it is.
    """
    done = 0

    def count() -> None:
        nonlocal done
        # A program that was compiled once and runs again starts again.
        done = done % total + 1
        if progress is not None:
            progress(done, total)

    def tick() -> None:
        if progress is not None:
            jax.debug.callback(count)

    return tick
