"""The page of a pole that sways, and a browser that opens pages."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pole import write_pole

from dyngen.view.page import view

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
SOFTWARE_GL = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
COMPLAINTS = ("error", "warning")
OF_TESTS = ("GPU stall", "willReadFrequently")  # they read back what a page only draws
PATIENCE = 180_000  # milliseconds: software draws, and the machine may be busy

OpenPage = Callable[..., Any]


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return view(write_pole(folder), folder / "page", title="A pole & <its> sway")


@pytest.fixture(scope="module")  # no longer: while it runs, nothing else may start a loop
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM, args=SOFTWARE_GL, timeout=PATIENCE
        )
        yield running
        running.close()


@pytest.fixture(scope="module")
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Open a page in a tab of its own, with what it says in `said` and asks for in `asked`.

    Without wind, unless `reduced_motion` is "no-preference". When the module is done, no tab may
    have complained.
    """
    tabs: list[Any] = []

    def opened(path: Path, script: str = "", **options: Any) -> Any:
        context = browser.new_context(
            **{"viewport": {"width": 800, "height": 560}, "reduced_motion": "reduce"} | options
        )
        context.set_default_timeout(PATIENCE)
        if script:
            context.add_init_script(script)
        tab = context.new_page()
        tab.said, tab.asked = [], []
        tab.on("console", lambda m: tab.said.append(m.text) if m.type in COMPLAINTS else None)
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto(path.as_uri())
        tab.wait_for_selector("body[data-state]")
        tabs.append(tab)
        return tab

    yield opened
    said = [text for tab in tabs for text in tab.said if not any(w in text for w in OF_TESTS)]
    for tab in tabs:
        tab.context.close()
    assert said == []
