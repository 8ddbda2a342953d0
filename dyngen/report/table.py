"""Tables: those of scores, the same rows for the terminal and for the report, and Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Number = float | None


@dataclass(frozen=True)
class Column:
    """One score.

    Args:
        title: what stands above it, with the direction in which it is better.
        cost: what to make small: the cell with the least cost is the best of its column.
        read: the score of a system, from a summary of one variable.
    """

    title: str
    cost: Callable[[float], float]
    read: Callable[[Mapping[str, Any], str], Number]


@dataclass(frozen=True)
class Cell:
    """A number as text, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A system and its cells, one per column."""

    system: str
    cells: tuple[Cell, ...]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "---") -> str:
    """A table in Markdown, without the end of its last line.

    Args:
        head: names of the columns.
        rows: cells.
        rule: below every name but the first: `---:` aligns them to the right.
    """
    lines = [head, ["---", *[rule] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def score_table(
    summary: Mapping[str, Any], leads: Sequence[int] = (1, 2, 5, 10), distances: bool = True
) -> tuple[list[str], list[Row]]:
    """Headings and rows of the scores of one variable.

    ↓ heads a score that should be small, →1 one that should be one. The best of each column is
    marked, to the digits shown, among the systems that forecast: persistence and climatology count
    for CRPS alone, as their variability is the truth's own.

    Args:
        summary: of one variable, as :func:`~dyngen.report.summary.summarise` gives it.
        leads: for CRPS, in steps; those that were not forecast are left out.
        distances: whether with columns of feature distances, whose names are long.

    Returns: titles of the columns, the first being the system's; and rows, best CRPS first.
    """
    crps = summary["crps"]
    known = {int(lead) for scores in crps.values() for lead in scores}
    columns = _columns(summary, [lead for lead in leads if lead in known], distances)
    first = str(min(known, default=1))
    systems = sorted(crps, key=lambda s: _or_inf(crps[s].get(first)))
    free = [s for s in summary.get("free_run", {}) if s not in systems]
    rivals = [s for s in [*systems, *free] if s not in ("persistence", "climatology")]
    rows: dict[str, list[Cell]] = {"truth": [], **{s: [] for s in [*systems, *free]}}
    for column in columns:
        values = {system: column.read(summary, system) for system in rows}
        contest = systems if column.title.startswith("CRPS") else rivals
        shown = {s: _cost(column, values[s]) for s in contest}
        best = min(shown.values(), default=math.inf)
        for system, cells in rows.items():
            won = len(contest) > 1 and shown.get(system, math.inf) == best < math.inf
            cells.append(Cell(_text(values[system]), won))
    order = [*systems, *free, "truth"]
    return ["system", *(c.title for c in columns)], [Row(s, tuple(rows[s])) for s in order]


def _columns(summary: Mapping[str, Any], leads: Sequence[int], distances: bool) -> list[Column]:
    target = summary["autocorrelation"].get("truth", {}).get("1")

    def at(score: str, step: int) -> Callable[[Mapping[str, Any], str], Number]:
        return lambda s, system: s[score].get(system, {}).get(str(step))

    def of(score: str) -> Callable[[Mapping[str, Any], str], Number]:
        return lambda s, system: s[score].get(system)

    def free(score: str) -> Callable[[Mapping[str, Any], str], Number]:
        return lambda s, system: s["free_run"].get(system, {}).get(score)

    def from_one(value: float) -> float:
        return abs(math.log(value)) if value > 0 else math.inf

    def from_truth(value: float) -> float:
        return abs(value - target) if target is not None else math.inf

    columns = [Column(f"CRPS {lead} ↓", abs, at("crps", lead)) for lead in leads]
    if leads:
        columns.append(
            Column(f"spread / skill {leads[0]} →1", from_one, at("spread_skill", leads[0]))
        )
    columns += [
        Column("lag-1 corr. →truth", from_truth, at("autocorrelation", 1)),
        Column("std ratio →1", from_one, of("std_ratio")),
        Column("LSD dB ↓", abs, of("log_spectral_distance_db")),
    ]
    known = summary.get("feature_distances", {}) if distances else {}
    for kind in ("FID", "FVD", "free_FVD"):
        name = next((n for n in known if n.startswith(f"{kind}_") and _is_plain(n)), None)
        if name is not None:
            columns.append(_distance_column(name))
    if summary.get("free_run"):
        columns += [
            Column("free run: std →1", from_one, free("end_std_ratio")),
            Column("free run: LSD dB ↓", abs, free("end_log_spectral_distance_db")),
        ]
    return columns


def _is_plain(name: str) -> bool:
    """Whether it is a distance of all films together, not a curve nor what comes beside it."""
    return not name.endswith(("_floor", "_spread", "_lead"))


def _distance_column(name: str) -> Column:
    """A feature distance under its full name, for it says nothing without its features."""
    kind, _, features = name.removeprefix("free_").partition("_")
    run = "free run: " if name.startswith("free_") else ""
    return Column(
        f"{run}{kind} {features} ↓",
        abs,
        lambda summary, system: summary["feature_distances"][name].get(system),
    )


def _cost(column: Column, value: Number) -> float:
    """Cost of the number as shown, so that what reads the same is equally good."""
    return math.inf if value is None else column.cost(float(_text(value)))


def _text(value: Number) -> str:
    """Three significant digits, without an exponent where it can be helped."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        digits = 3 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{min(digits, 3)}f}"
    return f"{value:.2e}"


def _or_inf(value: Number) -> float:
    return math.inf if value is None else value
