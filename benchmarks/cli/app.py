"""The command line: `python -m benchmarks`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import problems as problems_
from benchmarks.cli import options
from benchmarks.cli.terminal import console, new_folder, print_table, progress, readable_errors
from benchmarks.costs import decay_costs, elementwise
from benchmarks.costs import step_costs as steps
from benchmarks.costs import sweep_speed as sweep_speed_
from benchmarks.engine import records, runner
from benchmarks.experiments import EXPERIMENTS, costs, flows
from benchmarks.experiments import experiment as experiments_
from benchmarks.experiments import results as results_
from benchmarks.problems import data as data_
from benchmarks.problems.network import BATCH_SIZE, WIDTHS
from benchmarks.report import compare
from benchmarks.report import page as report
from benchmarks.report import tensorboard as tensorboard_
from benchmarks.techniques.own import named

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_show_locals=False,
    help="Compare gradient transformations. Without a command it runs `penalties`, the main "
    "comparison: five seeds each on scikit-learn's digits, in under two minutes on two cores.",
)

MAIN = "penalties"
RECORDED = Path(__file__).parents[1] / "recorded"
DEFAULT_WIDTHS = ",".join(map(str, WIDTHS))


def _command(name: str, choose_techniques: Any) -> Callable[..., None]:
    def command(
        context: typer.Context,
        seeds: options.Seeds = 5,
        learning_rates: options.Rates = None,
        techniques: Annotated[Any, choose_techniques] = None,
        data_dir: options.DataDir = None,
        problems: options.Problems = None,
        num_steps: options.Steps = None,
        out: options.Out = None,
        tensorboard: options.TensorBoard = False,
    ) -> None:
        if context.invoked_subcommand is not None:
            _refuse_options(context)
            return
        experiment = EXPERIMENTS[name]
        if tensorboard:
            with readable_errors("--tensorboard"):
                tensorboard_.check()
        with readable_errors("--techniques"):
            chosen = techniques and experiments_.find_techniques(experiment, techniques)
        runner.use_every_core()
        folder = out or new_folder(name)
        with progress() as advance, readable_errors():
            runs = experiments_.run(
                experiment,
                folder / "records.jsonl",
                seeds=seeds,
                techniques=chosen,
                learning_rates=learning_rates,
                data_dir=data_dir,
                problems=problems and problems_.named(problems, data_dir),
                num_steps=num_steps,
                progress=advance,
            )
        _show(experiment, runs, folder)
        if tensorboard:
            place = tensorboard_.write(runs, folder)
            console.print(f"TensorBoard: tensorboard --logdir {place.resolve()}")

    return command


def _given(context: typer.Context) -> list[str]:
    """Returns the options that stand on the command line."""
    sources = {
        p.opts[0]: context.get_parameter_source(p.name or "") for p in context.command.params
    }
    return [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]


def _refuse_options(context):
    """An option before the command belongs to none, and would be lost."""
    given = _given(context)
    if given:
        raise typer.BadParameter(
            f"{', '.join(given)} must follow the command: python -m benchmarks "
            f"{context.invoked_subcommand} {given[0]} ..."
        )


def _show(experiment, runs, folder):
    print_table(experiment.question, *report.cells(experiment, runs))
    console.print(experiment.headline(runs), highlight=False)
    path = report.write(experiment, runs, folder)
    console.print(f"\nreport: {path.resolve()}\nrecords: {(folder / 'records.jsonl').resolve()}")


app.callback(invoke_without_command=True)(_command(MAIN, options.choose_techniques()))
for _name, _experiment in EXPERIMENTS.items():
    app.command(_name, help=_experiment.question)(
        _command(_name, options.choose_techniques(_experiment))
    )


@app.command("flows", help=flows.EXPERIMENT.question)
def flow_figures(out: options.Out = None) -> None:
    folder = out or new_folder("flows")
    with progress() as advance, readable_errors():
        runs = flows.run(folder / "records.jsonl", progress=advance)
    _show(flows.EXPERIMENT, runs, folder)


def _measure(kind: str, measure: Callable[..., list], folder: Path, *args: Any, **settings: Any):
    """Measures one of `costs.COSTS`, prints it and writes it into a folder."""
    with readable_errors(), console.status("") as status:
        found = measure(*args, **settings, progress=status.update)
    print_table(costs.COSTS[kind].headline(found), *costs.COSTS[kind].cells(found))
    console.print(f"records: {costs.write(kind, found, folder).resolve()}")


@app.command("steps", help="What a step costs beside a plain gradient step.")
def step_costs(
    context: typer.Context,
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
    ] = elementwise.SIZE,
    out: options.CostsOut = None,
) -> None:
    folder = out or new_folder("steps")
    of_the_other = ("--techniques", "--batch-size", "--widths") if without_model else ("--size",)
    if lost := [name for name in of_the_other if name in _given(context)]:
        verb = "goes without" if without_model else "goes with"
        raise typer.BadParameter(f"{', '.join(lost)} {verb} --elementwise.")
    if without_model:
        _measure("elementwise", elementwise.measure, folder, size=size, rounds=rounds)
        return
    with readable_errors("--techniques"):
        chosen = named(techniques or steps.DEFAULT)
    settings = {"widths": widths, "batch_size": batch_size, "rounds": rounds}
    _measure("steps", steps.measure, folder, chosen, **settings)


@app.command("decay-costs", help="What a decay of the weights' norms costs beside a plain step.")
def norm_decay_costs(
    rounds: options.Rounds = 9,
    batch_size: options.BatchSize = BATCH_SIZE,
    widths: options.Widths = DEFAULT_WIDTHS,
    out: options.CostsOut = None,
) -> None:
    folder = out or new_folder("decay-costs")
    settings = {"widths": widths, "batch_size": batch_size, "rounds": rounds}
    _measure("decay_costs", decay_costs.measure, folder, **settings)


@app.command("sweep-speed", help="Time a sweep as one program beside a Python loop over one step.")
def sweep_speed(
    runs: options.Numbers = "40,400",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of a run.")] = 20,
    loop_runs: Annotated[
        int | None, typer.Option(min=1, help="Time the loop on so many runs and scale its time up.")
    ] = None,
    out: options.CostsOut = None,
) -> None:
    runner.use_every_core()
    folder = out or new_folder("sweep-speed")
    _measure("sweep_speed", sweep_speed_.measure, folder, runs, epochs=epochs, loop_runs=loop_runs)


@app.command("download", help="Fetch the public data files: mnist, libsvm, text, or all of them.")
def download(
    what: Annotated[str, typer.Argument(metavar="FOLDER")] = "all",
    data_dir: Annotated[
        Path, typer.Option(envvar="OPTAX_IGR_DATA", file_okay=False, help="Where to put them.")
    ] = Path("data"),
) -> None:
    folders = sorted({f.folder for f in data_.FILES.values()})
    if what not in ("all", *folders):
        raise typer.BadParameter(f"{what!r} is not one of all, {', '.join(folders)}.")
    with readable_errors():
        for file in data_.FILES.values():
            if what in ("all", file.folder):
                console.print(f"{data_.download(data_dir, file.name)}  {file.checksum}")


@app.command("pack", help="Copy records into the folder that RESULTS.md is written from.")
def pack(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME[.LABEL]", help="NAME one of " + ", ".join(results_.KINDS)),
    ],
    source: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            metavar="RECORDS",
            help="The .jsonl of a folder in results/.",
        ),
    ],
    folder: Annotated[Path, typer.Option(file_okay=False, help="Where to put them.")] = RECORDED,
) -> None:
    target = folder / f"{name}.jsonl.gz"
    with readable_errors():
        results_.read(source, results_.kind(target))
        records.pack(source, target)
    console.print(f"{target.resolve()}: {target.stat().st_size / 2**20:.2f} MiB")


@app.command("results", help="Write RESULTS.md from committed records.")
def results(
    folder: Annotated[
        Path,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Holds NAME[.LABEL].jsonl or .jsonl.gz, NAME one of "
            + ", ".join(results_.KINDS)
            + ".",
        ),
    ] = RECORDED,
    out: Annotated[Path, typer.Option(dir_okay=False, help="The file to write.")] = RECORDED.parent
    / "RESULTS.md",
) -> None:
    with readable_errors():
        results_.write(out, folder)
    console.print(f"{out.resolve()}")


@app.command(
    "diff",
    help="Compare two records.jsonl or .jsonl.gz; exit with 1 where a limit is passed, or a measure is absent.",
)
def diff(
    before: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The older records.")],
    after: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The newer ones.")],
    fail: options.Limits = None,
) -> None:
    limits = {limit.measure: limit for limit in fail or []}
    measures = list(limits) or list(compare.MEASURES)
    with readable_errors():
        first, second = records.read(before), records.read(after)
        for path, runs in ((before, first), (after, second)):
            if not runs:
                raise ValueError(f"{path} has no records.")
    found = compare.differences(first, second, measures)
    failed = [d for d in found if d.measure in limits and d.growth > limits[d.measure].growth]
    if found:
        print_table(f"{before} → {after}", *compare.cells(found, failed))
    for remark in compare.remarks(first, second):
        console.print(remark, highlight=False)
    absent = [measure for measure in limits if measure not in {d.measure for d in found}]
    if absent or not found:
        console.print(f"the two files have no {' and no '.join(absent) or 'run'} to compare")
    if failed or absent:
        raise typer.Exit(1)
