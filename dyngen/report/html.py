"""One self-contained page of scores: table, figures, moving fields, and where they come from.

Everything is inside the file: it opens without a network, from a disk or an attachment. Figures are
drawn as SVG whose few colours are variables of the page, so that they follow its light or dark.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import xarray as xr
from matplotlib.figure import Figure

from dyngen.report.cost_table import HEADINGS, cost_table
from dyngen.report.style import DARK_PAGE
from dyngen.report.summary import by_variable
from dyngen.report.table import score_table

CAPTIONS = {
    "fields": (
        "Fields",
        "One initial state: what came true, and the first member of each system, a few steps on.",
    ),
    "crps": (
        "Error of the ensemble",
        "Fair continuous ranked probability score by lead, with 95 % bootstrap intervals over "
        "initial states. Lower is better; a system above climatology is of no use.",
    ),
    "spread_skill": (
        "Spread against skill",
        "Spread of the ensemble over the error of its mean. At 1 it knows how wrong it is; below, "
        "it is too sure of itself.",
    ),
    "rank_histogram": (
        "Rank of the truth",
        "Where the truth falls among the members, all leads together. Flat is calibrated, a valley "
        "is too little spread, a slope is bias; p is the chance that a calibrated ensemble is as "
        "far from flat, initial states being independent.",
    ),
    "bias": ("Bias", "Mean error of the ensemble mean by lead."),
    "autocorrelation": (
        "Memory",
        "Correlation of frames a lag apart, beside that of the truth over the same windows: the "
        "time consistency that single frames cannot show.",
    ),
    "increments": (
        "Changes from frame to frame",
        "Distribution of what one step adds. Too wide is flicker, too narrow is freezing.",
    ),
    "spectrum": (
        "Spectrum",
        "Power by wavenumber, and its ratio to the truth's with the 3 dB lines.",
    ),
    "slices": (
        "Slices through time",
        "One row of the grid, step by step. Structures that live and move draw lines; frames that "
        "do not follow from each other draw noise.",
    ),
    "stability": (
        "Stability",
        "Standard deviation, mean and distance of the spectrum along the free run; shaded is the "
        "range of held-out runs of the truth.",
    ),
    "free_autocorrelation": (
        "Memory of the free run",
        "Correlation by lag, beside held-out truth.",
    ),
    "free_spectrum": ("Spectrum at the end of the free run", "Of its last fifth."),
    "free_values": ("Values in the free run", "Distribution of anomalies, tails included."),
    "energy_score": (
        "Error of whole fields",
        "Fair energy score by lead: the CRPS of a field as one vector, with 95 % intervals. Lower "
        "is better.",
    ),
    "variogram_score": (
        "How neighbours hang together",
        "Variogram score of order 1/2 over pairs of points 1 to 8 cells apart. It sees members "
        "that are right point by point and wrong together. Lower is better; compare ensembles of "
        "one size.",
    ),
    "spread_skill_by_scale": (
        "Spread against skill, by scale",
        "Their ratio by lead and band of wavenumbers (waves per longer side). White is calibrated, "
        "blue too sure of itself, red too doubtful.",
    ),
    "reliability": (
        "Reliability",
        "How often an event came, by how probable the ensemble said it was, all leads together; "
        "below, how often each probability was given. The diagonal is reliable, the dashed line "
        "the frequency of the event.",
    ),
    "roc": (
        "Telling events from others",
        "Hit rate against false alarm rate when warning from ever fewer members on, all leads "
        "together, and the area under the curve. The diagonal is no skill.",
    ),
    "brier_skill": (
        "Skill for events",
        "Brier skill score relative to the frequency of the event, by lead, with 95 % intervals. A "
        "small ensemble without skill lies a little below zero.",
    ),
    "fractions_skill": (
        "Events nearby",
        "Fractions skill score by lead, for ever larger squares of cells. Above the dashed line a "
        "forecast is better than the right number of events, evenly spread.",
    ),
    "waves": (
        "Waves in the forecasts",
        "Power by wavenumber (positive moves towards larger x) and frequency, and its ratio to the "
        "truth's. Below the truth, one half of its initial states against the other: what differs "
        "by chance.",
    ),
    "quantile_quantile": (
        "Quantiles beside quantiles",
        "Values of the free run, or else of the forecasts, against those of the truth; the names "
        "above are quantiles. On the diagonal the laws are equal, tails included.",
    ),
    "return_levels": (
        "Return levels",
        "The value exceeded at a point once in so many blocks: an extreme value law fitted by "
        "L-moments with 95 % intervals, and the block maxima themselves.",
    ),
    "free_waves": (
        "Waves in the free run",
        "Power by wavenumber (positive moves towards larger x) and frequency, and its ratio to "
        "held-out truth. Below the truth, half of its runs against the other half: what differs by "
        "chance.",
    ),
    "distances": (
        "Distances of features",
        "Fréchet (FID of frames, FVD of windows) and kernel distances (KID, with its spread) from "
        "held-out truth, by the features named. The black line is what independent samples of "
        "these sizes from one law would score.",
    ),
    "distance_lead": (
        "Distance of frames by lead",
        "FID of all members' frames at each lead. A model that decays rises.",
    ),
    "free_distance_start_1": (
        "Sliding-window distance of frames",
        "FID in windows of 30 frames along the free run. A model that decays rises; dotted is what "
        "independent samples of the truth would score.",
    ),
    "free_distance_start_16": (
        "Sliding-window distance of films",
        "FVD of windows of 16 frames along the free run: motion, not only frames.",
    ),
    "free_bias_map": ("Bias of the free run", "Its mean in time less that of held-out truth."),
}
WIDE = {"fields", "slices", "distances", "fractions_skill", "free_waves", "waves"}


def write_report(
    path: str | Path,
    scores: xr.Dataset,
    summary: Mapping[str, Any],
    figures: Mapping[str, Figure],
    animation: bytes | None = None,
    provenance: Mapping[str, Any] | None = None,
    title: str = "Right in time?",
) -> Path:
    """Write the page, replacing what was there at once.

    Args:
        path: the HTML file.
        scores: what `evaluate` returns; its attributes say how it was measured.
        summary: what `summarise` makes of them.
        figures: name -> figure, in the order of the page; `variable/name` where there are several.
        animation: a GIF of the fields.
        provenance: name -> value, or a mapping of names to values, shown at the end.
        title: heading of the page.
    """
    tables = "".join(_table(name, one) for name, one in by_variable(summary).items())
    tables += _costs(summary.get("costs") or {})
    drawn = "".join(_figure(name, figure) for name, figure in figures.items())
    return write_page(
        path,
        title=title,
        measured=_measured(scores),
        tables=tables,
        figures=_animation(animation) + drawn,
        provenance={**(provenance or {}), "measured": dict(scores.attrs)},
    )


def write_page(
    path: str | Path,
    *,
    title: str,
    measured: str,
    tables: str,
    figures: str,
    provenance: Mapping[str, Any],
) -> Path:
    """Write a page in the house's dress, replacing what was there at once.

    Args:
        path: the HTML file.
        title: heading of the page.
        measured: the line below it.
        tables, figures: HTML, as `page_table` and `page_figure` make it.
        provenance: name -> value, or a mapping of names to values, shown at the end.
    """
    path = Path(path)
    page = PAGE.format(
        title=html.escape(title),
        measured=html.escape(measured),
        light="".join(f"--{_name(colour)}:{colour};" for colour in DARK_PAGE),
        dark="".join(f"--{_name(colour)}:{other};" for colour, other in DARK_PAGE.items()),
        tables=tables,
        figures=figures,
        provenance=_provenance(provenance),
    )
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def figure_svg(name: str, figure: Figure, heading: str = "") -> str:
    """A figure as SVG whose fixed colours are variables of the page it stands in."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", facecolor="none", metadata={"Date": None})
    text = file.getvalue()
    text = re.sub("<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    prefix = re.sub(r"\W", "_", name)
    for before in ('id="', 'xlink:href="#', "url(#"):  # one page, many figures
        text = text.replace(before, f"{before}{prefix}-")
    for colour in DARK_PAGE:
        text = text.replace(colour, f"var(--{_name(colour)})")
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1).replace(
        "<svg ", f'<svg role="img" aria-label="{html.escape(heading or name)}" ', 1
    )


def _name(colour: str) -> str:
    return f"c{colour.removeprefix('#')}"


def _measured(scores: xr.Dataset) -> str:
    leads = scores.sizes.get("lead", 0)
    initials = scores.attrs.get("initial_states", 0)
    return f"{initials} held-out initial states, {leads} steps ahead"


def _table(name: str, summary: Mapping[str, Any]) -> str:
    headings, rows = score_table(summary)
    head = "".join(f"<th scope='col'>{html.escape(h)}</th>" for h in headings)
    body = "".join(
        f"<tr class='{html.escape(row.system)}'><th scope='row'>{html.escape(row.system)}</th>"
        + "".join(f"<td{' class=best' if c.best else ''}>{c.text}</td>" for c in row.cells)
        + "</tr>"
        for row in rows
    )
    caption = f"<caption>{html.escape(name)}</caption>" if name else ""
    return (
        f"<div class=scroll><table>{caption}<thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _costs(costs: Mapping[str, Any]) -> str:
    return page_table("what it cost", HEADINGS, cost_table(costs)) if costs else ""


def page_table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as HTML, of plain texts; the first of each row is its heading."""
    head = "".join(f"<th scope='col'>{html.escape(h)}</th>" for h in headings)
    body = "".join(
        f"<tr><th scope='row'>{html.escape(row[0])}</th>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class=scroll><table><caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _animation(gif: bytes | None) -> str:
    if gif is None:
        return ""
    data = base64.b64encode(gif).decode()
    return (
        "<figure class=wide><figcaption><b>Moving</b> The same initial state, step by step, in "
        "whole pixels of the grid.</figcaption>"
        f"<img class=moving alt='fields of truth and systems, moving' "
        f"src='data:image/gif;base64,{data}'></figure>"
    )


def _figure(name: str, figure: Figure) -> str:
    variable, _, told = name.rpartition("/")
    heading, text = CAPTIONS.get(told, (told.replace("_", " "), ""))
    heading = f"{variable}: {heading[0].lower()}{heading[1:]}" if variable else heading
    return page_figure(name, figure, heading, text, wide=told in WIDE)


def page_figure(name: str, figure: Figure, heading: str, text: str, wide: bool = False) -> str:
    """A figure with its caption as HTML; the name is told once on a page."""
    return (
        f"<figure{' class=wide' if wide else ''} id='{html.escape(name)}'>"
        f"<figcaption><b>{html.escape(heading)}</b> {html.escape(text)}</figcaption>"
        f"{figure_svg(name, figure, heading)}</figure>"
    )


def _provenance(provenance: Mapping[str, Any]) -> str:
    rows = []
    for name, value in provenance.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in value.items())
        elif not isinstance(value, str):
            value = json.dumps(value)
        rows.append(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page:#fbfbfa; --card:#fff; --text:#1b1d22; --quiet:#5d636e;
  --line:#e3e5e9; --best:#e8f3ec; --besttext:#0b6b3a; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ --page:#15171b; --card:#1c1f25; --text:#e8eaee;
  --quiet:#a3a9b4; --line:#31353d; --best:#173226; --besttext:#6fdca4; {dark} }} }}
* {{ box-sizing: border-box }}
body {{ margin:0; background:var(--page); color:var(--text);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }}
main {{ max-width:1120px; margin:0 auto; padding:32px 20px 64px }}
h1 {{ font-size:28px; line-height:1.2; margin:0 0 2px; letter-spacing:-.01em }}
header p {{ margin:0 0 22px; color:var(--quiet) }}
.scroll {{ overflow-x:auto; background:var(--card); border:1px solid var(--line);
  border-radius:10px; margin-bottom:20px }}
table {{ border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; font-size:14px }}
caption {{ text-align:left; padding:10px 14px 0; font-weight:600 }}
th, td {{ padding:8px 12px; text-align:right; white-space:nowrap }}
thead th {{ color:var(--quiet); font-weight:500; border-bottom:1px solid var(--line);
  font-size:12.5px; white-space:normal; vertical-align:bottom; min-width:74px }}
th:first-child {{ text-align:left; position:sticky; left:0; background:var(--card) }}
tbody tr + tr > * {{ border-top:1px solid var(--line) }}
tr.truth > *, tr.persistence > *, tr.climatology > * {{ color:var(--quiet); font-weight:400 }}
td.best {{ background:var(--best); color:var(--besttext); font-weight:600 }}
.figures {{ display:grid; grid-template-columns:repeat(auto-fit, minmax(min(100%, 430px), 1fr));
  gap:16px; grid-auto-flow:dense; align-items:start }}
figure {{ margin:0; background:var(--card); border:1px solid var(--line); border-radius:10px;
  padding:14px 16px 10px; min-width:0 }}
figure.wide {{ grid-column:1/-1 }}
figcaption {{ color:var(--quiet); font-size:13.5px; margin-bottom:8px }}
figcaption b {{ display:block; color:var(--text); font-size:15px }}
figure svg {{ display:block; width:100%; height:auto; max-height:560px }}
figure.wide svg {{ max-width:900px; margin:0 auto }}
figure svg image {{ image-rendering:pixelated }}
img.moving {{ display:block; max-width:100%; margin:0 auto; border-radius:6px }}
h2 {{ font-size:16px; margin:32px 0 6px }}
dl {{ display:grid; grid-template-columns:max-content 1fr; gap:4px 16px; margin:0;
  font-size:13px; color:var(--quiet) }}
dt {{ color:var(--text) }} dd {{ margin:0; overflow-wrap:anywhere }}
@media (max-width:520px) {{ main {{ padding:20px 12px 40px }} dl {{ grid-template-columns:1fr }} }}
</style>
<main>
<header><h1>{title}</h1><p>{measured}</p></header>
{tables}
<div class="figures">{figures}</div>
<h2>Where this comes from</h2>
{provenance}
</main>
</html>
"""
