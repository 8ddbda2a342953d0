"""Films, read again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyngen.film import SUFFIXES, write_film


def frames(count: int = 12) -> list[np.ndarray]:
    """A red square that walks over a blue ground."""
    pictures = []
    for t in range(count):
        picture = np.zeros((32, 48, 3), np.uint8)
        picture[..., 2] = 200
        picture[8:24, 2 * t : 2 * t + 16] = (220, 20, 20)
        pictures.append(picture)
    return pictures


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_video_holds_its_frames(suffix: str, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    path = tmp_path / "folder" / f"film{suffix}"
    assert write_film(path, iter(frames()), 12.5) == 12
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert stream.average_rate == pytest.approx(12.5, abs=0.01)
        read = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
    assert len(read) == 12
    for t, (ours, expected) in enumerate(zip(read, frames(), strict=True)):
        assert ours.shape == expected.shape
        assert np.abs(ours[12:20, 2 * t + 4 : 2 * t + 12].astype(int) - (220, 20, 20)).mean() < 12
        assert np.abs(ours.astype(int) - expected).mean() < 12
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_gif_holds_its_frames_and_goes_on_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    write_film(path, frames(), 30)
    with Image.open(path) as film:
        assert film.n_frames == 12
        assert film.info["loop"] == 0
        total = 0
        for t, expected in enumerate(frames()):
            film.seek(t)
            total += film.info["duration"]
            assert np.abs(np.asarray(film.convert("RGB")).astype(int) - expected).max() <= 8
    assert total == 400  # milliseconds, although 1/30 s is no multiple of 10


def test_a_suffix_that_is_unknown_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in '.avi'; a film ends in one of .mp4, .webm, .g"):
        write_film(tmp_path / "film.avi", frames(), 10)


def test_without_pyav_a_gif_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"needs PyAV: pip install 'dyngen\[video\]'"):
        write_film(tmp_path / "film.mp4", frames(), 10)
    write_film(tmp_path / "film.gif", frames(), 10)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_film_that_fails_leaves_nothing_behind(suffix: str, tmp_path: Path) -> None:
    if suffix != ".gif":
        pytest.importorskip("av", reason="PyAV is not installed")
    path = tmp_path / f"film{suffix}"
    write_film(path, frames(), 10)
    before = path.read_bytes()

    def broken():  # type: ignore[no-untyped-def]
        yield from frames(3)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        write_film(path, broken(), 10)
    with pytest.raises(ValueError, match="There are no frames"):
        write_film(path, [], 10)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_rate_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fps must be positive, not 0"):
        write_film(tmp_path / "film.gif", frames(), 0)
