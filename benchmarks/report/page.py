"""The page: one HTML file with headline, figures and table, that opens anywhere, offline."""

import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import vl_convert

from benchmarks.engine.table import Table
from benchmarks.report import figures, tables
from benchmarks.report.presentation import Figure, Presentation

_TEMPLATES = Path(__file__).parent / "templates"


def write(shown: Presentation, runs: Table, folder: Path) -> Path:
    """Writes the PNGs and `report.html` into a folder; returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = shown.figures(runs)
    for figure in drawn:
        figures.save_png(figure.chart, folder / f"{figure.name}.png")
    path = folder / "report.html"
    path.write_text(render(shown, runs, drawn), encoding="utf-8")
    return path


def render(shown: Presentation, runs: Table, drawn: Sequence[Figure]) -> str:
    """Renders the page: the headline, the figures, the table, and how to repeat it."""
    head, rows = tables.cells(shown, runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        # A name that the template does not have is an error, not a hole in the page.
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html").render(
        experiment=shown,
        headline=shown.headline(runs),
        figures=[(f, _script_json(figures.specification(f.chart))) for f in drawn],
        head=head,
        about_columns=list(zip(head[-len(shown.columns) :], shown.columns, strict=True)),
        rows=rows,
        settings=sorted(runs["about"].unique()),
        num_steps=sorted(runs["num_steps"].unique()),
        seeds=runs["seed"].nunique(),
        environment=runs["environment"].iloc[-1],
        # The page carries the library that draws it: it opens without a network.
        library=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
    )


def _script_json(specification):
    # `</script>` inside a string would end the script that holds it.
    return json.dumps(specification).replace("</", "<\\/")
