"""`RESULTS.md` from committed records: every number in it is computed, none is typed."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import decay_costs, elementwise, records, report, steps, sweep_speed
from benchmarks.elementwise import ElementwiseCost
from benchmarks.experiment import Experiment
from benchmarks.experiments import EXPERIMENTS, flows
from benchmarks.records import Record
from benchmarks.steps import StepCost
from benchmarks.sweep_speed import SweepSpeed

HEAD = """# Results

Written by `python -m benchmarks results`; the numbers come from the records that are named with each table.
"""

# The rows beyond which a table is folded, so that the reader finds the next answer.
LONGEST_TABLE = 30

# In the order of the file; flows have a command of their own, since they are no runs of the training loop.
_EXPERIMENTS = EXPERIMENTS | {flows.EXPERIMENT.name: flows.EXPERIMENT}
KINDS = (*_EXPERIMENTS, "steps", "elementwise", "decay_costs", "sweep_speed")


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


def section(name: str, source: Path, shown: str) -> str:
    """Returns the section of one file of records as Markdown."""
    rows = records.rows(source)
    if not rows:
        raise ValueError(f"{source} has no records.")
    if name == "steps":
        return _steps(rows, shown)
    if name == "elementwise":
        return _elementwise(rows, shown)
    if name == "decay_costs":
        return _decay_costs(rows, shown)
    if name == "sweep_speed":
        return _sweep_speed(rows, shown)
    return _experiment(_EXPERIMENTS[name], records.read(source), shown)


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


def _steps(rows, shown):
    fields = {field.name for field in dataclasses.fields(StepCost)}
    costs = [StepCost(**{k: x for k, x in row.items() if k in fields}) for row in rows]
    return _section(
        "What does a step cost?",
        "Beside a plain gradient step: time is the median ratio over rounds in which the steps take turns; FLOPs and "
        "memory are the compiler's own figures (≥: a loop, counted for one turn); gradients and Hessian-vector "
        "products are counted.",
        steps.cells(costs),
        "",
        shown,
        (row["environment"] for row in rows),
    )


def _elementwise(rows, shown):
    fields = {field.name for field in dataclasses.fields(ElementwiseCost)}
    costs = [ElementwiseCost(**{k: x for k, x in row.items() if k in fields}) for row in rows]
    return _section(
        "What does a step cost where memory traffic is the limit?",
        f"{costs[0].size:,} parameters in float32 with donated buffers and a given gradient: time is the median ratio "
        "to Adam, or to a softmax of the same array, over rounds in which the steps take turns; passes are the bytes "
        "that the kernels read and write, temporaries and state copies the bytes they take, all / those of the "
        "parameters.",
        elementwise.cells(costs),
        "",
        shown,
        (row["environment"] for row in rows),
    )


def _decay_costs(rows, shown):
    fields = {field.name for field in dataclasses.fields(decay_costs.DecayCost)}
    costs = [decay_costs.DecayCost(**{k: row[k] for k in fields}) for row in rows]
    return _section(
        "What does a decay of the norms cost?",
        "Beside a plain step of a fully connected network: time is the median ratio over rounds in which the steps "
        "take turns, the mean from one refresh to the next; FLOPs are the compiler's own figures, and the formula's "
        "are those of the step and of 2t products of 2mn² for each layer.",
        decay_costs.cells(costs),
        "",
        shown,
        (row["environment"] for row in rows),
    )


def _sweep_speed(rows, shown):
    found = [SweepSpeed(**{k: row[k] for k in SweepSpeed._fields}) for row in rows]
    worst = max(f.largest_difference for f in found)
    return _section(
        "How fast is a sweep?",
        f"The same runs as one compiled program and as a Python loop over one jitted step, {found[0].steps} steps "
        f"each; their final losses differ by at most {worst:.0e} relatively.",
        sweep_speed.cells(found),
        "",
        shown,
        (row["environment"] for row in rows),
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
