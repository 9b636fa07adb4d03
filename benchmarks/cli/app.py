"""The command line, put together: every experiment is a command, beside those of costs, records and data."""

import typer

from benchmarks.cli import cost_commands, experiment_commands, record_commands

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_show_locals=False,
    help="Compare gradient transformations. Without a command it runs `penalties`, the main "
    "comparison: five seeds each on scikit-learn's digits, in under two minutes on two cores.",
)

for _group in (experiment_commands, cost_commands, record_commands):
    _group.add_to(app)
