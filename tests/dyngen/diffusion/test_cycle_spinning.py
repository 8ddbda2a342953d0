"""What networks say on average over shifts of a frame."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dyngen.diffusion.cycle_spinning import spun
from dyngen.networks.unet import UNet2d
from dyngen.networks.video_unet import VideoUNet
from dyngen.rollout.randomness import FrameNoise
from dyngen.rollout.sampling import Sampling, frame_sampler

ALL = [(0, 0), (0, 1), (1, 0), (1, 1)]
LABEL = torch.zeros(2, dtype=torch.float64)


@pytest.fixture
def unet() -> Any:
    """A U-Net of patches of 2 and one resolution: equivariant to shifts by 2, and no others."""
    torch.manual_seed(0)
    network = UNet2d(1, 1, (8,), 1, patch=2).double()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return network


def maps() -> Tensor:
    return torch.randn(2, 1, 8, 12, dtype=torch.float64)


def moved(x: Tensor, shift: tuple[int, int]) -> Tensor:
    return x.roll(shift, (-2, -1))


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (1, 3)])
def test_the_mean_over_all_shifts_of_a_patch_moves_with_the_frame(
    unet: Any, shift: tuple[int, int]
) -> None:
    x, static = maps(), maps()
    average = spun(unet, ALL)
    ours = average(moved(x, shift), LABEL, context=moved(static, shift))
    torch.testing.assert_close(ours, moved(average(x, LABEL, context=static), shift))
    alone = unet(moved(x, shift), LABEL, context=moved(static, shift))
    there = moved(unet(x, LABEL, context=static), shift)
    assert (alone - there).std() > 0.05 * there.std()


def test_it_is_the_mean_of_what_is_said_of_moved_maps(unet: Any) -> None:
    x, static = maps(), maps()

    def named(x: Tensor, context: Tensor) -> dict[str, Tensor]:
        return {"forecast": unet(x, LABEL, context=context), "spread": context}

    expected = unet(x, LABEL, context=static)
    there = unet(moved(x, (1, 1)), LABEL, context=moved(static, (1, 1)))
    expected = (expected + moved(there, (-1, -1))) / 2
    found = spun(named, [(0, 0), (1, 1)])(x, context=static)
    torch.testing.assert_close(found["forecast"], expected)
    torch.testing.assert_close(found["spread"], static)
    assert spun(unet, [(0, 0)]) is unet


class Video(nn.Module):
    """A model that is given the history, which counts how often it is asked."""

    history_length = 1

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet, self.asked = unet, 0

    def denoiser(self, x: Tensor, sigma: Tensor, history: Tensor) -> Tensor:
        self.asked += 1
        return 0.1 * self.unet(x, sigma.expand(len(x)).log() / 4, context=history[:, 0])


class Guided(Video):
    """A model with an expectation, and a logit whose gradient leads to it."""

    def denoiser(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma**2)

    def expectation(self, history: Tensor) -> dict[str, Tensor]:
        self.asked += 1
        return {"forecast": self.unet(history[:, 0], LABEL, context=history[:, 0])}

    def logit(self, x: Tensor, sigma: Tensor, history: Tensor, forecast: Tensor) -> Tensor:
        return -(x - forecast).square().flatten(1).sum(1) / (2 * sigma**2 + 0.1)


@pytest.mark.parametrize(("kind", "once"), [(Video, 4), (Guided, 1)])
def test_frames_sampled_so_move_with_their_history(unet: Any, kind: Any, once: int) -> None:
    """Given the same noise, moved; each shift costs an estimate, or one forecast of a frame."""
    model = kind(unet)
    settings: dict[str, Any] = {"steps": 3, "sigma_max": 2.0, "sampler": "ddim"}
    if kind is Guided:
        settings |= {"start": "forecast"}
    history = maps()[:, None]
    drawn = [torch.randn(2, 1, 8, 12, dtype=torch.float64) for _ in range(4)]

    class Moved(FrameNoise):
        def __init__(self, shift: tuple[int, int]) -> None:
            self.queue = [moved(x, shift) for x in drawn]

        def __call__(self, like: Tensor) -> Tensor:
            return self.queue.pop()

    def gap(shifts: list[list[int]]) -> float:
        sampler = frame_sampler(model, Sampling(shifts=shifts, **settings))
        here, _ = sampler(history, Moved((0, 0)))
        model.asked = 0
        there, figures = sampler(moved(history, (1, 1)), Moved((1, 1)))
        assert model.asked == once * len(shifts)
        if kind is Video:
            assert figures["denoiser_evaluations"].tolist() == [model.asked] * 2
        return float((there - moved(here, (1, 1))).abs().max() / here.std())

    assert gap([[0, 0]]) > 0.01
    assert gap([list(shift) for shift in ALL]) < 1e-9


def test_shifts_are_in_the_description_where_there_are_any(unet: Any) -> None:
    model = Video(unet)
    told = frame_sampler(model, Sampling(shifts=[[0, 0], [1, 1]])).description()
    assert told["shifts"] == [[0, 0], [1, 1]]
    assert "shifts" not in frame_sampler(model, Sampling()).description()


@pytest.mark.parametrize("shifts", [[], [[1]], [[0, 0], [1, 1, 1]]])
def test_shifts_that_are_no_pairs_are_refused(unet: Any, shifts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"give one or more pairs of cells, along y and x"):
        frame_sampler(Video(unet), Sampling(shifts=shifts))


@pytest.mark.parametrize("kind", [UNet2d, VideoUNet])
def test_frames_do_not_move_along_an_axis_that_ends(kind: Any) -> None:
    model = Video(kind(1, 1, widths=(8, 8), blocks=1, boundary=("reflect", "periodic")))
    for good in ([[0, 1]], [[0, 0], [0, -1]]):
        frame_sampler(model, Sampling(shifts=good))
    sentence = r"shifts is \[\[0, 0\], \[1, 0\]\], but y is not periodic to the networks \(reflect"
    with pytest.raises(ValueError, match=sentence):
        frame_sampler(model, Sampling(shifts=[[0, 0], [1, 0]]))
    foreign: Any = SimpleNamespace(denoiser=model.denoiser, history_length=1)
    frame_sampler(foreign, Sampling(shifts=[[1, 0]]))  # nothing tells of its axes
