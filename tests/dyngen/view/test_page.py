"""The page on which a picture sways: whole, and alive in a real browser."""

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dyngen.motion.spectral_volume import spectral_volume
from dyngen.view.page import view

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
SOFTWARE_GL = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright pole before a dark ground, that sways by three pixels at two frequencies."""
    folder = tmp_path_factory.mktemp("page")
    picture = np.full((80, 128, 3), 30, dtype=np.uint8)
    picture[10:, 58:70] = (240, 200, 60)
    Image.fromarray(picture).save(folder / "pole.png")
    time = torch.arange(1, 150) / 30
    height = torch.linspace(1, 0, 80)[:, None] * torch.ones(128)
    inside = torch.zeros(80, 128)
    inside[10:, 56:72] = 1
    swing = torch.sin(2 * torch.pi * 0.8 * time) + 0.4 * torch.sin(2 * torch.pi * 1.6 * time)
    sway = 3 * swing[:, None, None] * height * inside
    motion = torch.stack([sway, torch.zeros_like(sway)], dim=1)
    torch.save(spectral_volume(motion[None])[0], folder / "m.pt")
    title = "A pole & <its> sway"
    return view(folder / "pole.png", folder / "m.pt", folder / "page", title=title)


def test_it_is_one_file_that_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"\{\{[A-Z]+\}\}", text)
    assert text.count("A pole &amp; &lt;its&gt; sway") == 3
    addresses = re.findall(r"(?:src|href)=[\"']([^\"']+)", text)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert page.stat().st_size < 2**20


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GL)
        yield running
        running.close()


def shot(canvas: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"), dtype=float)


@pytest.mark.browser
@in_browser
def test_a_pull_moves_the_picture_and_it_settles(browser: Any, page: Path) -> None:
    tab = browser.new_context(viewport={"width": 800, "height": 560}).new_page()
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    tab.get_by_role("button", name="Wind").click()  # it blows from the start
    tab.get_by_role("button", name="Calm").click()
    canvas = tab.locator("canvas").first
    tab.wait_for_timeout(500)
    rest = shot(canvas)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.3
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + 60, y, steps=6)
    tab.wait_for_timeout(700)
    pulled = shot(canvas)
    tab.mouse.up()
    tab.mouse.move(5, 5)
    tab.get_by_role("button", name="Calm").click()
    tab.wait_for_timeout(1500)
    settled = shot(canvas)
    assert np.abs(pulled - rest).mean() > 0.5
    assert np.abs(settled - rest).mean() < 0.25 * np.abs(pulled - rest).mean()
    assert [message for message in said if "GPU stall" not in message] == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
