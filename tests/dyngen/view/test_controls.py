"""What can be touched on the page does what it says: sliders, modes, hands, slice, recording.

Time is stepped by hand where it can be, with the page paused, so that nothing depends on how fast
frames are drawn.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pole import FOOT, HEIGHT, SWINGS, WIDTH

pytestmark = pytest.mark.browser

# Free oscillations of mode 0: its frequency in hertz, from its upward crossings of zero, and its
# damping ratio, from what energy is left.
RING = """
() => {
  const h = 1 / 480, { state, oscillators, tick } = dyngen, crossings = [];
  state.position.fill(0); state.velocity.fill(0);
  state.position[0] = 1;
  const energy = () => oscillators.energy(dyngen.tuned(), state, h * dyngen.settings.speed)[0];
  const first = energy();
  let before = 1, n = 0;
  for (; crossings.length < 4 && n < 20000; n++) {
    tick(h);
    const now = state.position[0];
    if (before < 0 && now >= 0) crossings.push(n + before / (before - now));
    before = now;
  }
  const left = energy() / first, seconds = n * h;
  state.position.fill(0); state.velocity.fill(0);
  const frequency = 3 / ((crossings[3] - crossings[0]) * h);
  return { frequency, damping: -Math.log(left) / (2 * seconds * 2 * Math.PI * frequency) };
}
"""

# Column of the middle of what is bright, in rows near the top of the pole.
TOP = """
() => {
  dyngen.show();
  const bytes = dyngen.pixels(), { width } = dyngen.about;
  let sum = 0, all = 0;
  for (let y = 14; y < 18; y++)
    for (let x = 0; x < width; x++) {
      const bright = Math.max(bytes[4 * (y * width + x)] - 60, 0);
      sum += bright * x; all += bright;
    }
  return sum / all;
}
"""

AS_IT_WAS = """
() => {
  for (const id of ["reset", "calm"]) document.getElementById(id).click();
  const press = (id, on) => {
    const button = document.getElementById(id);
    if ((button.getAttribute("aria-pressed") === "true") !== on) button.click();
  };
  document.activeElement.blur();
  press("sliced", false);
  press("pause", true);
  for (const open of document.querySelectorAll("[aria-expanded=true]")) open.click();
}
"""


@pytest.fixture(scope="module")
def shared(open_page: Any, page: Path) -> Any:
    return open_page(page)


@pytest.fixture
def tab(shared: Any) -> Any:
    """The pole at rest, paused, with all sliders as measured and no panel open."""
    shared.evaluate(AS_IT_WAS)
    return shared


def slide(tab: Any, name: str, to: float) -> float:
    """Move a slider to a place in 0..1; what it is then set to."""
    tab.locator(f"#set-{name}").evaluate(
        "(slider, to) => { slider.value = to; slider.dispatchEvent(new Event('input')); }", to
    )
    value: float = tab.evaluate("name => dyngen.settings[name]", name)
    said = tab.locator(f"label:has(#set-{name}) output").text_content()
    assert float(said.removeprefix("×")) == pytest.approx(value, abs=0.051)
    return value


def test_stiffness_and_damping_do_what_they_say(tab: Any) -> None:
    measured = tab.evaluate(RING)
    assert measured["frequency"] == pytest.approx(SWINGS[0], rel=0.03)
    factor = slide(tab, "stiffness", 1.0)
    assert factor == pytest.approx(10)
    stiff = tab.evaluate(RING)
    assert stiff["frequency"] == pytest.approx(measured["frequency"] * math.sqrt(factor), rel=0.01)
    assert stiff["damping"] == pytest.approx(measured["damping"], rel=0.05)  # it is a ratio
    tab.evaluate(AS_IT_WAS)
    factor = slide(tab, "damping", 0.8)
    damped = tab.evaluate(RING)
    assert factor > 5
    assert damped["damping"] == pytest.approx(measured["damping"] * factor, rel=0.05)
    assert damped["frequency"] == pytest.approx(
        measured["frequency"] * math.sqrt(1 - damped["damping"] ** 2), rel=0.01
    )


def test_speed_is_that_of_time(tab: Any) -> None:
    measured = tab.evaluate(RING)["frequency"]
    factor = slide(tab, "speed", 1.0)
    assert factor == pytest.approx(3)
    assert tab.evaluate(RING)["frequency"] == pytest.approx(factor * measured, rel=0.01)
    slow = slide(tab, "speed", 0.0)
    assert slow == pytest.approx(0.1)


def test_amplitude_is_that_of_what_is_seen(tab: Any) -> None:
    rest = tab.evaluate(TOP)
    tab.evaluate("dyngen.state.position.fill(1, 0, 2)")
    moved = tab.evaluate(TOP) - rest
    assert abs(moved) > 1.5
    for place in (0.0, 0.5):
        factor = slide(tab, "amplitude", place)
        assert factor == pytest.approx(4 * place)
        assert tab.evaluate(TOP) - rest == pytest.approx(factor * moved, abs=0.15)


def test_wind_blows_as_hard_as_it_says(open_page: Any, page: Path) -> None:
    blow = """
    () => {
      for (let n = 0; n < 300; n++) dyngen.tick(1 / 60);
      return [...dyngen.state.position];
    }
    """
    states = []
    for place in (1 / 3, 1.0, 0.0):  # times 1, 3 and 0, with the same gusts
        tab = open_page(page)
        tab.evaluate(AS_IT_WAS)
        slide(tab, "wind", place)
        tab.keyboard.press("w")
        assert tab.locator("#wind").get_attribute("aria-pressed") == "true"
        states.append(np.array(tab.evaluate(blow)))
        tab.context.close()
    gentle, strong, still = states
    assert np.abs(gentle).max() > 0.05
    np.testing.assert_allclose(strong, 3 * gentle, rtol=1e-9)
    assert np.abs(still).max() == 0


def test_a_slider_is_moved_by_keys_and_put_back(tab: Any) -> None:
    tab.keyboard.press("a")
    tab.locator("#set-damping").focus()
    tab.keyboard.press("End")
    assert tab.evaluate("dyngen.settings.damping") == pytest.approx(20)
    tab.keyboard.press(".")  # no step while a slider has the keys
    assert tab.evaluate("dyngen.settings.damping") == pytest.approx(20)
    tab.get_by_role("button", name="Back to as measured").click()
    settings = tab.evaluate("dyngen.settings")
    assert set(settings.values()) == {1}


def test_a_mode_is_looked_at_alone(tab: Any) -> None:
    tab.get_by_role("button", name="Modes").click()
    listed = tab.locator("#list button")
    said = [float(text.split()[0]) for text in tab.locator("#list b").all_text_contents()]
    assert said == pytest.approx(SWINGS, rel=0.05)
    assert tab.locator("#spectrum rect").count() == len(said) == listed.count()
    second = listed.nth(1)
    second.click()
    assert second.get_attribute("aria-pressed") == "true"
    assert tab.locator("#live").text_content() == f"Mode 2 alone, {said[1]:.2f} Hz"
    tab.keyboard.press(" ")  # a button has the keys: it is pressed
    second.click()
    tab.locator("#pause").click()
    columns = np.array(
        tab.evaluate(
            f"() => {{ const top = {TOP}; for (let n = 0; n < 60; n++) dyngen.tick(1 / 60);"
            " return Array.from({ length: 40 }, () => { dyngen.tick(1 / 20); return top(); }); }"
        )
    )
    frequency = tab.evaluate("dyngen.about.modes[1].frequency")
    angle = 2 * np.pi * frequency * np.arange(40) / 20
    waves = np.stack([np.ones(40), np.cos(angle), np.sin(angle)], 1)
    fit, *_ = np.linalg.lstsq(waves, columns, rcond=None)
    assert np.hypot(*fit[1:]) > 0.5  # pixels
    assert (waves @ fit - columns).std() < 0.1 * columns.std()  # nothing else moves it
    assert (tab.evaluate("[...dyngen.state.position]") == np.zeros(2 * len(said))).all()


def test_the_shape_of_a_mode_is_shown(tab: Any) -> None:
    tab.keyboard.press("m")
    tab.locator("#list button").first.click()
    opacity = np.array(
        tab.evaluate(
            """() => {
              const shape = document.getElementById("shape"), { width, height } = shape;
              const { data } = shape.getContext("2d").getImageData(0, 0, width, height);
              return Array.from({ length: height }, (_, y) =>
                Array.from({ length: width }, (_, x) => data[4 * (y * width + x) + 3]));
            }"""
        ),
        dtype=float,
    )
    assert opacity.shape == (HEIGHT, WIDTH)
    assert opacity[:, :50].max() == opacity[:, 80:].max() == 0  # beside the pole
    size = (opacity[12:60, 64] / 190) ** 2  # as far as each height moves
    sway = np.linspace(1, FOOT, HEIGHT)[12:60]
    np.testing.assert_allclose(size / size[0], sway / sway[0], atol=0.03)
    tint = tab.get_by_label("tint the shape")
    tint.uncheck()
    assert tab.locator("#shape").is_hidden()
    tint.check()
    assert tab.locator("#shape").is_visible()
    tab.keyboard.press("Escape")
    assert tab.locator("#shape").is_hidden()
    assert tab.get_by_role("button", name="All together").get_attribute("aria-pressed") == "true"


def test_frequencies_in_the_list_follow_the_sliders(tab: Any) -> None:
    first = tab.locator("#list b").first
    measured = float(first.text_content().split()[0])
    factor = slide(tab, "stiffness", 0.8)
    stiff = float(first.text_content().split()[0])
    assert stiff == pytest.approx(measured * math.sqrt(factor), abs=0.02)


def test_pause_and_step(tab: Any) -> None:
    tab.evaluate("dyngen.state.position[0] = 1")
    before = tab.evaluate("[...dyngen.state.position]")
    frames = tab.evaluate("dyngen.timing.frames")
    tab.wait_for_function("n => dyngen.timing.frames > n + 3", arg=frames)
    assert tab.evaluate("[...dyngen.state.position]") == before
    expected = tab.evaluate(
        """() => {
          const { oscillators, tuned, state } = dyngen;
          const copy = { position: state.position.slice(), velocity: state.velocity.slice() };
          oscillators.step(tuned(), copy, 1 / 60, new Float64Array(copy.position.length));
          return [...copy.position];
        }"""
    )
    tab.get_by_role("button", name="Step").click()
    stepped = tab.evaluate("[...dyngen.state.position]")
    assert stepped == pytest.approx(expected)
    assert stepped != before
    tab.keyboard.press(".")
    assert tab.evaluate("[...dyngen.state.position]") != stepped
    button = tab.locator("#pause")
    assert button.inner_text() == "Play"
    tab.evaluate("document.activeElement.blur()")
    tab.keyboard.press(" ")
    assert button.get_attribute("aria-pressed") == "false"
    tab.wait_for_function("q => dyngen.state.position[0] !== q", arg=stepped[0])


def test_keys_pull_and_let_go(tab: Any) -> None:
    canvas = tab.locator("#picture")
    canvas.focus()
    tab.keyboard.down("ArrowRight")
    hand = tab.evaluate("dyngen.hand()")
    assert hand["offset"] == pytest.approx([0.05 * WIDTH, 0])
    tab.wait_for_function("() => dyngen.displacementAt(dyngen.hand().anchor)[0] > 1")
    assert tab.locator("#arrow").is_visible()
    tab.keyboard.down("ArrowUp")
    assert tab.evaluate("dyngen.hand().offset") == pytest.approx([0.05 * WIDTH, -0.05 * WIDTH])
    tab.keyboard.up("ArrowUp")
    tab.keyboard.up("ArrowRight")
    assert tab.evaluate("dyngen.hand()") is None
    mark = tab.locator("#cross").get_attribute("transform")
    tab.keyboard.press("Shift+ArrowDown")
    assert tab.evaluate("dyngen.hand()") is None
    assert tab.locator("#cross").get_attribute("transform") != mark


def test_other_keys_do_what_their_buttons_do(tab: Any) -> None:
    for key, shown in (("a", "#adjust"), ("m", "#modes"), ("x", "#slice")):
        assert tab.locator(shown).is_hidden()
        tab.keyboard.press(key)
        assert tab.locator(shown).is_visible()
        tab.keyboard.press(key)
        assert tab.locator(shown).is_hidden()
    tab.keyboard.press("w")
    assert tab.locator("#wind").get_attribute("aria-pressed") == "true"
    tab.evaluate("dyngen.state.position[0] = 1")
    tab.keyboard.press("c")
    assert tab.locator("#wind").get_attribute("aria-pressed") == "false"
    assert tab.evaluate("Math.max(...dyngen.state.position.map(Math.abs))") == 0


def test_a_finger_pulls_and_a_second_one_does_not(open_page: Any, page: Path) -> None:
    tab = open_page(page, has_touch=True, viewport={"width": 390, "height": 700})
    fingers = tab.context.new_cdp_session(tab)
    box = tab.locator("#picture").bounding_box()
    x, y = box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.4

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(places)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (x, y))
    touch("touchMove", (x + 40, y))
    pulled = 40 * WIDTH / box["width"]
    tab.wait_for_function("() => dyngen.hand() && dyngen.hand().offset[0] > 0")
    assert tab.evaluate("dyngen.hand().offset") == pytest.approx([pulled, 0], abs=0.5)
    tab.wait_for_function("() => dyngen.displacementAt(dyngen.hand().anchor)[0] > 0.5")
    touch("touchStart", (x + 40, y), (x - 60, y))
    assert tab.evaluate("dyngen.hand().offset") == pytest.approx([pulled, 0], abs=0.5)
    touch("touchEnd")
    tab.wait_for_function("() => dyngen.hand() === null")
    assert tab.evaluate("[scrollX, scrollY]") == [0, 0]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_slice_scrolls_by_a_row_a_frame(tab: Any) -> None:
    tab.keyboard.press("x")
    tab.keyboard.press("w")
    tab.locator("#pause").click()
    alike, moved = tab.evaluate(
        """() => new Promise((done) => {
          const strip = document.querySelector("#slice canvas"), paper = strip.getContext("2d");
          const rows = 40, seen = [];
          const look = () => {
            seen.push(paper.getImageData(0, 0, strip.width, rows).data);
            if (seen.length < 12) return requestAnimationFrame(look);
            const row = 4 * strip.width;
            done([
              seen.slice(1).every((now, n) =>
                now.slice(row).every((byte, i) => byte === seen[n][i])),
              seen.at(-1).slice(0, row).some((byte, i) => byte !== seen[0][i]),
            ]);
          };
          requestAnimationFrame(look);
        })"""
    )
    assert alike
    assert moved
    cut = tab.locator("#cut")
    before = float(cut.get_attribute("y1"))
    box = tab.locator("#picture").bounding_box()
    tab.mouse.move(box["x"] + 20, box["y"] + before)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 20, box["y"] + before - 40)
    tab.mouse.up()
    assert float(cut.get_attribute("y1")) == pytest.approx(before - 40, abs=1)
    assert tab.evaluate("dyngen.hand()") is None


def test_a_recording_is_a_film_that_moves(tab: Any, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="recordings are read by av, of the extra 'video'")
    button = tab.get_by_role("button", name="Record")
    tab.keyboard.press("w")
    tab.locator("#pause").click()
    button.click()
    assert tab.locator("#recording").is_visible()
    frames = tab.evaluate("dyngen.timing.frames")
    tab.wait_for_function("n => dyngen.timing.frames > n + 15", arg=frames)
    tab.wait_for_timeout(600)  # a piece comes every half second
    with tab.expect_download() as download:
        button.click()
    assert download.value.suggested_filename.endswith(".webm")
    path = tmp_path / "film.webm"
    download.value.save_as(path)
    assert tab.locator("#recording").is_hidden()
    with av.open(str(path)) as film:
        drawn = [frame.to_ndarray(format="rgb24").astype(int) for frame in film.decode(video=0)]
    size = tab.evaluate(
        "(() => { const c = document.getElementById('picture'); return [c.height, c.width]; })()"
    )
    assert list(drawn[0].shape[:2]) == size
    assert len(drawn) >= 3
    assert max(np.abs(frame - drawn[0]).max() for frame in drawn) > 60
