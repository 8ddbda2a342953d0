"""What the page is made of: pictures, motions, start frames, and what is told of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

from dyngen.motion.spectral_volume import displacement_frames, spectral_volume
from dyngen.view.page import view
from dyngen.view.sources import read_image, read_motion, read_start_frame

FRAMES = 12
HEIGHT, WIDTH = 80, 128


def write(folder: Path) -> tuple[Path, Path]:
    """A picture and a spectral volume of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    swing = 2 * torch.sin(2 * torch.pi * torch.arange(1, 31) / 15).view(1, 30, 1, 1, 1)
    torch.save(spectral_volume(swing.expand(1, 30, 2, HEIGHT, WIDTH), 4)[0], folder / "m.pt")
    return folder / "picture.png", folder / "m.pt"


@pytest.fixture
def motion(tmp_path: Path) -> Path:
    """Two clips: the first is still and black, the second sways, with a picture of its own."""
    random = np.random.default_rng(0)
    swing = np.sin(2 * np.pi * np.arange(1, FRAMES + 1) / FRAMES)[:, None, None, None]
    moving = np.broadcast_to(2 * swing, (FRAMES, 2, 16, 24))
    data = xr.Dataset(
        {
            "displacement": (
                ("clip", "time", "axis", "y", "x"),
                np.stack([np.zeros_like(moving), moving]).astype(np.float16),
            ),
            "image": (
                ("clip", "y", "x", "channel"),
                np.stack([np.zeros((16, 24, 3)), random.integers(0, 256, (16, 24, 3))]).astype(
                    "u1"
                ),
            ),
            "fps": ("clip", [30.0, 6.0]),
            "source": ("clip", ["still.mp4", "sway.mp4"]),
        }
    )
    path = tmp_path / "motion.zarr"
    data.to_zarr(path, zarr_format=3, consolidated=False)
    return path


def test_a_clip_is_read_with_its_rate_and_name(motion: Path) -> None:
    found = read_motion(motion, 1)
    assert (found.period, found.frames_per_second, found.source) == (FRAMES, 6.0, "sway.mp4")
    assert found.damping is None
    frames = displacement_frames(found.volume[None], FRAMES)[0]
    swing = 2 * torch.sin(2 * torch.pi * torch.arange(1, FRAMES + 1) / FRAMES)
    torch.testing.assert_close(frames[:, 0, 3, 4], swing, atol=5e-3, rtol=0)


def test_the_start_frame_is_the_clips_own(motion: Path) -> None:
    stored = xr.open_zarr(motion, consolidated=False)["image"].values
    assert np.array_equal(np.asarray(read_start_frame(motion, 1, 1024)), stored[1])
    assert read_start_frame(motion, 1, 12).size == (12, 8)
    page = view(motion, motion.parent / "page", clip=1)
    assert "<h1>sway</h1>" in page.read_text()


@pytest.mark.parametrize("suffix", ["pt", "npz"])
def test_a_volume_in_a_file_may_have_one_too(tmp_path: Path, suffix: str) -> None:
    picture, motion = write(tmp_path)
    volume, pixels = torch.load(motion), np.asarray(Image.open(picture))
    path = tmp_path / f"with.{suffix}"
    held = {"volume": volume, "period": 149, "frames_per_second": 30.0}
    if suffix == "pt":
        torch.save(held | {"image": torch.from_numpy(pixels.copy())}, path)
    else:
        np.savez(path, **held | {"image": pixels})
    assert np.array_equal(np.asarray(read_start_frame(path, 0, 1024)), pixels)
    found = read_motion(path)
    assert torch.equal(found.volume, volume)
    assert found.damping is not None
    with pytest.raises(ValueError, match=r"m\.pt has no start frame \('image'\); give the picture"):
        view(motion, tmp_path / "page")


def test_a_large_picture_is_made_smaller_and_upright(tmp_path: Path) -> None:
    image = Image.new("L", (60, 20), 9)
    turned = image.getexif()
    turned[0x0112] = 6  # a camera held sideways
    image.save(tmp_path / "p.jpg", exif=turned)
    assert read_image(tmp_path / "p.jpg", 1024).size == (20, 60)
    assert read_image(tmp_path / "p.jpg", 30).size == (10, 30)
    assert read_image(tmp_path / "p.jpg", 30).mode == "RGB"


def spoilt(change: str, folder: Path) -> dict[str, Any]:
    """Arguments of `view` with one thing wrong."""
    picture, motion = write(folder)
    out: dict[str, Any] = {"motion": motion, "image": picture, "out": folder / "page"}
    volume = torch.load(motion)
    match change:
        case "no motion":
            return out | {"motion": folder / "none.zarr"}
        case "no picture":
            return out | {"image": folder / "none.png"}
        case "text":
            (folder / "text.png").write_text("no picture")
            return out | {"image": folder / "text.png"}
        case "text for a motion":
            (folder / "text.pt").write_text("no motion")
            return out | {"motion": folder / "text.pt"}
        case "no Zarr":
            (folder / "empty.zarr").mkdir()
            return out | {"motion": folder / "empty.zarr"}
        case "other Zarr":
            xr.Dataset({"u": ("x", [1.0])}).to_zarr(folder / "u.zarr", consolidated=False)
            return out | {"motion": folder / "u.zarr"}
        case "proportions":
            Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "tall.png")
            return out | {"image": folder / "tall.png"}
        case "shape":
            torch.save(volume[:, :3], folder / "s.pt")
            return out | {"motion": folder / "s.pt"}
        case "not finite":
            torch.save(volume * float("nan"), folder / "n.pt")
            return out | {"motion": folder / "n.pt"}
        case "still":
            torch.save(volume * 0, folder / "z.pt")
            return out | {"motion": folder / "z.pt"}
        case "clip":
            torch.save(volume[None], folder / "c.pt")
            return out | {"motion": folder / "c.pt", "clip": 1}
        case "floats":
            held = {"volume": volume, "image": torch.rand(HEIGHT, WIDTH, 3)}
            torch.save(held, folder / "f.pt")
            return out | {"motion": folder / "f.pt", "image": None}
    name, value = change.split("=")
    return out | {name: float(value) if "." in value else int(value)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no motion", "There is no motion at .*none.zarr; check the path"),
        ("no picture", "There is no picture at .*none.png; check the path"),
        ("text", "text.png cannot be read as a picture; give a PNG or JPEG"),
        ("text for a motion", "text.pt cannot be read as a motion"),
        ("no Zarr", "empty.zarr cannot be opened as a Zarr|empty.zarr has no variable"),
        ("other Zarr", r"u.zarr has no variable 'displacement' \(it has u\)"),
        ("proportions", "tall.png is 80x128 and the motion 128x80; crop"),
        ("shape", r"s.pt: the volume has shape .* it must be \(K, 4, H, W\)"),
        ("not finite", "n.pt: clip 0 has displacements that are not finite"),
        ("still", "no motion but the mean"),
        ("clip", "c.pt has clips 0 to 0, no clip 1"),
        ("floats", r"f.pt: the image is float32 of shape .* it must be bytes \(H, W, 3\)"),
        ("modes=65", "modes must be 1 to 64, not 65"),
        ("damping=1.0", "damping must lie between 0 and 1, not at 1"),
        ("largest=32", "largest must be 64 pixels or more, not 32"),
        ("megabytes=0.0", "megabytes must be positive, not 0"),
    ],
)
def test_what_cannot_be_shown_gets_a_sentence(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        view(**spoilt(change, tmp_path))
    assert not (tmp_path / "page" / "index.html").exists()
