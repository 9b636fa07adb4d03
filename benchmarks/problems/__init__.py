"""The problems, by name; each is a small file with its data, its model and its target."""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.problems import analytic, digits, logistic, mnist, shakespeare
from benchmarks.problems.problem import Problem

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "quadratic": analytic.quadratic,
    "rosenbrock": analytic.rosenbrock,
    "scalar_product": analytic.scalar_product,
    "digits": digits.mlp,
    "digits_cnn": digits.cnn,
    "mushrooms": logistic.mushrooms,
    "a9a": logistic.a9a,
    "w8a": logistic.w8a,
    "mnist": mnist.mlp,
    "mnist_cnn": mnist.cnn,
    "shakespeare": shakespeare.transformer,
}


def named(names: Sequence[str], data_dir: Path | None) -> list[Problem]:
    """Returns the problems of these names; an unknown one is a `ValueError` that lists all."""
    check(names)
    return [PROBLEMS[name](data_dir) for name in names]


def check(names: Sequence[str]) -> None:
    """Raises a `ValueError` that lists all names where one of these is unknown."""
    unknown = [name for name in names if name not in PROBLEMS]
    if unknown:
        raise ValueError(
            f"unknown problem {', '.join(map(repr, unknown))}; choose from {', '.join(PROBLEMS)}."
        )
