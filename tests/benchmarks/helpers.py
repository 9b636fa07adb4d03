"""What the tests of the suite share: records that were made up, the command line, a small problem."""

import re

import jax
import jax.numpy as jnp
import typer.testing

from benchmarks.cli.app import app
from benchmarks.engine.records import Record
from benchmarks.problems import Problem

COSTS_OF_A_RUN = {
    "gradients_per_step": 1.0,
    "products_per_step": 0.0,
    "seconds_per_step": 1e-3,
    "compile_seconds": 0.5,
    "runs_in_program": 5,
}


def record(technique="sgd", rate=0.1, seed=0, *, loss=1.0, measures=None, **changes):
    """Makes a record of a run that ended at a loss."""
    attributes = {
        "problem": "p",
        "about": "s",
        "num_steps": 20,
        "curve": {"step": [0, 10, 20], "train_loss": [4.0, 2.0, loss]},
    }
    return Record(
        technique=technique,
        settings={"learning_rate": rate},
        seed=seed,
        measures={"train_loss": loss, **COSTS_OF_A_RUN, **(measures or {})},
        **attributes | changes,
    )


def invoke(*arguments):
    """Calls the command line; returns its result, with all that it said as `words`."""
    result = typer.testing.CliRunner().invoke(
        app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"}
    )
    # An error stands in a box, whose lines break where a path is long.
    result.words = re.sub(r"[\s│╭╮╰╯─]+", " ", result.output + result.stderr)
    return result


def bowl(name="round", **changes):
    """Makes the problem of a sum of squares: gradient descent at h shrinks it by (1 - 2h)² a step."""
    measure = {"train_loss": lambda p, train, test: jnp.sum(p**2)}
    attributes = {
        "name": name,
        "init": lambda key: jax.random.normal(key, (3,)),
        "loss": lambda params, batch: jnp.sum(params**2),
        "train": None,
        "test": None,
        "batch_size": None,
        "num_steps": 5,
        "measures": measure,
        "final_measures": measure,
        "about": f"a {name} bowl",
    }
    return Problem(**attributes | changes)
