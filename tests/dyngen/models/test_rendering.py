"""The results of rendering: every figure from films that are known, and the command as a whole."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from tiny_cube import fit, make
from tiny_motion import AUTOENCODER, TERMS, spectral_unet
from torch import Tensor

from data_modules.trajectories import TrajectoryDataModule
from dyngen.animate import Swaying
from dyngen.metrics.features import ScatteringFrames, ScatteringWindows
from dyngen.metrics.frechet import FrechetDistance
from dyngen.metrics.pictures import psnr, ssim
from dyngen.metrics.windows import SlidingFrechet, WindowFrechet
from dyngen.models.checkpoints import load_model
from dyngen.motion.holes import splat_frames
from dyngen.motion.loops import loop_closure
from dyngen.motion.spectral_volume import displacement_frames
from dyngen.motion.splatting import motion_importance
from dyngen.networks.perceptual import WaveDistance
from dyngen.rendering import ABLATION, rendering
from dyngen.rendering_results import (
    Clip,
    film_distances,
    film_jump,
    frames_per_second,
    held_out_clips,
    loop_scores,
    measure_films,
    medians,
    rounded,
    sliding_curves,
)
from dyngen.report.feature_distances import Features

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
CLIPS, FRAMES, HEIGHT, WIDTH = 16, 33, 24, 32
MOTION_STAGES = ["simulate", "autoencoder", "spectral_base", "spectral_ldm"]


def write_motion(path: Path, frames: bool = True) -> Path:
    """Clips that sway, whose true frames are a little darker than the start frame carried along."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(CLIPS, 3, 6, 8, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)
    volume = torch.randn(CLIPS, TERMS, 4, 1, 1, generator=generator)
    volume = volume * image.mean(1)[:, None, None]
    volume[:, 0, 1::2] = 0  # the mean is real
    displacement = displacement_frames(volume, FRAMES)
    film = 0.9 * splat_frames(image, displacement)
    values: dict[str, Any] = {
        "image": (("clip", "y", "x", "channel"), _bytes(image)),
        "displacement": (("clip", "time", "axis", "y", "x"), displacement.half().numpy()),
        "frames": (("clip", "time", "y", "x", "channel"), _bytes(film)),
        "fps": (("clip",), np.full(CLIPS, 30.0, np.float32)),
    }
    data = xr.Dataset({name: v for name, v in values.items() if frames or name != "frames"})
    data.to_zarr(path, zarr_format=3, consolidated=False)
    return path


def _bytes(pictures: Tensor) -> np.ndarray:
    return (pictures.movedim(-3, -1).clamp(0, 1) * 255).round().byte().numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training leaves: clips, and a checkpoint of each model."""
    folder = tmp_path_factory.mktemp("garden")
    data = TrajectoryDataModule(write_motion(folder / "motion.zarr"), batch_size=8)
    paths = {
        name: folder / name / "checkpoints" / "last.ckpt"
        for name in ("autoencoder", "spectral_ldm", "renderer", *ABLATION)
    }
    model = make("MotionAutoencoder", network=AUTOENCODER, terms=TERMS, learning_rate=0.01)
    fit(model, data, limit_val_batches=0).save_checkpoint(paths["autoencoder"])
    model = make("SpectralLDM", network=spectral_unet(), autoencoder=str(paths["autoencoder"]))
    fit(model, data, limit_val_batches=0).save_checkpoint(paths["spectral_ldm"])
    pairs = TrajectoryDataModule(folder / "motion.zarr", batch_size=4, pairs=True)
    for name, options in {
        "renderer": {"importance": "learned"},
        "single_scale": {"scales": 1, "importance": "learned"},
        "importance_by_motion": {"importance": "motion"},
    }.items():
        model = make("MotionRenderer", widths=[4, 6, 8], blocks=[1], warmup_steps=1, **options)
        fit(model, pairs, limit_val_batches=0).save_checkpoint(paths[name])
    return folder


@pytest.fixture
def clips(folder: Path) -> list[Clip]:
    return list(held_out_clips(TrajectoryDataModule(folder / "motion.zarr"), 2, None, CPU))


def with_motion(clip: Clip) -> Tensor:
    return splat_frames(clip.image, clip.displacement, clip.motion)


def test_clips_are_those_held_out_and_motion_that_of_the_whole(folder: Path) -> None:
    data = TrajectoryDataModule(folder / "motion.zarr")
    whole, short = (list(held_out_clips(data, 9, frames, CPU)) for frames in (None, 5))
    disk = xr.open_zarr(folder / "motion.zarr", consolidated=False)
    assert [clip.number for clip in whole] == [14, 15]
    assert whole[1].frames.shape == (1, FRAMES, 3, HEIGHT, WIDTH)
    assert short[1].frames.shape == (1, 5, 3, HEIGHT, WIDTH)
    assert short[1].displacement.shape == (1, 5, 2, HEIGHT, WIDTH)
    expected = disk["frames"][15, 4].values.transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(short[1].frames[0, 4], expected, atol=1e-6)
    moved = disk["displacement"][15].values.astype(float)
    assert np.allclose(short[1].motion[0, 0], np.hypot(moved[:, 0], moved[:, 1]).mean(0), atol=1e-4)


def test_scores_are_of_each_frame_by_itself(clips: list[Clip]) -> None:
    distance = WaveDistance()
    paired = {"direct": with_motion, "perfect": lambda clip: clip.frames.clone()}
    films = measure_films(clips, paired, {"other": with_motion}, distance, {})
    name = f"perceptual_{distance.name}"
    assert list(films.scores) == ["psnr", "ssim", name]
    assert all(list(of) == ["direct", "perfect"] for of in films.scores.values())
    frame, truth = with_motion(clips[1])[:, 7], clips[1].frames[:, 7]
    assert films.scores["psnr"]["direct"].shape == (2, FRAMES)
    for key, expected in (
        ("psnr", psnr(frame, truth)),
        ("ssim", ssim(frame, truth)),
        (name, distance(frame, truth)),
    ):
        assert films.scores[key]["direct"][1, 7].item() == pytest.approx(expected.item(), rel=1e-4)
    assert films.scores["psnr"]["perfect"].unique().tolist() == [100.0]
    assert films.scores["ssim"]["perfect"].min().item() == pytest.approx(1.0)
    assert films.scores[name]["perfect"].max().item() == 0.0


def test_distances_are_those_of_the_metrics(clips: list[Clip]) -> None:
    """The library's streaming metrics, fed with the same films."""
    frames, windows = FRAMES_BY, WINDOWS_BY
    extractors = {1: frames, 16: windows, 64: windows}
    others = {
        "still": lambda clip: clip.image[:, None].expand_as(clip.frames),
        "copied": lambda clip: clip.image[:, None].expand_as(clip.frames).clone(),
    }
    films = measure_films(clips, {"direct": with_motion}, others, WaveDistance(), extractors)
    repeated = films.features[16]["still"]
    torch.testing.assert_close(repeated, films.features[16]["copied"])
    assert list(films.features) == [1, 16]  # there are no windows of 64 in so short films
    found, floors = film_distances(films.features, extractors)
    names = [f"FID_{frames.name}", f"FVD_{windows.name}"]
    assert list(found) == names
    curves = sliding_curves(films.features, extractors)
    for name, metric in (
        (names[0], FrechetDistance(frames)),
        (names[1], WindowFrechet(windows)),
        (f"sliding-FID-30_{frames.name}", SlidingFrechet(frames, stride=10)),
        (f"sliding-FVD_{windows.name}", SlidingFrechet(windows, window=16, stride=16)),
    ):
        for clip in clips:
            by_frame = type(metric) is FrechetDistance
            for film, real in ((clip.frames, True), (with_motion(clip), False)):
                metric.update(film[0] if by_frame else film, real)
        expected: Any = metric.compute()
        if name in found:
            value = getattr(expected, "distance", expected)
            assert found[name]["direct"] == pytest.approx(float(value), rel=1e-5)
            assert floors[name]["direct"] > 0
        else:
            assert curves[name]["direct"] == pytest.approx(
                expected.distance.view(-1).tolist(), rel=1e-5
            )
            assert curves[name]["start"] == (expected.start.view(-1) + 1).tolist()
    assert [len(of["start"]) for of in curves.values()] == [1, 2]


def test_a_jump_is_that_of_the_last_frame_to_the_first() -> None:
    film = np.array([10, 13, 17, 30], np.uint8)[:, None].repeat(6, 1)
    assert film_jump(film) == {"jump": 20.0, "step": pytest.approx(20 / 3)}
    assert film_jump(film[::-1])["jump"] == 20.0
    assert medians([{"a": 1.0}, {"a": 5.0}, {"a": 2.0}]) == {"a": 2.0}


def test_a_loop_is_scored_as_it_is_seen(clips: list[Clip]) -> None:
    volume = torch.randn(1, TERMS, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    volume[:, 0, 1::2] = 0
    scores = loop_scores(splat_frames, clips[0].image, Swaying(volume, FRAMES, 30.0))
    film = splat_frames(clips[0].image, displacement_frames(volume, FRAMES))[0]
    pixels = (film + 1) * 127.5
    assert scores["jump"] == pytest.approx((pixels[-1] - pixels[0]).abs().mean().item(), abs=0.1)
    assert scores["step"] == pytest.approx(pixels.diff(dim=0).abs().mean().item(), abs=0.1)
    assert scores["closure"] == pytest.approx(loop_closure(volume, FRAMES).item())
    still = loop_scores(splat_frames, clips[0].image, Swaying(0 * volume, FRAMES, 30.0))
    assert still == {"jump": 0.0, "step": 0.0, "closure": 0.0}


def test_speed_is_frames_by_time(clips: list[Clip]) -> None:
    seen = []

    def render(image: Tensor, displacement: Tensor, motion: Tensor) -> Tensor:
        seen.append((image.shape, displacement, motion))
        time.sleep(0.04)
        return displacement

    speed = frames_per_second(render, clips[0], 2 * WIDTH, 3 * HEIGHT)
    assert speed == pytest.approx(16 / 0.04, rel=0.3)
    shape, displacement, motion = seen[-1]
    assert shape == (1, 3, 3 * HEIGHT, 2 * WIDTH)
    torch.testing.assert_close(motion, motion_importance(displacement))
    for axis, factor in ((0, 2), (1, 3)):  # pixels are smaller, so that there are more of them
        mean = clips[0].displacement[0, :16, axis].mean()
        assert displacement[0, :, axis].mean() == pytest.approx(factor * mean.item(), rel=1e-3)


def test_numbers_are_rounded_wherever_they_are() -> None:
    assert rounded({"a": [1.23456789, 3], "b": {"c": 1e-9 / 3, "d": "x"}}, 3) == {
        "a": [1.23, 3],
        "b": {"c": 3.33e-10, "d": "x"},
    }


EDGES = ("reflect", "reflect")
FRAMES_BY, WINDOWS_BY = ScatteringFrames(3, 1, 2, EDGES), ScatteringWindows(3, 16, 1, 2, EDGES)


class Textures(ScatteringWindows):
    """As if it had been trained on dynamic textures."""

    dynamic_textures = True


FEATURES = Features(
    {
        "class_path": "dyngen.metrics.features.ScatteringFrames",
        "init_args": {"channels": 3, "scales": 1, "angles": 2, "boundary": EDGES},
    },
    {
        16: {
            "class_path": f"{__name__}.Textures",
            "init_args": {"channels": 3, "scales": 1, "angles": 2, "boundary": EDGES},
        }
    },
)

Ran = list[Sequence[str]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Commands that would have been run."""
    commands: Ran = []
    monkeypatch.setattr("dyngen.stages.run", commands.append)
    return commands


@pytest.fixture
def command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("dyngen.rendering_results.FILM", 2)
    monkeypatch.setattr("dyngen.rendering_results.REPEATS", 1)
    return partial(
        rendering,
        ROOT / "experiments" / "garden",
        folder,
        tmp_path / "results",
        features=FEATURES,
        device="cpu",
        together=1,
    )


def test_all_that_is_asked_for_is_measured_and_drawn(
    folder: Path, command: Any, ran: Ran, clips: list[Clip], tmp_path: Path
) -> None:
    command(clips=2, loop_clips=1, steps=2)
    assert [words[words.index("--config") + 1].rpartition("/")[2] for words in ran] == [
        *("autoencoder.yaml", "spectral_base.yaml", "spectral_ldm.yaml"),
        *("renderer.yaml", "renderer.yaml", "renderer.yaml"),
    ]
    assert not any("scales" in word or "importance" in word for word in ran[-3])
    assert " ".join(ran[-2]).endswith(
        "--model.init_args.scales 1 --trainer.logger.init_args.version single_scale"
    )
    assert " ".join(ran[-1]).endswith(
        "--model.init_args.importance motion "
        "--trainer.logger.init_args.version importance_by_motion"
    )
    results = tmp_path / "results"
    found = json.loads((results / "rendering.json").read_text())
    systems = ["rendered", *ABLATION, "direct_splatting", "repeat_first_frame"]
    assert list(found["psnr"]) == list(found["ssim"]) == systems
    perceptual, *distances = found["distances"]
    assert list(found["distances"][perceptual]) == systems
    assert list(found["by_frame"]) == ["psnr", "ssim", perceptual]
    model: Any = load_model(folder / "renderer" / "checkpoints" / "last.ckpt")
    expected = torch.cat(
        [psnr(model.render(c.image, c.displacement, c.motion)[0], c.frames[0]) for c in clips]
    )
    assert found["psnr"]["rendered"] == pytest.approx(expected.mean().item(), rel=1e-3)
    still = torch.cat([psnr(c.image.expand_as(c.frames[0]), c.frames[0]) for c in clips])
    assert found["psnr"]["repeat_first_frame"] == pytest.approx(still.mean().item(), rel=1e-3)
    assert distances == [f"FID_{FRAMES_BY.name}", f"DTFVD_{WINDOWS_BY.name}"]
    for name in distances:
        assert list(found["distances"][name]) == [*systems, "sampled_motion"]
    assert len(found["by_frame"]["ssim"]["rendered"]) == found["frames"] == FRAMES
    ways = ["without_guidance", "with_less_guidance", "with_guidance", "held_out"]
    assert list(found["loop_jump"]) == list(found["loop_closure"]) == ways
    assert list(found["frames_per_second"]) == [f"{WIDTH}x{HEIGHT}", "256x160"]
    assert found["training"]["renderer"]["steps"] == 3
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["command"].endswith("/garden --clips 2 --loop_clips 1 --steps 2")
    page = (results / "rendering.md").read_text()
    assert f"| rendered | {found['psnr']['rendered']:.3g} |" in page
    for name in ("frames.png", "slices.png", "by_frame.svg", "sliding.svg"):
        assert f"(rendering_{name})" in page
        assert (results / f"rendering_{name}").stat().st_size > 1000
    with Image.open(results / "rendering_slices.png") as slices:
        assert slices.height > 2 * FRAMES

    ran.clear()
    command(ablation=False, clips=1, loop_clips=1, frames=9, steps=1)
    assert ran == []  # all is done
    found = json.loads((results / "rendering.json").read_text())
    assert "single_scale" not in found["psnr"]
    assert (found["clips"], found["frames"]) == (1, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experiment": Path("nowhere")}, r"nowhere/cube\.yaml does not exist; run from"),
        ({"clips": 0}, "clips must be 1 or more, not 0"),
        ({"loop_clips": 0}, "loop_clips must be 1 or more, not 0"),
        ({"frames": 0}, "frames must be 1 or more, not 0"),
        ({"steps": -1}, "steps must be 1 or more, not -1"),
        ({"device": "abacus"}, "device abacus cannot be used here"),
        ({"out": Path("empty")}, r"There is no checkpoint .*renderer/checkpoints/last\.ckpt"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(
    change: dict[str, Any], message: str, folder: Path, ran: Ran, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        "experiment": ROOT / "experiments" / "garden",
        "out": folder,
        "results": tmp_path / "results",
        "together": 1,
    }
    if "out" in change:
        change = {"out": tmp_path / change["out"]}
    with pytest.raises(ValueError, match=message):
        rendering(**arguments | change)
    assert not (tmp_path / "results").exists()


def test_clips_without_frames_get_a_sentence(tmp_path: Path) -> None:
    data = TrajectoryDataModule(write_motion(tmp_path / "motion.zarr", frames=False))
    with pytest.raises(ValueError, match=r"motion\.zarr has no variable 'frames'"):
        next(held_out_clips(data, 1, None, CPU))
