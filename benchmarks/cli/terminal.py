"""What every command does on the terminal: a progress bar, tables, errors in one line, a folder for the results."""

import contextlib
import datetime
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import rich.console
import rich.progress
import typer

from benchmarks.report import tables

console = rich.console.Console()


def print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Prints a table, in several where the terminal is too narrow for one."""
    for table in tables.terminal_tables(title, head, rows, console.width):
        console.print(table)


def new_folder(name: str) -> Path:
    """Returns a folder of the present second, not made yet."""
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    return Path("results") / f"{name}-{now}"


def writable(folder: Path) -> Path:
    """Makes a folder and writes into it, before anything is run for it; returns the folder.

    Every command that writes calls this first: an hour of runs must not end in a folder that cannot be written.

    Raises:
      typer.BadParameter: where it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The permissions of a folder do not tell of a full disk or a file system that is read only.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise typer.BadParameter(
            f"{folder} cannot be written: {error.strerror or error}."
        ) from error
    return folder


@contextlib.contextmanager
def progress() -> Iterator:
    """Shows a bar; gives the function `(what, fraction)` that moves it."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda what, fraction: bar.update(task, description=what, completed=fraction)


@contextlib.contextmanager
def readable_errors(option: str | None = None) -> Iterator:
    """Turns what a user can mend into one line; OPTAX_IGR_TRACEBACK in the environment shows where it came from."""
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("OPTAX_IGR_TRACEBACK"):
            raise
        raise typer.BadParameter(str(error), param_hint=option) from error
