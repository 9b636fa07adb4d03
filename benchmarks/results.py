"""`RESULTS.md` from committed records: every number in it is computed, none is typed."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import records, report
from benchmarks.experiment import Experiment
from benchmarks.records import Record

HEAD = """# Results

Written by `python -m benchmarks results`; the numbers come from the records that are named with each table.
"""


def section(experiment: Experiment, runs: Sequence[Record], source: str) -> str:
    """Returns an experiment's headline, table and machine as Markdown."""
    head, rows = report.cells(experiment, runs)
    lines = [f"## {experiment.question}", "", experiment.headline(list(runs)), ""]
    lines += [_row(head), _row("---" for _ in head), *map(_row, rows), ""]
    settings = sorted({r.settings for r in runs})
    machine = sorted({_machine(r) for r in runs})
    seeds = len({r.seed for r in runs})
    lines += [f"{'; '.join(settings)}. {seeds} seeds. Records: `{source}`. {' '.join(machine)}", ""]
    return "\n".join(lines)


def write(path: Path, sources: Sequence[tuple[Experiment, Path]]) -> None:
    """Writes the sections of all sources to a file."""
    sections = [section(e, records.read(source), source.as_posix()) for e, source in sources]
    path.write_text("\n".join([HEAD, *sections]), encoding="utf-8")


def _row(cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _machine(record):
    found = record.environment
    versions = ", ".join(f"{name} {found[name]}" for name in records.PACKAGES if found.get(name))
    return (
        f"{found.get('machine')}, {found.get('device')}; {versions}; commit {found.get('commit')}."
    )
