"""The table on the terminal, and the report: one file that opens anywhere, offline."""

import json
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

import jinja2
import rich.box
import rich.table
import vl_convert

from benchmarks.engine import records
from benchmarks.engine.records import Record
from benchmarks.experiments.experiment import Column, Experiment, Figure
from benchmarks.report import figures

_TEMPLATES = Path(__file__).parent / "templates"


def cells(experiment: Experiment, runs: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the experiment's table."""
    several = len({r.problem for r in runs}) > 1
    head = (["problem"] if several else []) + ["technique"]
    head += ["rate"] if experiment.row_per_rate else []
    grouped: dict[tuple, list[Record]] = {}
    for key, group in records.groups(runs).items():
        grouped.setdefault(key if experiment.row_per_rate else key[:2], []).extend(group)
    rows = []
    for (problem, technique, *rate), group in grouped.items():
        row = ([problem] if several else []) + [technique, *(f"{x:.3g}" for x in rate)]
        rows.append(row + [column.cell(group, list(runs)) for column in experiment.columns])
    return head + [column.title for column in experiment.columns], rows


def tables(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> list[rich.table.Table]:
    """Makes tables for a terminal of this width: what does not fit beside the names goes below."""
    names = 0
    while names < len(head) and head[names] in ("problem", "technique", "rate"):
        names += 1
    widths = [
        max(len(text) for text in [*head[i].split(), *(row[i] for row in rows)]) + 3
        for i in range(len(head))
    ]
    blocks: list[list[int]] = [[]]
    for i in range(names, len(head)):
        if blocks[-1] and sum(widths[j] for j in [*range(names), *blocks[-1], i]) > width:
            blocks.append([])
        blocks[-1].append(i)
    made = []
    for block in blocks:
        table = rich.table.Table(
            title=None if made else title, box=rich.box.SIMPLE_HEAD, title_justify="left"
        )
        for i in (*range(names), *block):
            left = head[i] in ("problem", "technique")
            title_lines = textwrap.fill(head[i], widths[i] - 3)
            table.add_column(title_lines, justify="left" if left else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(row[i] for i in (*range(names), *block)))
        made.append(table)
    return made


def write(experiment: Experiment, runs: Sequence[Record], folder: Path) -> Path:
    """Writes the PNGs and `report.html` into a folder; returns the path of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = experiment.figures(list(runs))
    for figure in drawn:
        figures.save_png(figure.chart, folder / f"{figure.name}.png")
    path = folder / "report.html"
    path.write_text(html(experiment, runs, drawn), encoding="utf-8")
    return path


def html(experiment: Experiment, runs: Sequence[Record], drawn: Sequence[Figure]) -> str:
    """Renders the report: the headline, the figures, the table, and how to repeat it."""
    head, rows = cells(experiment, runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html").render(
        experiment=experiment,
        headline=experiment.headline(list(runs)),
        figures=[(f, _script_json(figures.specification(f.chart))) for f in drawn],
        head=head,
        about_columns=list(zip(head[-len(experiment.columns) :], experiment.columns, strict=True)),
        rows=rows,
        settings=sorted({r.settings for r in runs}),
        num_steps=sorted({r.num_steps for r in runs}),
        seeds=len({r.seed for r in runs}),
        environment=runs[-1].environment,
        library=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
    )


def mean_column(title: str, about: str, name: str, spec: str) -> Column:
    """Makes a column of the mean of a final measure over the seeds."""
    return Column(
        title,
        about,
        lambda group, runs: format(statistics.fmean(r.final[name] for r in group), spec),
    )


def _script_json(specification):
    # `</script>` inside a string would end the script that holds it.
    return json.dumps(specification).replace("</", "<\\/")
