"""`RESULTS.md` from committed records: every number in it is computed, none is typed."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.engine import records
from benchmarks.engine.machine import PACKAGES
from benchmarks.engine.table import Table, is_measured, table
from benchmarks.report import tables
from benchmarks.report.presentation import Presentation

HEAD = """# Results

Written by `python -m benchmarks results`; the numbers come from the records that are named with each table.
"""

# The rows beyond which a table is folded, so that the reader finds the next answer.
LONGEST_TABLE = 30

Presentations = Mapping[str, Presentation]


def shown_by(path: Path, known: Presentations) -> Presentation:
    """Returns what shows `NAME[.LABEL].jsonl[.gz]`: `steps.gpu.jsonl` holds the costs of steps.

    Raises:
      ValueError: listing the names, where this is none of them.
    """
    name = path.name.removesuffix(".gz").removesuffix(".jsonl").split(".")[0]
    if name not in known:
        raise ValueError(f"{path.name} names none of {', '.join(known)}.")
    return known[name]


def read(path: Path, shown: Presentation) -> Table:
    """Reads the table of a file, for what is to be shown of it.

    Raises:
      ValueError: where it holds something else, or nothing.
    """
    found = records.read(path)
    if not found:
        raise ValueError(f"{path} has no records.")
    runs = table(found)
    for name in shown.needs:
        if not is_measured(runs, name):
            raise ValueError(f"{path} holds no records of {shown.name}: it has no {name}.")
    return runs


def write(path: Path, folder: Path, known: Presentations) -> None:
    """Writes a section for every file of records in a folder, in the order of the presentations.

    Raises:
      ValueError: where the folder has no records, a file's name is that of no presentation, or a file has no run.
    """
    sources = [p for ending in ("jsonl", "jsonl.gz") for p in folder.glob(f"*.{ending}")]
    if not sources:
        raise ValueError(f"{folder} has no .jsonl and no .jsonl.gz.")
    # The order of the file is that of the questions, not of the file names.
    names = list(known)
    sources.sort(key=lambda p: (names.index(shown_by(p, known).name), p.name))
    sections = []
    for source in sources:
        shown = shown_by(source, known)
        sections.append(section(shown, read(source, shown), _shown_path(source, path.parent)))
    path.write_text("\n".join([HEAD, *sections]), encoding="utf-8")


def section(shown: Presentation, runs: Table, source: str) -> str:
    """Returns the section of one table as Markdown; `source` is the path that it names."""
    head, rows = tables.cells(shown, runs)
    lines = [_row(head), _row("---" for _ in head), *map(_row, rows), ""]
    if len(rows) > LONGEST_TABLE:
        summary = f"<details><summary>The table, {len(rows)} rows</summary>"
        lines = [summary, "", *lines, "</details>", ""]
    machines = " ".join(sorted({_machine(found) for found in runs["environment"]}))
    lines = [f"## {shown.question}", "", shown.headline(runs), "", *lines]
    return "\n".join([*lines, f"{_about(runs)} Records: `{source}`. {machines}".strip(), ""])


def _about(runs):
    # Costs may have neither words nor seeds.
    words = "; ".join(sorted(x for x in runs["about"].unique() if x))
    seeds = runs["seed"].nunique()
    counted = f"{seeds} seed{'s' if seeds > 1 else ''}." if seeds else ""
    return f"{words + '.' if words else ''} {counted}".strip()


def _shown_path(path, folder):
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _row(cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _machine(found):
    versions = ", ".join(f"{name} {found[name]}" for name in PACKAGES if found.get(name))
    return (
        f"{found.get('machine')}, {found.get('device')}; {versions}; commit {found.get('commit')}."
    )
