"""Films through optical flow, spectral volumes and back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyngen.film import write_film
from dyngen.motion.spectral_volume import energy_lost
from dyngen.real_clips import real_clips, real_clips_markdown
from dyngen.simulate.garden import Garden, simulate

pytest.importorskip("av", reason="films are read by av, of the extra 'video'")
pytest.importorskip("cv2", reason="flow is OpenCV's, of the extra 'video'")

FRAMES = 20
WORLD = Garden(width=96, height=64, frames=FRAMES, sway=5.0, lowest=1.0, seed=4)


def test_a_film_is_told_by_its_flow_and_by_a_few_terms(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = simulate(WORLD)
    pixels = (world.video.movedim(1, -1).numpy() * 255).round().astype(np.uint8)
    swaying, still = tmp_path / "swaying.mp4", tmp_path / "still.mp4"
    write_film(swaying, pixels, 30.0)
    write_film(still, np.repeat(pixels[:1], FRAMES + 1, axis=0), 30.0)
    videos = [swaying, still, tmp_path / "missing.mp4"]
    found = real_clips(videos, tmp_path / "out", tmp_path / "results", width=96, height=64)
    told = found["swaying.mp4"]
    assert told["frames"] == FRAMES
    assert list(told["energy_kept"]) == ["4", "8"]  # 16 terms need 31 frames
    kept = 1 - float(energy_lost(world.displacement[None], 4))
    assert told["energy_kept"]["4"] == pytest.approx(kept, abs=0.02)
    quality = told["psnr"]
    assert quality["repeat_first_frame"] + 3 < quality["terms_8"]
    assert quality["terms_8"] <= quality["optical_flow"] + 0.3
    with Image.open(tmp_path / "results" / "real_swaying.png") as picture:
        assert picture.width > 4 * 96
        assert picture.height >= FRAMES
    assert found["still.mp4"]["refused"].endswith("in the clip from frame 0 nothing moves.")
    assert found["missing.mp4"]["refused"] == (
        "missing.mp4: there is no such file; check the path."
    )
    page = real_clips_markdown(found)
    assert f"| swaying.mp4 | {FRAMES} |" in page
    assert "(real_swaying.png)" in page
    assert "Left out: missing.mp4" in page
    made = (tmp_path / "out" / "swaying.zarr" / "zarr.json").stat().st_mtime_ns
    again = real_clips(videos[:1], tmp_path / "out", tmp_path / "results", width=96, height=64)
    assert again["swaying.mp4"] == told
    assert (tmp_path / "out" / "swaying.zarr" / "zarr.json").stat().st_mtime_ns == made
