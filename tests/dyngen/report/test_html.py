"""The page of a report: whole, self-contained, escaped, and written at once."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from dyngen.report.animation import animation_gif
from dyngen.report.figures import crps_by_lead, score_figures
from dyngen.report.html import figure_svg, write_report
from dyngen.report.style import DARK_PAGE
from dyngen.report.summary import summarise

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Elements, ids and addresses of a page; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.cells: list[tuple[str, bool, str]] = []  # system, best, text
        self.row: str = ""
        self.inside: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        if tag == "tr":
            self.row = values.get("class") or ""
        if tag not in VOID:
            self.open.append(tag)
            self.inside = tag, values

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        tag, values = self.inside
        if tag == "td" and self.open and self.open[-1] == "td":
            self.cells.append((self.row, values.get("class") == "best", data))


@pytest.fixture(scope="module")
def page_text(scores: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    frames = {"truth": np.random.default_rng(0).normal(size=(3, 8, 8))}
    figures = {
        name: figure
        for name, figure in score_figures(scores).items()
        if name in ("crps", "spectrum", "free_bias_map")
    }
    write_report(
        path,
        scores,
        summarise(scores),
        figures,
        animation=animation_gif(frames, panel=32),
        provenance={"command": "dyngen evaluate", "versions": {"torch": "2"}, "seed": 3},
        title="A & B <fast>",
    )
    return path.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_its_ids_are_unique(page_text: str) -> None:
    page = Page(page_text)
    assert {"table", "svg", "figure", "dl", "img"} <= set(page.tags)
    assert page.tags.count("svg") == 3
    assert len(page.ids) > 20
    assert len(page.ids) == len(set(page.ids))
    within = [a for a in page.addresses if a.startswith("#")]
    within += ["#" + name for name in re.findall(r"url\(#([^)]+)\)", page_text)]
    assert within
    assert {a[1:] for a in within} <= set(page.ids)


def test_the_page_needs_no_network(page_text: str) -> None:
    page = Page(page_text)
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    named = set(re.findall(r"https?://[^\s\"'<>]+", page_text))
    assert named <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names only
    assert "@import" not in page_text
    assert "script" not in page.tags
    (gif,) = re.findall(r"data:image/gif;base64,([A-Za-z0-9+/=]+)", page_text)
    assert base64.b64decode(gif).startswith(b"GIF89a")


def test_colours_are_variables_with_a_dark_counterpart(scores: xr.Dataset, page_text: str) -> None:
    drawing = figure_svg("crps", crps_by_lead(scores.sel(variable="vorticity")))
    used = set(re.findall(r"var\(--(c[0-9a-f]{6})\)", drawing))
    assert len(used) >= 4
    for colour, dark in DARK_PAGE.items():
        assert colour not in drawing
        name = "c" + colour.removeprefix("#")
        assert f"--{name}:{colour};" in page_text
        assert f"--{name}:{dark};" in page_text
    assert used <= {"c" + colour.removeprefix("#") for colour in DARK_PAGE}
    assert "prefers-color-scheme: dark" in page_text


def test_the_table_marks_the_best(scores: xr.Dataset, page_text: str) -> None:
    page = Page(page_text)
    first = {row: (best, text) for row, best, text in reversed(page.cells)}  # CRPS at lead 1
    summary = summarise(scores)["crps"]
    best = min(summary, key=lambda system: summary[system]["1"])
    assert [system for system, (won, _) in first.items() if won] == [best] == ["guided"]
    assert set(first) == {"guided", "unguided", "persistence", "climatology", "truth"}
    assert first["guided"][1] == f"{summary['guided']['1']:.3f}"


def test_names_are_escaped(scores: xr.Dataset, page_text: str, tmp_path: Path) -> None:
    assert "<title>A &amp; B &lt;fast&gt;</title>" in page_text
    renamed = scores.assign_coords(
        system=["<b>x" if s == "guided" else s for s in scores["system"].values]
    )
    path = write_report(
        tmp_path / "report.html",
        renamed,
        {"variables": {"a<b": summarise(renamed)}},
        {},
        provenance={"<i>": "'>&"},
    )
    text = path.read_text(encoding="utf-8")
    Page(text)
    assert "&lt;b&gt;x" in text
    assert "a&lt;b" in text
    assert "<b>x" not in text
    assert "<i>" not in text


def test_it_is_replaced_at_once(
    scores: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    summary = summarise(scores)
    assert write_report(path, scores, summary, {}, title="first") == path
    whole = path.read_text()

    def broken(self: Path, *_: Any, **__: Any) -> None:
        self.write_bytes(b"<!doctype")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, scores, summary, {}, title="second")
    assert path.read_text() == whole
    monkeypatch.undo()
    write_report(path, scores, summary, {}, title="second")
    assert "<title>second</title>" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_same_figure_is_drawn_the_same(scores: xr.Dataset) -> None:
    one = scores.sel(variable="vorticity")
    first, second = (figure_svg("crps", crps_by_lead(one)) for _ in range(2))
    assert first == second
    assert "<metadata>" not in first
