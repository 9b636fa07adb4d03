"""The commands that measure costs: of steps, of decays, of a sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cli import options
from benchmarks.cli.terminal import console, new_folder, print_table, readable_errors, writable
from benchmarks.costs import decay_costs, elementwise_costs, step_costs, sweep_speed
from benchmarks.engine import records, runner
from benchmarks.engine.table import table
from benchmarks.experiments.costs import COSTS, TITLES
from benchmarks.problems.network import BATCH_SIZE, WIDTHS
from benchmarks.report import tables
from benchmarks.techniques import named

DEFAULT_WIDTHS = ",".join(map(str, WIDTHS))


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("steps", help="What a step costs beside a plain gradient step.")(_steps)
    app.command(
        "decay-costs", help="What a decay of the weights' norms costs beside a plain step."
    )(_decay_costs)
    app.command(
        "sweep-speed", help="Time a sweep as one program beside a Python loop over one step."
    )(_sweep_speed)


def _measure(kind: str, measure: Callable[..., list], folder: Path, *args: Any, **settings: Any):
    """Measures one kind of cost, prints it and writes its records into a folder."""
    writable(folder)
    with readable_errors(), console.status("") as status:
        found = measure(*args, **settings, progress=status.update)
    print_table(TITLES[kind], *tables.cells(COSTS[kind], table(found)))
    path = folder / f"{kind}.jsonl"
    # In place of an earlier call's: half of an old table beside a new one cannot be compared.
    records.write(path, found)
    console.print(f"records: {path.resolve()}")


def _steps(
    context: typer.Context,
    plugin: options.Plugin = None,
    techniques: Annotated[Any, options.choose_techniques()] = None,
    rounds: options.Rounds = 9,
    batch_size: options.BatchSize = BATCH_SIZE,
    widths: options.Widths = DEFAULT_WIDTHS,
    without_model: Annotated[
        bool,
        typer.Option(
            "--elementwise",
            help="Steps of a given gradient on many donated parameters, beside Adam and a softmax.",
        ),
    ] = False,
    size: Annotated[
        int, typer.Option(min=1, help="Parameters of an elementwise step.")
    ] = elementwise_costs.SIZE,
    out: options.CostsOut = None,
) -> None:
    del plugin  # loaded already
    folder = out or new_folder("steps")
    of_the_other = ("--techniques", "--batch-size", "--widths") if without_model else ("--size",)
    if lost := [name for name in of_the_other if name in options.given(context)]:
        verb = "goes without" if without_model else "goes with"
        raise typer.BadParameter(f"{', '.join(lost)} {verb} --elementwise.")
    if without_model:
        _measure("elementwise", elementwise_costs.measure, folder, size=size, rounds=rounds)
        return
    with readable_errors("--techniques"):
        chosen = named(techniques or step_costs.DEFAULT)
    settings = {"widths": widths, "batch_size": batch_size, "rounds": rounds}
    _measure("steps", step_costs.measure, folder, chosen, **settings)


def _decay_costs(
    rounds: options.Rounds = 9,
    batch_size: options.BatchSize = BATCH_SIZE,
    widths: options.Widths = DEFAULT_WIDTHS,
    out: options.CostsOut = None,
) -> None:
    settings = {"widths": widths, "batch_size": batch_size, "rounds": rounds}
    folder = out or new_folder("decay-costs")
    _measure("decay_costs", decay_costs.measure, folder, **settings)


def _sweep_speed(
    runs: options.Numbers = "40,400",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of a run.")] = 20,
    loop_runs: Annotated[
        int | None, typer.Option(min=1, help="Time the loop on so many runs and scale its time up.")
    ] = None,
    out: options.CostsOut = None,
) -> None:
    runner.use_every_core()
    folder = out or new_folder("sweep-speed")
    _measure("sweep_speed", sweep_speed.measure, folder, runs, epochs=epochs, loop_runs=loop_runs)
