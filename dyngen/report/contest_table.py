"""What a contest came to, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dyngen.report.cost_table import HEADINGS, cost_table
from dyngen.report.summary import by_variable
from dyngen.report.table import markdown_table

LEADS = ("1", "2", "5", "10", "20")
OF_FREE_RUN = {
    "steps": "steps",
    "std ratio": "std_ratio",
    "in the last fifth": "end_std_ratio",
    "LSD (dB)": "log_spectral_distance_db",
    "in the last fifth (dB)": "end_log_spectral_distance_db",
    "bias": "bias",
    "drift of the mean per 1,000 steps": "mean_drift",
}


def contest_markdown(
    title: str,
    summary: Mapping[str, Any],
    costs: Mapping[str, Any],
    figures: Mapping[str, Sequence[str]],
) -> str:
    """Tables of scores and free runs and the figures of each variable, then costs.

    Args:
        title: Heading of the page.
        summary: What `dyngen contest` writes as JSON; ratios are to its first system.
        costs: By system, as `dyngen.report.cost_table` takes them.
        figures: Files beside the page, by variable; a single variable is called "".
    """
    seeds, seconds = len(summary["seed"]), sum(summary["seconds"].values())
    parts = [
        f"# {title}",
        f"`{summary['command']}`: {seeds} training{'s' if seeds > 1 else ''} of each model, "
        f"{seconds / 60:.0f} minutes on {summary['machine']['processor']}.",
    ]
    for variable, of in by_variable(summary).items():
        parts += [f"## {variable}"] if variable else []
        parts += _scores(of["systems"])
        files = figures.get(variable, ())
        parts += [f"![{name.rpartition('.')[0].replace('_', ' ')}]({name})" for name in files]
    if costs:
        head, *rows = [list(HEADINGS), *cost_table(costs)]
        parts += ["Costs:", markdown_table(head, rows)]
    return "\n\n".join(parts) + "\n"


def _scores(systems: Mapping[str, Any]) -> list[str]:
    """Tables of one variable, each with a line above it."""
    first = next(iter(systems))
    leads = [lead for lead in LEADS if lead in systems[first]["crps"]]
    parts = [
        "Fair CRPS by lead:",
        _rows(
            ["system", *leads, "spread-skill at 1", f"at {leads[-1]}", "std ratio", "LSD (dB)"],
            systems,
            lambda of: [
                *(_digits(of["crps"].get(lead)) for lead in leads),
                _digits(of.get("spread_skill", {}).get("1")),
                _digits(of.get("spread_skill", {}).get(leads[-1])),
                _digits(of.get("std_ratio")),
                _digits(of.get("log_spectral_distance_db")),
            ],
        ),
        f"CRPS over that of {first}, with 95 % intervals over initial states:",
        _rows(
            ["system", *leads],
            {name: of for name, of in systems.items() if "crps_ratio" in of and name != first},
            lambda of: [_ratio(of, lead) for lead in leads],
        ),
    ]
    runs = {name: of["free_run"] for name, of in systems.items() if "free_run" in of}
    return parts + (
        ["Free runs:", _rows(["system", *OF_FREE_RUN], runs, _free_run)] if runs else []
    )


def _free_run(of: Mapping[str, Any]) -> list[str]:
    values = {key: of.get(key) for key in OF_FREE_RUN.values()}
    if values["mean_drift"] is not None:
        values["mean_drift"] *= 1000
    steps = values.pop("steps")
    return ["–" if steps is None else f"{steps:.0f}", *(_digits(v) for v in values.values())]


def _ratio(of: Mapping[str, Any], lead: str) -> str:
    value = of["crps_ratio"].get(lead)
    ends = of.get("crps_ratio_interval", {})
    low, high = (ends.get(end, {}).get(lead) for end in ("low", "high"))
    if value is None or low is None or high is None:
        return _digits(value)
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _rows(
    head: Sequence[str],
    systems: Mapping[str, Any],
    cells: Callable[[Mapping[str, Any]], list[str]],
) -> str:
    named = [[name.replace("_", " "), *cells(of)] for name, of in systems.items()]
    return markdown_table(head, named)
