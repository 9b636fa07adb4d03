"""The table of a presentation as text, and as tables for a terminal."""

import textwrap
from collections.abc import Sequence

import rich.box
import rich.table

from benchmarks.engine.table import RUN, TECHNIQUE, Table, groups, setting_text
from benchmarks.report.presentation import Presentation

# What names a row stands in every block of a table that is too wide for the terminal.
_NAMES = ("problem", "technique", "rate")


def cells(shown: Presentation, runs: Table) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the table."""
    # A column that says the same in every row says nothing.
    several = runs["problem"].nunique() > 1
    head = ["problem"] if several else []
    head += [shown.technique_title] if shown.technique_title else []
    with_setting = shown.row_per_setting and shown.setting_title
    head += [shown.setting_title] if shown.setting_title and with_setting else []
    rows = []
    for (problem, technique, *_), group in groups(
        runs, RUN if shown.row_per_setting else TECHNIQUE
    ).items():
        row = [problem] if several else []
        row += [technique] if shown.technique_title else []
        row += [setting_text(group.iloc[0])] if with_setting else []
        rows.append(row + [column.cell(group, runs) for column in shown.columns])
    return head + [column.title for column in shown.columns], rows


def terminal_tables(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> list[rich.table.Table]:
    """Makes tables for a terminal of this width: what does not fit beside the names goes below."""
    names = 0
    while names < len(head) and head[names] in _NAMES:
        names += 1
    # As rich would set them, so that a block is full before the next one begins.
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
