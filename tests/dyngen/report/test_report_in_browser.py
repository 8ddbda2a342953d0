"""The report in a real browser: it is readable, it moves, and it asks nobody for anything."""

import io
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from dyngen.report.animation import animation_gif
from dyngen.report.figures import score_figures
from dyngen.report.html import write_report
from dyngen.report.summary import summarise

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]
DRAWN = 4  # figures; more are more of the same


@pytest.fixture(scope="module")
def report(
    scores: xr.Dataset, world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    figures = dict(list(score_figures(scores).items())[:DRAWN])
    truth = world["truth"]["vorticity"][0].values
    guided = world["forecasts"]["guided"]["vorticity"][0, 0].values
    animation = animation_gif({"truth": truth, "guided": guided})
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(path, scores, summarise(scores), figures, animation, {"machine": "x" * 300})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Visit:
    """A page, what it said on the console, and what it asked for."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str) -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def colour(self, selector: str, what: str) -> tuple[int, ...]:
        found = self.page.eval_on_selector(selector, "(e, what) => getComputedStyle(e)[what]", what)
        return tuple(int(float(part)) for part in found[found.index("(") + 1 : -1].split(",")[:3])


def test_it_is_whole_without_a_network(browser: Any, report: Path) -> None:
    visit = Visit(browser, report, 1200, "light")
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith(("file:", "data:"))] == []
    boxes = [figure.bounding_box() for figure in visit.page.query_selector_all("figure svg")]
    assert len(boxes) == DRAWN
    assert all(box["width"] > 200 and box["height"] > 100 for box in boxes)
    inks = visit.page.eval_on_selector_all(
        "figure svg path", "paths => paths.filter(p => p.getTotalLength() > 50).length"
    )
    assert inks > 10 * DRAWN


def test_the_fields_move(browser: Any, report: Path) -> None:
    visit = Visit(browser, report, 1200, "light")
    moving = visit.page.locator("img.moving")
    moving.scroll_into_view_if_needed()
    shots = []
    for _ in range(4):
        shots.append(np.asarray(Image.open(io.BytesIO(moving.screenshot())).convert("RGB"), float))
        visit.page.wait_for_timeout(400)
    assert max(np.abs(a - b).mean() for a, b in itertools.pairwise(shots)) > 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser: Any, report: Path, scheme: str) -> None:
    visit = Visit(browser, report, 1200, scheme)

    def luminance(colour: tuple[int, ...]) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (part / 255 for part in colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    page = luminance(visit.colour("body", "backgroundColor"))
    assert (page < 0.2) == (scheme == "dark")
    for selector in ("h1", "td", "figcaption", "dt"):
        text = luminance(visit.colour(selector, "color"))
        contrast = (max(text, page) + 0.05) / (min(text, page) + 0.05)
        assert contrast > 4.5, selector  # WCAG 2.1, level AA


def test_a_phone_scrolls_down_only(browser: Any, report: Path) -> None:
    visit = Visit(browser, report, 390, "light")
    width = visit.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    table = visit.page.locator(".scroll").first.bounding_box()
    assert table["width"] <= 390
