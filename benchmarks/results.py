"""`RESULTS.md` from committed records: every number in it is computed, none is typed."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import decay_costs, elementwise, records, report, steps, sweep_speed
from benchmarks.decay_costs import DecayCost
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


class _Costs(NamedTuple):
    """Measurements that are no runs: the type of one, the table, its title, and what is said above it."""

    row: type
    cells: Callable[[Any], tuple[list[str], list[list[str]]]]
    title: str
    text: Callable[[Any], str]


_COSTS = {
    "steps": _Costs(
        StepCost,
        steps.cells,
        "What does a step cost?",
        lambda costs: (
            "Beside a plain gradient step: time is the median ratio over rounds in which the steps take turns; FLOPs "
            "and memory are the compiler's own figures (≥: a loop, counted for one turn); gradients and "
            "Hessian-vector products are counted."
        ),
    ),
    "elementwise": _Costs(
        ElementwiseCost,
        elementwise.cells,
        "What does a step cost where memory traffic is the limit?",
        lambda costs: (
            f"{costs[0].size:,} parameters in float32 with donated buffers and a given gradient: time is the median "
            "ratio to Adam, or to a softmax of the same array, over rounds in which the steps take turns; passes are "
            "the bytes that the kernels read and write, temporaries and state copies the bytes they take, all / those "
            "of the parameters."
        ),
    ),
    "decay_costs": _Costs(
        DecayCost,
        decay_costs.cells,
        "What does a decay of the norms cost?",
        lambda costs: (
            "Beside a plain step of a fully connected network: time is the median ratio over rounds in which the "
            "steps take turns, the mean from one refresh to the next; FLOPs are the compiler's own figures, and the "
            "formula's are those of the step and of 2t products of 2mn² for each layer."
        ),
    ),
    "sweep_speed": _Costs(
        SweepSpeed,
        sweep_speed.cells,
        "How fast is a sweep?",
        lambda found: (
            f"The same runs as one compiled program and as a Python loop over one jitted step, {found[0].steps} steps "
            f"each; their final losses differ by at most {max(f.largest_difference for f in found):.0e} relatively."
        ),
    ),
}
KINDS = (*_EXPERIMENTS, *_COSTS)


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
    if name in _COSTS:
        return _costs(_COSTS[name], rows, shown)
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


def _costs(costs, rows, shown):
    names = costs.row.__annotations__
    found = [costs.row(**{k: x for k, x in row.items() if k in names}) for row in rows]
    environments = (row["environment"] for row in rows)
    return _section(costs.title, costs.text(found), costs.cells(found), "", shown, environments)


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
