"""The table of scores on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from dyngen.report.cost_table import HEADINGS, cost_table
from dyngen.report.summary import by_variable
from dyngen.report.table import score_table


def score_tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """A rich table of scores for each variable, the best of each column in bold, and one of costs.

    Args:
        summary: As `summarise` gives it, perhaps with further keys.
    """
    for name, scores in by_variable(summary).items():
        headings, rows = score_table(scores, distances=False)  # eighty characters are few
        table = Table(*headings, title=name or None, box=None, collapse_padding=True)
        table.columns[0].no_wrap = True
        for column in table.columns[1:]:
            column.justify, column.min_width = "right", 5
        for row in rows:
            cells = (f"[bold green]{c.text}[/]" if c.best else c.text for c in row.cells)
            table.add_row(row.system, *cells)
        yield table
    if summary.get("costs"):
        table = Table(*HEADINGS, box=None, collapse_padding=True)
        for column in table.columns[1:]:
            column.justify = "right"
        for line in cost_table(summary["costs"]):
            table.add_row(*line)
        yield table
