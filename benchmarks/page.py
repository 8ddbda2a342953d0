"""Milliseconds to a frame of the interactive page, 512x288 with 16 modes, in Debian's Chromium.

The page is that of a garden in the wind, opened without a window, with the wind blowing. Limits are
what sixty frames a second leave, 16.7 ms:

- the program alone: oscillators, wind and hand in JavaScript, without drawing;
- a drawn frame: the picture carried forward, until its pixels can be read back. Without a GPU
  Chromium draws in software (SwiftShader), and that is what is measured; the entry says so;
- from frame to frame, as `requestAnimationFrame` is called while the page sways.

Each is repeated after one unrecorded time; medians are given.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from data_modules.simulated_garden import write_garden
from dyngen.simulate.garden import Garden
from dyngen.view.page import view
from dyngen.view.sources import read_start_frame

GARDEN = Garden(width=256, height=144, frames=149, sway=8.0, stems=6, pendulums=1, cloths=1)
WIDTH, HEIGHT, MODES = 512, 288, 16
BUDGET = 1000 / 60  # milliseconds
CHROMIUM = ("chromium", "chromium-browser", "chrome")

PROGRAM = """
() => {
  document.getElementById("wind").getAttribute("aria-pressed") === "true"
    || document.getElementById("wind").click();
  const times = [];
  for (let repeat = 0; repeat < 11; repeat++) {
    const start = performance.now();
    for (let n = 0; n < 500; n++) dyngen.tick(1 / 60);
    times.push((performance.now() - start) / 500);
  }
  return times.slice(1);
}
"""
DRAWN = """
() => {
  const times = [];
  for (let repeat = 0; repeat < 11; repeat++) {
    dyngen.tick(1 / 60);
    const start = performance.now();
    dyngen.draw(dyngen.state.position, 1);
    dyngen.pixels();
    times.push(performance.now() - start);
  }
  return times.slice(1);
}
"""
BETWEEN = """
() => new Promise((done) => {
  const times = [];
  let last = 0;
  const next = (now) => {
    if (last) times.push(now - last);
    last = now;
    if (times.length < 60) requestAnimationFrame(next);
    else done(times);
  };
  requestAnimationFrame(next);
})
"""


def run() -> list[dict[str, Any]]:
    """Measure the program, a drawn frame, and the time from frame to frame."""
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser_path is None:
        raise FileNotFoundError("There is no Chromium on this machine; install it to measure.")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = _page(Path(folder))
        software = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=software)
        tab = browser.new_page(viewport={"width": WIDTH + 48, "height": HEIGHT + 150})
        tab.goto(path.as_uri())
        tab.wait_for_function("() => window.dyngen !== undefined")
        count = tab.evaluate("dyngen.about.modes.length")
        by = tab.evaluate(
            """() => {
              const gl = document.createElement("canvas").getContext("webgl2");
              const told = gl.getExtension("WEBGL_debug_renderer_info");
              return gl.getParameter(told ? told.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
            }"""
        )
        entries = [
            _entry(f"{what}, {WIDTH}x{HEIGHT}, {count} modes", tab.evaluate(script), by)
            for what, script in (
                ("page: the program of a frame, without drawing", PROGRAM),
                ("page: a frame drawn and read back", DRAWN),
                ("page: from frame to frame in the wind", BETWEEN),
            )
        ]
        browser.close()
    return entries


def _page(folder: Path) -> Path:
    motion = write_garden(
        folder / "motion.zarr", GARDEN, clips=1, frames=False, workers=1, progress=False
    )
    picture = read_start_frame(motion, 0, WIDTH).resize((WIDTH, HEIGHT))
    picture.save(folder / "picture.png")
    return view(motion, folder / "page", folder / "picture.png", modes=MODES)


def _entry(name: str, times: list[float], drawn_by: str) -> dict[str, Any]:
    middle = statistics.median(times)
    return {
        "name": name,
        "ours": middle,
        "peer": None,
        "peer_name": None,
        "limit": BUDGET,
        "unit": "ms",
        "ratio_to_peer": None,
        "ratio_to_limit": middle / BUDGET,
        "spread": statistics.stdev(times),
        "drawn_by": drawn_by,
    }
