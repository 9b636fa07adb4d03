"""The problems, by name; each is a small file with its data, its model and its target."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.problems import digits, mnist
from benchmarks.problems.problem import Problem

PROBLEMS: dict[str, Callable[[Path | None], Problem]] = {
    "digits": digits.mlp,
    "mnist": mnist.mlp,
}
