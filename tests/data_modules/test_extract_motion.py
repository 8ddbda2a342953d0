"""Motion from videos that the tests make: known shifts, the garden, and all that is no use."""

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from data_modules import DataError, extract_motion
from data_modules.extract_motion import (
    Wish,
    camera_motion,
    end_point_error,
    fill_in_time,
    find_cut,
    flow_of,
    follow,
    trace,
)
from dyngen.simulate.garden import Garden, simulate

av = pytest.importorskip("av", reason="videos are read by av, of the extra 'video'")
cv2 = pytest.importorskip("cv2", reason="flow is OpenCV's, of the extra 'video'")

GARDEN = Garden(width=96, height=64, frames=20, sway=4.0, lowest=1.0, seed=4)
FRAMES = 11
OPTIONS: dict[str, Any] = {"width": 64, "height": 48, "frames": FRAMES, "every": 4, "workers": 1}


@pytest.fixture(scope="module")
def garden() -> np.ndarray:
    """(21, 64, 96, 3) uint8."""
    return (simulate(GARDEN).video.movedim(1, -1).numpy() * 255).round().astype(np.uint8)


def write(path: Path, frames: np.ndarray, times: Sequence[int] | None = None) -> str:
    """A video, without loss, its frames at numbers of a thirtieth of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height, stream.width = frames.shape[1:3]
        layout = "rgba" if frames.shape[-1] == 4 else "rgb24"
        stream.pix_fmt = "bgra" if layout == "rgba" else "bgr0"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 30)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=layout)
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def extract(out: Path, *videos: str, **options: Any) -> xr.Dataset:
    made = extract_motion.extract_motion(
        list(videos), out, **(OPTIONS | {"progress": False} | options)
    )
    return xr.open_zarr(made).load()


def noise(frames: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """The same smooth picture (frames, height, width, 3) again and again."""
    coarse = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3))
    picture = cv2.resize(coarse.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.broadcast_to(picture, (frames, *picture.shape)).copy()


def test_the_motion_of_the_garden_is_found(garden: np.ndarray) -> None:
    error = end_point_error(GARDEN, range(2))
    assert error["median"] < 0.25
    assert error["largest_sway"] == pytest.approx(GARDEN.sway, rel=0.01)
    # An error of its own would be told: of no motion at all it is that of the truth.
    truth = simulate(GARDEN).displacement.norm(dim=1)
    assert error["mean"] < 0.5 * truth[truth > 0.5].mean()


def test_a_shift_is_found_with_its_sign() -> None:
    still = noise(1)[0]
    frames = np.stack([np.roll(still, (t, 2 * t), (0, 1)) for t in range(4)])
    forward, consistent = trace(frames, flow_of("dis"))
    inner = forward[:, :, 12:-12, 16:-16]
    for t in range(3):
        assert np.median(inner[t, 0]) == pytest.approx(2 * (t + 1), abs=0.1)
        assert np.median(inner[t, 1]) == pytest.approx(t + 1, abs=0.1)
    assert consistent[:, 12:-12, 16:-16].mean() > 0.95


def test_gaps_are_filled_in_time() -> None:
    motion = np.arange(1.0, 7.0)[:, None, None, None] * np.ones((1, 2, 1, 3))
    trusted = np.ones((6, 1, 3), bool)
    trusted[0, :, 0] = trusted[2:4, :, 0] = trusted[5, :, 0] = False
    trusted[:, :, 1] = False
    spoilt = np.where(trusted[:, None], motion, 99.0)
    filled = fill_in_time(spoilt, trusted)
    assert filled[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 5]
    assert (filled[:, :, :, 1] == 99).all()
    assert np.array_equal(filled[..., 2], motion[..., 2])


def test_a_clip_holds_what_it_is_to_hold(tmp_path: Path, garden: np.ndarray) -> None:
    video = write(tmp_path / "sway.mkv", garden)
    found = extract(tmp_path / "m.zarr", video, width=96, height=64)
    assert found["start_frame"].values.tolist() == [0, 4, 8]
    assert found["displacement"].shape == (3, FRAMES, 2, 64, 96)
    assert found["displacement"].dtype == np.float16
    assert np.array_equal(found["image"], garden[[0, 4, 8]])
    assert np.array_equal(found["frames"][1], garden[5 : 5 + FRAMES])
    assert found["fps"].values.tolist() == [30.0] * 3
    assert set(found["source"].values) == {"sway.mkv"}
    assert ((found["quality"] > 0.8) & (found["quality"] <= 1)).all()
    size = np.linalg.norm(found["displacement"].values.astype(float), axis=2).max(1)
    sure = np.abs(size - extract_motion.STILL) > 0.01  # whatever rounding to float16 does
    assert np.array_equal((found["mask"].values > 0)[sure], (size > extract_motion.STILL)[sure])
    assert found.attrs["method"] == "dis"
    assert found.attrs["videos"] == [video]


def test_frames_are_fitted_without_distortion(tmp_path: Path, garden: np.ndarray) -> None:
    """Odd sizes are made to cover the size asked for, and the middle is kept."""
    video = write(tmp_path / "odd.mkv", garden[:, :63, :95])
    found = extract(tmp_path / "m.zarr", video, width=33, height=31)
    covering = cv2.resize(garden[0, :63, :95], (47, 31), interpolation=cv2.INTER_AREA)
    assert np.array_equal(found["image"][0], covering[:, 7:40])


BAD: dict[str, tuple[Any, str]] = {
    "unreadable": (lambda path, _: path.write_bytes(b"no video") and None, "cannot be read as a"),
    "missing": (lambda path, _: None, "there is no such file"),
    "short": (lambda path, g: write(path, g[:8]), "has 8 frames, but .* need 12; ask for fewer"),
    "uneven": (
        lambda path, g: write(path, g, [t + (t > 9) * 7 for t in range(21)]),
        "frame rate varies, from 33 to 26. ms",
    ),
    "cut": (
        lambda path, g: write(path, np.concatenate([g[:10], g[:11, ::-1, ::-1] // 2])),
        "there is a cut before frame 10",
    ),
    "alpha": (
        lambda path, g: write(path, np.concatenate([g, g[..., :1] // 2], -1)),
        "frame 0 is transparent in places",
    ),
    "still": (lambda path, g: write(path, noise(21, 64, 96)), "nothing moves"),
    "camera": (
        lambda path, g: write(
            path, np.stack([f[:, 40 - t : 104 - t] for t, f in enumerate(noise(21, 64, 128))])
        ),
        "the camera moves, by 1[01]",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_use_is_told_in_a_sentence_and_the_rest_goes_on(
    kind: str,
    tmp_path: Path,
    garden: np.ndarray,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make, sentence = BAD[kind]
    make(tmp_path / f"{kind}.mkv", garden)
    good = write(tmp_path / "good.mkv", garden)
    with caplog.at_level(logging.WARNING, "data_modules"):
        found = extract(tmp_path / "m.zarr", str(tmp_path / f"{kind}.mkv"), good)
    assert set(found["source"].values) == {"good.mkv"}
    refused = found.attrs["refused"]
    assert refused
    for told in refused:
        assert f"{kind}.mkv" in told
        assert told.count(". ") == 0
        assert told.endswith(".")
        assert "\n" not in told
        assert re.search(sentence, told)
    assert [record.getMessage() for record in caplog.records] == list(dict.fromkeys(refused))


def test_opaque_alpha_is_no_harm(tmp_path: Path, garden: np.ndarray) -> None:
    opaque = np.concatenate([garden, np.full_like(garden[..., :1], 255)], -1)
    found = extract(tmp_path / "m.zarr", write(tmp_path / "o.mkv", opaque), width=96, height=64)
    assert np.array_equal(found["image"][0], garden[0])


def test_uneven_times_are_taken_as_even_on_request(tmp_path: Path, garden: np.ndarray) -> None:
    video = write(tmp_path / "v.mkv", garden, [t + (t > 9) * 7 for t in range(21)])
    assert extract(tmp_path / "m.zarr", video, fps=24.0)["fps"].values.tolist() == [24.0] * 3


def test_a_file_that_breaks_off_gives_what_it_has(tmp_path: Path, garden: np.ndarray) -> None:
    whole = Path(write(tmp_path / "v.mkv", garden))
    clips = [extract(tmp_path / "m.zarr", str(whole))]
    whole.write_bytes(whole.read_bytes()[: int(0.75 * whole.stat().st_size)])
    clips.append(extract(tmp_path / "n.zarr", str(whole)))
    assert 0 < clips[1].sizes["clip"] < clips[0].sizes["clip"]


def test_a_stopped_run_goes_on_and_ends_the_same(
    tmp_path: Path, garden: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = [write(tmp_path / f"{name}.mkv", garden) for name in "ab"]
    videos.insert(1, str(tmp_path / "missing.mkv"))
    expected = extract(tmp_path / "whole.zarr", *videos)
    followed = []

    def failing(wish: Wish, stretch: Any) -> Any:
        followed.append(stretch)
        if len(followed) == 6:
            raise KeyboardInterrupt
        return follow(wish, stretch)

    monkeypatch.setattr(extract_motion, "follow", failing)
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "m.zarr", *videos)
    assert not (tmp_path / "m.zarr").exists()
    assert extract(tmp_path / "m.zarr", *videos).identical(expected)
    assert len(followed) == 6 + 2  # of 7 tasks, 5 were done


@pytest.mark.slow
def test_several_processes_give_the_same(tmp_path: Path, garden: np.ndarray) -> None:
    video = write(tmp_path / "v.mkv", garden)
    one, two = (extract(tmp_path / f"{n}.zarr", video, workers=n) for n in (1, 2))
    assert one.identical(two)


def test_only_what_is_useless_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No clip is left"):
        extract(tmp_path / "m.zarr", str(tmp_path / "missing.mp4"))
    assert not list(tmp_path.glob("m.zarr*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"width": 8}, "8x48 are too small"),
        ({"fps": -1.0}, "fps must be positive"),
        ({"method": "farneback"}, "can be dis, tvl1, raft"),
    ],
)
def test_options_out_of_range_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        extract(tmp_path / "m.zarr", "v.mp4", **options)


def test_a_method_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "optflow", raising=False)
    with pytest.raises(DataError, match="opencv-contrib-python-headless"):
        flow_of("tvl1")


@pytest.mark.skipif(not hasattr(cv2, "optflow"), reason="TV-L1 is in OpenCV's contrib alone")
def test_tvl1_finds_the_motion_of_the_garden() -> None:
    assert end_point_error(GARDEN, range(1), "tvl1")["median"] < 0.25


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is here")
def test_raft_says_what_it_lacks() -> None:
    with pytest.raises(DataError, match="RAFT needs torchvision"):
        flow_of("raft")


def test_a_zooming_camera_is_told_from_a_thing_that_moves() -> None:
    y, x = np.mgrid[:48, :64].astype(float)
    zoom = 0.1 * np.stack([x - 31.5, y - 23.5])[None]
    assert camera_motion(zoom) == pytest.approx(0.1 * np.hypot(31.5, 23.5), rel=0.05)
    thing = np.zeros((1, 2, 48, 64))
    thing[:, 0, 10:35, 10:40] = 6.0
    assert camera_motion(thing) < 0.01


def test_motion_is_no_cut(garden: np.ndarray) -> None:
    assert find_cut(garden) is None
    assert find_cut(np.concatenate([garden[:3], 255 - garden[3:]])) == 3


@pytest.mark.slow
def test_real_clips(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2].parent / "shared" / "data" / "video"
    if not folder.is_dir():
        pytest.skip("there are no real clips beside the project")
    names = ("flower.mp4", "newtonscradle.gif")
    found = extract(tmp_path / "m.zarr", *(str(folder / n) for n in names), frames=30, every=60)
    assert found["source"].values.tolist() == ["flower.mp4", "flower.mp4"]
    assert "newtonscradle.gif: its frame rate varies" in found.attrs["refused"][0]
