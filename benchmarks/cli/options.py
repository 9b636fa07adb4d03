"""The options of the command line: what each means, and how its text becomes a value."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import problems
from benchmarks.cli import plugins
from benchmarks.experiments.experiment import Experiment
from benchmarks.report import compare
from benchmarks.techniques import TECHNIQUES


def _listed(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Makes a parser of values between commas; one that it refuses, or none at all, is an error."""

    def parser(text: str) -> list[Any]:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        # An empty list would silently mean the experiment's own choice.
        if not parts:
            raise typer.BadParameter("expected one or more values between commas.")
        try:
            return [parse(part) for part in parts]
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parser


def _number(kind: type, name: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        # Also refuses NaN, which no comparison holds for.
        if not 0 < value < float("inf"):
            raise ValueError(f"{text!r} is not a positive {name}.")
        return value

    return parse


def _problem(name: str) -> str:
    problems.check([name])
    return name


def _limit(text: str) -> compare.Limit:
    try:
        return compare.parse_limit(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def choose_techniques(experiment: Experiment | None = None) -> Any:
    """Returns the option `--techniques` of an experiment, or of what takes any of the suite."""
    if experiment is None:
        text = "Techniques to run, instead of the usual ones: " + ", ".join(TECHNIQUES) + "."
    else:
        own = ", ".join(entry.technique.name for entry in experiment.entries)
        text = f"Some of {own}, instead of all; or others of the suite (see --help of the suite)."
    return typer.Option(metavar="NAME,...", parser=_listed(str), help=text)


def given(context: typer.Context) -> list[str]:
    """Returns the options that stand on the command line."""
    sources = {
        p.opts[0]: context.get_parameter_source(p.name or "") for p in context.command.params
    }
    return [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]


Plugin = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        exists=True,
        dir_okay=False,
        is_eager=True,
        callback=plugins.load,
        help="A file that registers techniques or problems of your own; may be given several times.",
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="Seeds of each technique and rate.")]
Rates = Annotated[
    Any,
    typer.Option(
        metavar="RATE,...",
        parser=_listed(_number(float, "number")),
        help="Learning rates for every technique, instead of the experiment's own.",
    ),
]
Problems = Annotated[
    Any,
    typer.Option(
        metavar="NAME,...",
        parser=_listed(_problem),
        help="Problems to run, instead of the experiment's own: "
        + ", ".join(problems.PROBLEMS)
        + ".",
    ),
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Steps of a run, instead of the problem's own.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="OPTAX_IGR_DATA",
        exists=True,
        file_okay=False,
        help="Folder of data files; with MNIST's IDX files in it the main comparison runs on MNIST.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        help="Folder for the results; runs already recorded there are not run again. "
        "Default: a new folder in results/.",
    ),
]
CostsOut = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        help="Folder for the records, which replace those of an earlier call. "
        "Default: a new folder in results/.",
    ),
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write the curves as TensorBoard scalars too.")
]
Rounds = Annotated[int, typer.Option(min=1, help="How often each step is timed.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples a step.")]
Widths = Annotated[
    Any,
    typer.Option(
        metavar="N,...",
        parser=_listed(_number(int, "whole number")),
        help="Widths of the fully connected network.",
    ),
]
Numbers = Annotated[
    Any,
    typer.Option(
        metavar="N,...",
        parser=_listed(_number(int, "whole number")),
        help="Numbers of runs, multiples of five.",
    ),
]
Limits = Annotated[
    list[Any] | None,
    typer.Option(
        parser=_limit,
        metavar="MEASURE:PERCENT%",
        help="MEASURE:PERCENT%, such as steps_to_target:10%; may be repeated. Measures: "
        + ", ".join(compare.MEASURES)
        + ".",
    ),
]
