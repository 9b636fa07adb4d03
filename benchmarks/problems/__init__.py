"""The problems, by name; each is a small file with its data, its model and its target.

A user's own problem enters by `register`, or as a `Problem` that is given to `benchmarks.experiments.sweep.run`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.problems import analytic, digits, logistic, mnist, shakespeare
from benchmarks.problems.classification import classifier as classifier
from benchmarks.problems.problem import Problem as Problem
from benchmarks.problems.problem import Target as Target

# Each takes the folder of data files, or None. The bundled problems do not read it.
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


def register(name: str, make: Callable[[Path | None], Problem]) -> None:
    """Adds a problem, made by `data_dir -> Problem`, to those that `--problems` knows.

    Raises:
      ValueError: where the name is taken.
    """
    # A second problem of one name would make the records of the first unreadable.
    if name in PROBLEMS:
        raise ValueError(f"a problem {name!r} is there already; choose another name.")
    PROBLEMS[name] = make


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
