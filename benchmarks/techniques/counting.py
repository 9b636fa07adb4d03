"""Techniques that count on their way: the losses that their steps incur, or the passes over the data that they take."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.problems.counted import Counted
from benchmarks.techniques.technique import Plan, Spent, Technique

INCURRED = ("incurred",)
SPENT = Spent._fields


class CountingState(NamedTuple):
    """The state of an optimizer, and the sums of what its steps have counted."""

    inner: optax.OptState
    counts: dict[str, jax.Array]


def counting_losses(technique: Technique) -> Technique:
    """Returns the technique with its losses summed on the way: the score of an online game."""

    def count(before, after, extra, plan):
        del before, after, plan
        return {"incurred": extra["value"]}

    return _counting(technique, INCURRED, count, ("value",))


def counting_passes(technique: Technique, spent: Callable[[Any, Any, Plan], Spent]) -> Technique:
    """Returns the technique with what it spends summed on the way; `spent` is that of `Technique.spent`."""

    def count(before, after, extra, plan):
        del extra
        return spent(before, after, plan)._asdict()

    counting = _counting(technique, SPENT, count, ())
    # The run itself counts, over all of its steps: a long period need not be stepped through beforehand.
    return dataclasses.replace(counting, period=1)


def _counting(
    technique: Technique,
    names: Sequence[str],
    count: Callable[[Any, Any, Mapping[str, Any], Plan], Mapping[str, Any]],
    needed: Sequence[str],
) -> Technique:
    own = tuple(technique.extra_arguments)

    def make(*arguments):
        *values, plan = arguments
        inner = optax.with_extra_args_support(technique.make(*values, plan))

        def init(params):
            return CountingState(
                inner.init(params), {name: jnp.zeros([], jnp.float32) for name in names}
            )

        def update(updates, state, params: Any = None, **extra):
            # The technique receives what it asked for alone: what is needed here, it might refuse.
            asked = {name: extra[name] for name in own}
            updates, after = inner.update(updates, state.inner, params, **asked)
            found = count(state.inner, after, extra, plan)
            counts = {name: state.counts[name] + jnp.float32(found[name]) for name in names}
            return updates, CountingState(after, counts)

        return optax.GradientTransformationExtraArgs(init, update)

    def eval_params(state, params):
        return Counted(technique.eval_params(state.inner, params), state.counts)

    return dataclasses.replace(
        technique,
        make=make,
        eval_params=eval_params,
        extra_arguments=tuple(dict.fromkeys((*own, *needed))),
    )
