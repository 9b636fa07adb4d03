"""A user's own file of techniques, problems and models, named on the command line by `--plugin`."""

import runpy
from pathlib import Path

import typer


def load(paths: list[Path] | None) -> list[Path] | None:
    """Runs the files, which register what they bring; an error in one names the file.

    The option is eager: what a file registers must be known when `--techniques` and `--problems` are read.
    """
    for path in paths or []:
        try:
            runpy.run_path(str(path), run_name=path.stem)
        # A plugin is a stranger's code: whatever it raises is told with the name of its file.
        except Exception as error:
            raise typer.BadParameter(f"{path}: {type(error).__name__}: {error}") from error
    return paths
