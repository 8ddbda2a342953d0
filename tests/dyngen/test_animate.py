"""From a picture and a motion to a film: which frames come out, and what is told otherwise."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from torch import Tensor

from dyngen import animate as module
from dyngen.animate import Swaying, animate, read_mask, render_film, resize_volume, sample_motion
from dyngen.models import MotionAutoencoder, MotionRenderer, SpectralLDM
from dyngen.motion.holes import splat_frames
from dyngen.motion.loops import loop_closure
from dyngen.motion.spectral_volume import displacement_frames, spectral_volume
from dyngen.networks.autoencoder import ImageAutoencoder
from dyngen.networks.spectral_unet import SpectralUNet

HEIGHT, WIDTH, FRAMES = 16, 32, 15


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (4, 8, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(path)
    return path


def swaying(sway: float = 2.0) -> Tensor:
    """All of the picture moves by a cosine across and a constant down: (1, T, 2, H, W)."""
    t = torch.arange(1, FRAMES + 1) * 2 * torch.pi / FRAMES
    displacement = torch.zeros(1, FRAMES, 2, HEIGHT, WIDTH)
    displacement[:, :, 0] = (sway * t.cos())[None, :, None, None]
    displacement[:, :, 1] = 1.0
    return displacement


@pytest.fixture
def motion(tmp_path: Path) -> Path:
    path = tmp_path / "motion.zarr"
    dims = ("clip", "time", "axis", "y", "x")
    still = np.zeros((1, FRAMES, 2, HEIGHT, WIDTH), np.float16)
    displacement = np.concatenate([still, swaying().numpy().astype(np.float16)])
    data = xr.Dataset({"displacement": (dims, displacement), "fps": ("clip", [30.0, 10.0])})
    data.to_zarr(path, zarr_format=3, consolidated=False)
    return path


def read(path: Path) -> np.ndarray:
    """The frames (T, H, W, 3) of a GIF of ten a second, which keeps frames that are alike once."""
    found = []
    with Image.open(path) as film:
        for t in range(film.n_frames):
            film.seek(t)
            found += [np.asarray(film.convert("RGB"))] * round(film.info["duration"] / 100)
    return np.stack(found).astype(int)


def pixels(path: Path) -> Tensor:
    array = np.asarray(Image.open(path), dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)[None]


def as_bytes(frames: Tensor) -> np.ndarray:
    scaled = ((frames[0].clamp(-1, 1) + 1) * 127.5).round()
    return scaled.permute(0, 2, 3, 1).numpy().astype(int)


def test_a_clip_of_motion_moves_the_picture(picture: Path, motion: Path, tmp_path: Path) -> None:
    out = animate(tmp_path / "film.gif", picture, motion=motion, clip=1)
    expected = as_bytes(splat_frames(pixels(picture), swaying()))
    film = read(out)
    assert film.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert np.abs(film - expected).mean() < 4  # of 256 colours
    still = read(animate(tmp_path / "still.gif", picture, motion=motion, clip=0))
    assert np.abs(still - np.asarray(Image.open(picture))).max() <= 8


def test_without_a_picture_the_start_frame_moves(
    picture: Path, motion: Path, tmp_path: Path
) -> None:
    frames = np.stack([np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.asarray(Image.open(picture))])
    started = (
        xr.open_zarr(motion, consolidated=False)
        .load()
        .assign(image=(("clip", "y", "x", "channel"), frames))
    )
    started.to_zarr(tmp_path / "started.zarr", zarr_format=3, consolidated=False)
    for name, options in (("a", {"image": picture, "motion": motion}), ("b", {})):
        animate(
            tmp_path / f"{name}.gif", **{"motion": tmp_path / "started.zarr", "clip": 1} | options
        )
    assert np.array_equal(read(tmp_path / "a.gif"), read(tmp_path / "b.gif"))


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_video_comes_out(suffix: str, picture: Path, motion: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    out = animate(tmp_path / f"film.{suffix}", picture, motion=motion, clip=1)
    with av.open(str(out)) as film:
        stream = film.streams.video[0]
        read_back = [f.to_ndarray(format="rgb24").astype(int) for f in film.decode(stream)]
        assert float(stream.average_rate) == 10
    expected = as_bytes(splat_frames(pixels(picture), swaying()))
    assert np.abs(np.stack(read_back) - expected).mean() < 20  # colours of 2 by 2 pixels


def test_frames_lie_at_the_times_asked_for(
    picture: Path, motion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []

    def watch(render: Any, image: Tensor, volume: Tensor, times: Tensor, period: int) -> Any:
        seen.append(times.tolist())
        assert period == FRAMES
        return iter(np.zeros((len(times), HEIGHT, WIDTH, 3), np.uint8))

    monkeypatch.setattr(module, "render_film", watch)
    for options in (
        {},
        {"slow": 2.0},
        {"fps": 20.0},
        {"fps": 5.0, "slow": 0.5},
        {"frames": 3, "slow": 4.0},
    ):
        animate(tmp_path / "film.gif", picture, motion=motion, clip=1, **options)  # type: ignore[arg-type]
    assert seen[0] == list(range(1, 16))
    assert seen[1] == [1 + n / 2 for n in range(30)]
    assert seen[2] == seen[1]  # twice as many frames, the same speed
    assert seen[3] == pytest.approx([1, 5, 9, 13])
    assert seen[4] == [1, 1.25, 1.5]


def test_between_frames_motion_goes_on_smoothly() -> None:
    volume = spectral_volume(swaying(), 3)
    image = torch.arange(float(WIDTH)).expand(1, 3, HEIGHT, WIDTH) / WIDTH - 0.5
    seen = []

    def watch(image: Tensor, displacement: Tensor, importance: Tensor) -> Tensor:
        seen.append(displacement[0, :, 0, 0, 0])
        torch.testing.assert_close(importance[0, 0, 0, 0], length)
        return image[:, None].expand(-1, displacement.shape[1], -1, -1, -1)

    length = swaying().square().sum(2).sqrt().mean(1)[0, 0, 0]
    times = torch.linspace(1, 15, 29, dtype=torch.float64)
    assert len(list(render_film(watch, image, volume, times, FRAMES))) == 29
    expected = 2 * (times * 2 * torch.pi / FRAMES).cos().float()
    torch.testing.assert_close(torch.cat(seen), expected, atol=1e-4, rtol=1e-4)


def test_magnification_and_mask_act_on_the_motion(
    picture: Path, motion: Path, tmp_path: Path
) -> None:
    bright = np.zeros((HEIGHT, WIDTH), np.uint8)
    bright[:, : WIDTH // 2] = 255
    Image.fromarray(bright).save(tmp_path / "mask.png")
    options: dict[str, Any] = {"motion": motion, "clip": 1, "magnify": 1.5}
    out = animate(tmp_path / "film.gif", picture, mask=tmp_path / "mask.png", **options)
    moved = 1.5 * swaying()
    moved[..., WIDTH // 2 :] = 0
    expected = as_bytes(splat_frames(pixels(picture), moved))
    assert np.abs(read(out) - expected).mean() < 4
    assert torch.equal(
        read_mask(tmp_path / "mask.png", HEIGHT, WIDTH), torch.from_numpy(bright / 255).float()
    )


def test_a_spectral_volume_of_another_size_is_resized(
    picture: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume = spectral_volume(swaying(), 3)
    small = volume[..., ::2, ::2] / 2  # in pixels twice as large
    torch.testing.assert_close(resize_volume(small, HEIGHT, WIDTH), volume)
    torch.save({"volume": small[0], "period": FRAMES, "frames_per_second": 10.0}, tmp_path / "s.pt")
    with caplog.at_level(logging.INFO, "dyngen.animate"):
        out = animate(tmp_path / "film.gif", picture, motion=tmp_path / "s.pt")
    assert "the motion of 16x8 is resized to 32x16" in caplog.text
    expected = as_bytes(splat_frames(pixels(picture), displacement_frames(volume, FRAMES)))
    assert np.abs(read(out) - expected).mean() < 4


def test_large_and_odd_pictures_are_resized_and_that_is_told(
    picture: Path, motion: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    Image.open(picture).resize((99, 49)).save(tmp_path / "odd.png")
    with caplog.at_level(logging.INFO, "dyngen.animate"):
        animate(tmp_path / "film.mp4", tmp_path / "odd.png", motion=motion, clip=1)
        assert "odd.png of 99x49 is resized to 98x48" in caplog.text
        animate(tmp_path / "film.gif", tmp_path / "odd.png", motion=motion, clip=1, largest=40)
        assert "odd.png of 99x49 is resized to 40x20" in caplog.text


def test_a_renderers_checkpoint_renders(picture: Path, motion: Path, tmp_path: Path) -> None:
    model = MotionRenderer([4, 6, 8], [1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    settings = dict(model.hparams) | {"_class_path": "dyngen.models.MotionRenderer"}
    checkpoint = tmp_path / "renderer.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": settings}, checkpoint)
    out = animate(tmp_path / "film.gif", picture, motion=motion, clip=1, renderer=checkpoint)
    film, expected = read(out), as_bytes(model.eval().render(pixels(picture), swaying()))
    direct = as_bytes(splat_frames(pixels(picture), swaying()))
    assert np.abs(film - expected).mean() < 0.5 * np.abs(film - direct).mean()
    with pytest.raises(
        ValueError, match="holds a MotionRenderer; motion is sampled from a trained"
    ):
        sample_motion(checkpoint, pixels(picture))


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is loaded as the checkpoint of a latent diffusion of a few steps."""
    network = SpectralUNet(terms=3, widths=[8, 8], image_channels=4, embedding=16)
    model = SpectralLDM(network)
    model.autoencoder = MotionAutoencoder(ImageAutoencoder(widths=(8, 8), patch=1), 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.cube = {"height": 8, "width": 16, "frames": FRAMES, "fps": 10.0}
    monkeypatch.setattr(module, "load_model", lambda path: model.eval().requires_grad_(False))
    return Path("ldm.ckpt")


def test_motion_is_sampled_by_its_seed(picture: Path, sampler: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"motion_model": sampler, "steps": 3, "magnify": 5.0}
    first, again, other = (
        read(animate(tmp_path / f"{n}.gif", picture, seed=seed, **options))
        for n, seed in enumerate((1, 1, 2))
    )
    assert first.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_loop_is_sampled_with_guidance(sampler: Path) -> None:
    image = torch.rand(1, 3, 8, 16) * 2 - 1
    options: dict[str, Any] = {"steps": 8, "guidance_scale": 0.0}
    looped = sample_motion(sampler, image, loop=True, loop_scale=200.0, **options)
    plain = sample_motion(sampler, image, **options)
    assert isinstance(looped, Swaying)
    assert looped.period == FRAMES
    closure, of_plain = (loop_closure(m.volume, FRAMES).item() for m in (looped, plain))
    assert closure < of_plain
    gently = sample_motion(sampler, image, loop=True, loop_scale=2.0, **options)
    assert closure < loop_closure(gently.volume, FRAMES).item()
    with pytest.raises(ValueError, match=r"With loop_scale = 20000 the guidance .* diverged"):
        sample_motion(sampler, image, loop=True, loop_scale=20000.0, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "none.png"}, "There is no picture at .*none.png"),
        ({"image": "text.png"}, "text.png cannot be read as a picture"),
        ({"image": "tall.png"}, "tall.png is 16x32 and the motion 32x16; crop it to the same"),
        ({"out": "film.avi"}, "film.avi ends in '.avi'; a film ends in one of"),
        ({"image": None}, "motion.zarr has no start frame .*; give the picture that it moves"),
        (
            {"image": None, "motion": None, "motion_model": "x.ckpt"},
            "Give a picture, image, that a motion is to be sampled for",
        ),
        ({"motion": None}, "Give either a motion, or a motion_model"),
        ({"motion_model": "x.ckpt"}, "Give either a motion, or a motion_model"),
        ({"motion": "none.zarr"}, "There is no motion at .*none.zarr"),
        ({"clip": 2}, "has clips 0 to 1, no clip 2"),
        ({"loop": True}, "A loop is made while motion is sampled"),
        ({"renderer": "none.ckpt"}, "There is no checkpoint .*none.ckpt"),
        ({"mask": "text.png"}, "text.png cannot be read as a picture"),
        ({"slow": 0.0}, "slow must be positive, not 0"),
        ({"fps": -1.0}, "fps must be positive, not -1"),
        ({"frames": 0}, "frames must be 1 or more, not 0"),
        ({"largest": 1}, "largest must be 16 pixels or more"),
        ({"device": "abacus"}, "device abacus cannot be used here"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(
    change: dict[str, Any], message: str, picture: Path, motion: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (16, 32)).save(tmp_path / "tall.png")
    paths = {
        k: tmp_path / v if isinstance(v, str) and k != "device" else v for k, v in change.items()
    }
    arguments: dict[str, Any] = {"image": picture, "out": tmp_path / "film.gif", "motion": motion}
    with pytest.raises(ValueError, match=message):
        animate(**arguments | paths)
    assert not (tmp_path / "film.gif").exists()
