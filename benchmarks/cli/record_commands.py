"""The commands on files: fetch data, keep records, write RESULTS.md from them, compare two of them."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli import options
from benchmarks.cli.terminal import console, print_table, readable_errors, writable
from benchmarks.engine import records
from benchmarks.engine.table import table
from benchmarks.experiments import PRESENTATIONS
from benchmarks.problems import data
from benchmarks.report import compare, markdown

RECORDED = Path(__file__).parents[1] / "recorded"


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(
        "download", help="Fetch the public data files: mnist, libsvm, text, or all of them."
    )(_download)
    app.command("pack", help="Copy records into the folder that RESULTS.md is written from.")(_pack)
    app.command("results", help="Write RESULTS.md from committed records.")(_results)
    app.command(
        "diff",
        help="Compare two records.jsonl or .jsonl.gz; exit with 1 where a limit is passed, or a measure is absent.",
    )(_diff)


def _download(
    what: Annotated[str, typer.Argument(metavar="FOLDER")] = "all",
    data_dir: Annotated[
        Path, typer.Option(envvar="OPTAX_IGR_DATA", file_okay=False, help="Where to put them.")
    ] = Path("data"),
) -> None:
    folders = sorted({f.folder for f in data.FILES.values()})
    if what not in ("all", *folders):
        raise typer.BadParameter(f"{what!r} is not one of all, {', '.join(folders)}.")
    writable(data_dir)
    with readable_errors():
        for file in data.FILES.values():
            if what in ("all", file.folder):
                console.print(f"{data.download(data_dir, file.name)}  {file.checksum}")


def _pack(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME[.LABEL]", help="NAME one of " + ", ".join(PRESENTATIONS)),
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
        # What cannot be shown is not packed: the next `results` would fail on it.
        markdown.read(source, markdown.shown_by(target, PRESENTATIONS))
        writable(folder)
        records.pack(source, target)
    console.print(f"{target.resolve()}: {target.stat().st_size / 2**20:.2f} MiB")


def _results(
    folder: Annotated[
        Path,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Holds NAME[.LABEL].jsonl or .jsonl.gz, NAME one of "
            + ", ".join(PRESENTATIONS)
            + ".",
        ),
    ] = RECORDED,
    out: Annotated[Path, typer.Option(dir_okay=False, help="The file to write.")] = RECORDED.parent
    / "RESULTS.md",
) -> None:
    writable(out.parent)
    with readable_errors():
        markdown.write(out, folder, PRESENTATIONS)
    console.print(f"{out.resolve()}")


def _diff(
    before: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The older records.")],
    after: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The newer ones.")],
    fail: options.Limits = None,
) -> None:
    limits = {limit.measure: limit for limit in fail or []}
    measures = list(limits) or list(compare.MEASURES)
    with readable_errors():
        first, second = (table(records.read(path)) for path in (before, after))
        for path, runs in ((before, first), (after, second)):
            if runs.empty:
                raise ValueError(f"{path} has no records.")
    found = compare.differences(first, second, measures)
    failed = [d for d in found if d.measure in limits and d.growth > limits[d.measure].growth]
    if found:
        print_table(f"{before} → {after}", *compare.cells(found, failed))
    for remark in compare.remarks(first, second):
        console.print(remark, highlight=False)
    # A limit on what is not there must not pass in silence.
    absent = [measure for measure in limits if measure not in {d.measure for d in found}]
    if absent or not found:
        console.print(f"the two files have no {' and no '.join(absent) or 'run'} to compare")
    if failed or absent:
        raise typer.Exit(1)
