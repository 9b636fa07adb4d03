"""`RESULTS.md` from committed records: every number in it is computed, none is typed."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine import records
from benchmarks.engine.records import Record
from benchmarks.experiments import EXPERIMENTS, costs, flows
from benchmarks.experiments.costs import COSTS
from benchmarks.experiments.experiment import Experiment
from benchmarks.report import page as report

HEAD = """# Results

Written by `python -m benchmarks results`; the numbers come from the records that are named with each table.
"""

# The rows beyond which a table is folded, so that the reader finds the next answer.
LONGEST_TABLE = 30

# Flows have a command of their own, since they are no runs of the training loop.
_EXPERIMENTS = EXPERIMENTS | {flows.EXPERIMENT.name: flows.EXPERIMENT}

# In the order of the file.
KINDS = (*_EXPERIMENTS, *COSTS)


def kind(path: Path) -> str:
    """Returns what `NAME[.LABEL].jsonl[.gz]` holds: `steps.gpu.jsonl` holds the costs of steps.

    Raises:
      ValueError: listing the names, where this is none of them.
    """
    name = path.name.removesuffix(".gz").removesuffix(".jsonl").split(".")[0]
    if name not in KINDS:
        raise ValueError(f"{path.name} names none of {', '.join(KINDS)}.")
    return name


def write(path: Path, folder: Path) -> None:
    """Writes a section for every file of records in a folder.

    Raises:
      ValueError: where the folder has no records, a file's name says no experiment, or a file has no run.
    """
    sources = [p for ending in ("jsonl", "jsonl.gz") for p in folder.glob(f"*.{ending}")]
    if not sources:
        raise ValueError(f"{folder} has no .jsonl and no .jsonl.gz.")
    sources.sort(key=lambda p: (KINDS.index(kind(p)), p.name))
    sections = [section(kind(p), p, _shown(p, path.parent)) for p in sources]
    path.write_text("\n".join([HEAD, *sections]), encoding="utf-8")


def read(path: Path, name: str) -> list[Any]:
    """Reads the records or the costs of a file, by the name of what it holds.

    Raises:
      ValueError: where it holds something else, or nothing.
    """
    found = costs.read(path, name) if name in COSTS else records.read(path)
    if not found:
        raise ValueError(f"{path} has no records.")
    return found


def section(name: str, source: Path, shown: str) -> str:
    """Returns the section of one file of records as Markdown."""
    found = read(source, name)
    if name in COSTS:
        environments = (row["environment"] for row in records.rows(source))
        kind = COSTS[name]
        return _section(kind.title, kind.text(found), kind.cells(found), "", shown, environments)
    return _experiment(_EXPERIMENTS[name], found, shown)


def _experiment(experiment: Experiment, runs: Sequence[Record], shown: str) -> str:
    seeds = len({r.seed for r in runs})
    about = "; ".join(sorted({r.settings for r in runs}))
    return _section(
        experiment.question,
        experiment.headline(list(runs)),
        report.cells(experiment, runs),
        f"{about}. {seeds} seed{'s' if seeds > 1 else ''}.",
        shown,
        (r.environment for r in runs),
    )


def _section(
    title: str,
    text: str,
    table: tuple[list[str], list[list[str]]],
    about: str,
    shown: str,
    environments: Iterable[dict[str, Any]],
) -> str:
    head, rows = table
    machines = " ".join(sorted({_machine(found) for found in environments}))
    table_lines = [_row(head), _row("---" for _ in head), *map(_row, rows), ""]
    if len(rows) > LONGEST_TABLE:
        summary = f"<details><summary>The table, {len(rows)} rows</summary>"
        table_lines = [summary, "", *table_lines, "</details>", ""]
    lines = [f"## {title}", "", text, "", *table_lines]
    return "\n".join([*lines, f"{about} Records: `{shown}`. {machines}".strip(), ""])


def _shown(path, folder):
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _row(cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _machine(found):
    versions = ", ".join(f"{name} {found[name]}" for name in records.PACKAGES if found.get(name))
    return (
        f"{found.get('machine')}, {found.get('device')}; {versions}; commit {found.get('commit')}."
    )
