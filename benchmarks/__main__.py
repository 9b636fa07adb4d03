"""The command line: `python -m benchmarks`."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import rich.console
import rich.progress
import typer

from benchmarks import compare, decay_costs, elementwise, records, report, runner, steps
from benchmarks import data as data_
from benchmarks import experiment as experiments_
from benchmarks import problems as problems_
from benchmarks import results as results_
from benchmarks import sweep_speed as sweep_speed_
from benchmarks import tensorboard as tensorboard_
from benchmarks.experiments import EXPERIMENTS, flows
from benchmarks.problems import PROBLEMS
from benchmarks.techniques import TECHNIQUES, named

console = rich.console.Console()

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_show_locals=False,
    help="Compare gradient transformations. Without a command it runs `penalties`, the main "
    "comparison: five seeds each on scikit-learn's digits, in under two minutes on two cores.",
)

MAIN = "penalties"
RECORDED = Path(__file__).parent / "recorded"


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _check_rates(text: str | None) -> str | None:
    for part in _split(text):
        try:
            positive = 0 < float(part) < float("inf")
        except ValueError:
            positive = False
        if not positive:
            raise typer.BadParameter(f"{part!r} is not a positive number.")
    return text


def _check_problems(text: str | None) -> str | None:
    try:
        problems_.check(_split(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return text


def _check_limits(texts: list[str]) -> list[str]:
    try:
        for text in texts:
            compare.parse_limit(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return texts


Seeds = Annotated[int, typer.Option(min=1, help="Seeds of each technique and rate.")]
Rates = Annotated[
    str | None,
    typer.Option(
        metavar="RATE,...",
        callback=_check_rates,
        help="Learning rates for every technique, instead of the experiment's own.",
    ),
]
Techniques = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Techniques to run, instead of all of the experiment's: its own names, or one of "
        + ", ".join(TECHNIQUES)
        + ".",
    ),
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
Problems = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        callback=_check_problems,
        help="Problems to run, instead of the experiment's own: " + ", ".join(PROBLEMS) + ".",
    ),
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Steps of a run, instead of the problem's own.")
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write the curves as TensorBoard scalars too.")
]


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    seeds: Seeds = 5,
    learning_rates: Rates = None,
    techniques: Techniques = None,
    data_dir: DataDir = None,
    problems: Problems = None,
    num_steps: Steps = None,
    out: Out = None,
    tensorboard: TensorBoard = False,
) -> None:
    if context.invoked_subcommand is not None:
        given = [p.opts[0] for p in context.command.params if p.name and _is_given(context, p.name)]
        if given:
            command = context.invoked_subcommand
            raise typer.BadParameter(
                f"{', '.join(given)} must follow the command: python -m benchmarks {command} {given[0]} ..."
            )
    else:
        _run(
            MAIN, seeds, learning_rates, techniques, data_dir, problems, num_steps, out, tensorboard
        )


def _is_given(context, name):
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _run(name, seeds, learning_rates, techniques, data_dir, problems, num_steps, out, tensorboard):
    experiment = EXPERIMENTS[name]
    if tensorboard:
        with _readable_errors("--tensorboard"):
            tensorboard_.check()
    chosen = None
    if techniques:
        with _readable_errors("--techniques"):
            chosen = experiments_.find_techniques(experiment, _split(techniques))
    runner.use_every_core()
    folder = out or _new_folder(name)
    with _progress() as advance, _readable_errors():
        runs = experiments_.run(
            experiment,
            folder / "records.jsonl",
            seeds=seeds,
            techniques=chosen,
            learning_rates=[float(r) for r in _split(learning_rates)] if learning_rates else None,
            data_dir=data_dir,
            problems=problems_.named(_split(problems), data_dir) if problems else None,
            num_steps=num_steps,
            progress=advance,
        )
    _show(experiment, runs, folder)
    if tensorboard:
        place = tensorboard_.write(runs, folder)
        console.print(f"TensorBoard: tensorboard --logdir {place.resolve()}")


def _show(experiment, runs, folder):
    _print_table(experiment.question, *report.cells(experiment, runs))
    console.print(experiment.headline(runs), highlight=False)
    path = report.write(experiment, runs, folder)
    console.print(f"\nreport: {path.resolve()}\nrecords: {(folder / 'records.jsonl').resolve()}")


def _command(name):
    own = ", ".join(entry.technique.name for entry in EXPERIMENTS[name].entries)

    def command(
        seeds: Seeds = 5,
        learning_rates: Rates = None,
        techniques: Annotated[
            str | None,
            typer.Option(
                metavar="NAME,...",
                help=f"Some of {own}, instead of all; or others of the suite (see --help of the suite).",
            ),
        ] = None,
        data_dir: DataDir = None,
        problems: Problems = None,
        num_steps: Steps = None,
        out: Out = None,
        tensorboard: TensorBoard = False,
    ) -> None:
        _run(
            name, seeds, learning_rates, techniques, data_dir, problems, num_steps, out, tensorboard
        )

    return command


for _name, _experiment in EXPERIMENTS.items():
    app.command(_name, help=_experiment.question)(_command(_name))


@app.command("flows", help=flows.EXPERIMENT.question)
def flow_figures(out: Out = None) -> None:
    folder = out or _new_folder("flows")
    with _progress() as advance, _readable_errors():
        runs = flows.run(folder / "records.jsonl", progress=advance)
    _show(flows.EXPERIMENT, runs, folder)


@app.command("steps", help="What a step costs beside a plain gradient step.")
def step_costs(
    techniques: Techniques = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each step is timed.")] = 9,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a step.")] = steps.BATCH_SIZE,
    widths: Annotated[
        str, typer.Option(metavar="N,...", help="Widths of the fully connected network.")
    ] = ",".join(map(str, steps.WIDTHS)),
    without_model: Annotated[
        bool,
        typer.Option(
            "--elementwise",
            help="Steps of a given gradient on many donated parameters, beside Adam and a softmax.",
        ),
    ] = False,
    size: Annotated[
        int, typer.Option(min=1, help="Parameters of an elementwise step.")
    ] = elementwise.SIZE,
    out: Out = None,
) -> None:
    if without_model:
        with console.status("") as status:
            found = elementwise.measure(size=size, rounds=rounds, progress=status.update)
        _print_table(f"One step on {size:,} parameters", *elementwise.cells(found))
        path = elementwise.write(found, out or _new_folder("steps"))
        console.print(f"records: {path.resolve()}")
        return
    with _readable_errors("--techniques"):
        chosen = named(_split(techniques) or steps.DEFAULT)
    with console.status("") as status:
        costs = steps.measure(
            chosen,
            widths=[int(w) for w in _split(widths)],
            batch_size=batch_size,
            rounds=rounds,
            progress=status.update,
        )
    _print_table("One step beside plain gradient descent", *steps.cells(costs))
    path = steps.write(costs, out or _new_folder("steps"))
    console.print(f"records: {path.resolve()}")


@app.command("decay-costs", help="What a decay of the weights' norms costs beside a plain step.")
def norm_decay_costs(
    rounds: Annotated[int, typer.Option(min=1, help="How often each step is timed.")] = 9,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Examples a step.")
    ] = decay_costs.BATCH_SIZE,
    widths: Annotated[
        str, typer.Option(metavar="N,...", help="Widths of the fully connected network.")
    ] = ",".join(map(str, decay_costs.WIDTHS)),
    out: Out = None,
) -> None:
    with console.status("") as status:
        costs = decay_costs.measure(
            widths=[int(w) for w in _split(widths)],
            batch_size=batch_size,
            rounds=rounds,
            progress=status.update,
        )
    _print_table("One step beside plain gradient descent", *decay_costs.cells(costs))
    path = decay_costs.write(costs, out or _new_folder("decay-costs"))
    console.print(f"records: {path.resolve()}")


@app.command("sweep-speed", help="Time a sweep as one program beside a Python loop over one step.")
def sweep_speed(
    runs: Annotated[
        str, typer.Option(metavar="N,...", help="Numbers of runs, multiples of five.")
    ] = "40,400",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of a run.")] = 20,
    loop_runs: Annotated[
        int | None, typer.Option(min=1, help="Time the loop on so many runs and scale its time up.")
    ] = None,
    out: Out = None,
) -> None:
    runner.use_every_core()
    with console.status("") as status:
        found = [
            sweep_speed_.measure(int(n), epochs=epochs, loop_runs=loop_runs, progress=status.update)
            for n in _split(runs)
        ]
    _print_table("A sweep as one program, and as a loop", *sweep_speed_.cells(found))
    path = sweep_speed_.write(found, out or _new_folder("sweep-speed"))
    console.print(f"records: {path.resolve()}")


@app.command("download", help="Fetch the public data files: mnist, libsvm, text, or all of them.")
def download(
    what: Annotated[str, typer.Argument(metavar="[FOLDER]")] = "all",
    data_dir: Annotated[
        Path, typer.Option(envvar="OPTAX_IGR_DATA", file_okay=False, help="Where to put them.")
    ] = Path("data"),
) -> None:
    folders = sorted({f.folder for f in data_.FILES.values()})
    if what not in ("all", *folders):
        raise typer.BadParameter(f"{what!r} is not one of all, {', '.join(folders)}.")
    with _readable_errors():
        for file in data_.FILES.values():
            if what in ("all", file.folder):
                console.print(f"{data_.download(data_dir, file.name)}  {file.checksum}")


@app.command("pack", help="Copy records into the folder that RESULTS.md is written from.")
def pack(
    name: Annotated[str, typer.Argument(metavar="EXPERIMENT[.LABEL]")],
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="RECORDS")],
    folder: Annotated[Path, typer.Option(file_okay=False, help="Where to put them.")] = RECORDED,
) -> None:
    target = folder / f"{name}.jsonl.gz"
    with _readable_errors():
        results_.kind(target)
        records.pack(source, target)
    console.print(f"{target.resolve()}: {target.stat().st_size / 2**20:.2f} MiB")


@app.command("results", help="Write RESULTS.md from committed records.")
def results(
    folder: Annotated[
        Path,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Holds NAME[.LABEL].jsonl or .jsonl.gz, NAME an experiment, steps or sweep_speed.",
        ),
    ] = RECORDED,
    out: Annotated[Path, typer.Option(dir_okay=False, help="The file to write.")] = RECORDED.parent
    / "RESULTS.md",
) -> None:
    with _readable_errors():
        results_.write(out, folder)
    console.print(f"{out.resolve()}")


@app.command(
    "diff",
    help="Compare two records.jsonl or .jsonl.gz; exit with 1 where a limit is passed, or a measure is absent.",
)
def diff(
    before: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    after: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    fail: Annotated[
        list[str] | None,
        typer.Option(
            callback=lambda texts: _check_limits(texts or []),
            help="MEASURE:PERCENT%, such as steps_to_target:10%; may be repeated. Measures: "
            + ", ".join(compare.MEASURES)
            + ".",
        ),
    ] = None,
) -> None:
    limits = {limit.measure: limit for limit in map(compare.parse_limit, fail or [])}
    measures = list(limits) or list(compare.MEASURES)
    with _readable_errors():
        first, second = records.read(before), records.read(after)
        for path, runs in ((before, first), (after, second)):
            if not runs:
                raise ValueError(f"{path} has no records.")
    found = compare.differences(first, second, measures)
    failed = [d for d in found if d.measure in limits and d.growth > limits[d.measure].growth]
    head = ["problem", "technique", "rate", "measure", "before", "after", "change"]
    rows = [
        [
            d.problem,
            d.technique,
            f"{d.learning_rate:.3g}",
            d.measure,
            f"{d.before:.4g}",
            f"{d.after:.4g}",
            f"{100 * d.growth:+.1f} %" + (" ✗" if d in failed else ""),
        ]
        for d in found
    ]
    if rows:
        _print_table(f"{before} → {after}", head, rows)
    for remark in compare.remarks(first, second):
        console.print(remark, highlight=False)
    absent = [measure for measure in limits if measure not in {d.measure for d in found}]
    if absent or not rows:
        console.print(f"the two files have no {' and no '.join(absent) or 'run'} to compare")
    if failed or absent:
        raise typer.Exit(1)


def _print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    for table in report.tables(title, head, rows, console.width):
        console.print(table)


def _new_folder(name: str) -> Path:
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    return Path("results") / f"{name}-{now}"


@contextlib.contextmanager
def _progress() -> Iterator:
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
def _readable_errors(option: str | None = None) -> Iterator:
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("OPTAX_IGR_TRACEBACK"):
            raise
        raise typer.BadParameter(str(error), param_hint=option) from error


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
