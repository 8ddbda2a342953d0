"""The page on which a picture sways: whole, and alive in a real browser."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NO_WEBGL2 = """
const original = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
  return kind === "webgl2" ? null : original.call(this, kind, ...rest);
};
"""
NO_HALF_FLOATS = """
WebGL2RenderingContext.prototype.getExtension = () => null;
"""


def test_it_is_one_file_that_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"\{\{[A-Z]+\}\}", text)
    assert text.count("A pole &amp; &lt;its&gt; sway") == 3
    addresses = re.findall(r"(?:src|href)=[\"']([^\"']+)", text)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert page.stat().st_size < 2**20


def shot(canvas: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"), dtype=float)


@pytest.mark.browser
def test_a_pull_moves_the_picture_and_it_settles(open_page: Any, page: Path) -> None:
    tab = open_page(page, reduced_motion="no-preference")
    wind = tab.get_by_role("button", name="Wind")
    assert wind.get_attribute("aria-pressed") == "true"  # it blows from the start
    tab.get_by_role("button", name="Calm").click()
    canvas = tab.locator("canvas").first
    tab.wait_for_timeout(200)
    rest = shot(canvas)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.3
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + 60, y, steps=6)
    tab.wait_for_timeout(500)
    pulled = shot(canvas)
    tab.mouse.up()
    tab.mouse.move(5, 5)
    tab.evaluate("for (let n = 0; n < 1800; n++) dyngen.tick(1 / 60)")  # half a minute
    tab.wait_for_timeout(200)
    settled = shot(canvas)
    assert np.abs(pulled - rest).mean() > 0.5
    assert np.abs(settled - rest).mean() < 0.25 * np.abs(pulled - rest).mean()
    assert all(url.startswith(("file:", "data:", "blob:")) for url in tab.asked)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("script", "words"),
    [(NO_WEBGL2, "This browser has no WebGL 2"), (NO_HALF_FLOATS, "add up colours in half floats")],
)
def test_without_webgl2_a_message_says_so(
    open_page: Any, page: Path, script: str, words: str
) -> None:
    tab = open_page(page, script)
    message = tab.get_by_role("alert")
    assert message.is_visible()
    assert words in message.inner_text()
    assert "Try a current Firefox, Chrome, Edge or Safari" in message.inner_text()
    assert tab.locator("body").get_attribute("data-state") == "broken"
