"""The commands that run experiments: one for each, made from its name, its question and its entries."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import problems as problems_
from benchmarks.cli import options
from benchmarks.cli.terminal import (
    console,
    new_folder,
    print_table,
    progress,
    readable_errors,
    writable,
)
from benchmarks.engine import runner
from benchmarks.engine.table import Table
from benchmarks.experiments import EXPERIMENTS, sweep
from benchmarks.experiments.experiment import Experiment
from benchmarks.report import page, tables
from benchmarks.report import tensorboard as tensorboard_

MAIN = "penalties"


def add_to(app: typer.Typer) -> None:
    """Adds a command for each experiment; the main one is also that of no command."""
    # The help of the suite lists all techniques, that of a command those of its experiment.
    main = _running(MAIN, options.choose_techniques())
    app.callback(invoke_without_command=True)(main)
    for name, experiment in EXPERIMENTS.items():
        make = _running if experiment.entries else _measuring
        app.command(name, help=experiment.question)(make(name))


def _running(name: str, choose_techniques: Any = None) -> Callable[..., None]:
    """Makes the command of an experiment with techniques to choose."""
    choose_techniques = choose_techniques or options.choose_techniques(EXPERIMENTS[name])

    def command(
        context: typer.Context,
        plugin: options.Plugin = None,
        seeds: options.Seeds = 5,
        learning_rates: options.Rates = None,
        techniques: Annotated[Any, choose_techniques] = None,
        data_dir: options.DataDir = None,
        problems: options.Problems = None,
        num_steps: options.Steps = None,
        out: options.Out = None,
        tensorboard: options.TensorBoard = False,
    ) -> None:
        del plugin  # loaded already, before the other options were read
        if context.invoked_subcommand is not None:
            _refuse_options(context)
            return
        experiment = EXPERIMENTS[name]
        if tensorboard:
            with readable_errors("--tensorboard"):
                tensorboard_.check()
        with readable_errors("--techniques"):
            chosen = techniques and sweep.find_techniques(experiment, techniques)
        folder = writable(out or new_folder(name))
        # Before JAX starts: afterwards the number of devices is fixed.
        runner.use_every_core()
        with progress() as advance, readable_errors():
            runs = sweep.run(
                experiment,
                folder / "records.jsonl",
                seeds=seeds,
                techniques=chosen,
                learning_rates=learning_rates,
                data_dir=data_dir,
                problems=problems and problems_.named(problems, data_dir),
                num_steps=num_steps,
                progress=advance,
                note=lambda text: console.print(text, highlight=False),
            )
        _show(experiment, runs, folder)
        if tensorboard:
            place = tensorboard_.write(runs, folder)
            console.print(f"TensorBoard: tensorboard --logdir {place.resolve()}")

    return command


def _measuring(name: str) -> Callable[..., None]:
    """Makes the command of an experiment that only measures: there is nothing to choose."""

    def command(out: options.Out = None) -> None:
        folder = writable(out or new_folder(name))
        with progress() as advance, readable_errors():
            runs = sweep.run(EXPERIMENTS[name], folder / "records.jsonl", progress=advance)
        _show(EXPERIMENTS[name], runs, folder)

    return command


def _refuse_options(context):
    """An option before the command belongs to none, and would be lost."""
    given = options.given(context)
    if given:
        raise typer.BadParameter(
            f"{', '.join(given)} must follow the command: python -m benchmarks "
            f"{context.invoked_subcommand} {given[0]} ..."
        )


def _show(experiment: Experiment, runs: Table, folder: Path) -> None:
    print_table(experiment.question, *tables.cells(experiment, runs))
    console.print(experiment.headline(runs), highlight=False)
    path = page.write(experiment, runs, folder)
    console.print(f"\nreport: {path.resolve()}\nrecords: {(folder / 'records.jsonl').resolve()}")
