"""The garden: what is drawn is what is said to move, and it moves as its modes say."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dyngen.motion.modes import modal_analysis
from dyngen.motion.spectral_volume import spectral_volume
from dyngen.simulate.garden import Clip, Garden, scene, simulate

SMALL = Garden(width=96, height=72, frames=12, sway=6.0, stems=2, seed=3)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return simulate(SMALL)


def test_a_clip_has_the_shapes_it_promises(clip: Clip) -> None:
    assert clip.video.shape == (13, 3, 72, 96)
    assert clip.displacement.shape == (12, 2, 72, 96)
    assert clip.hidden.shape == (12, 72, 96)
    assert 0 <= clip.video.min() < clip.video.max() <= 1
    kinds = [layer.kind for layer in clip.layers]
    assert kinds == ["background", "water", "cloth", "pendulum", "stem", "stem"]
    assert set(clip.mask.unique().tolist()) <= set(range(6))


def test_what_is_seen_at_the_start_is_seen_where_it_has_moved(clip: Clip) -> None:
    """The later frame, read at ``p + F_t(p)``, is the start frame, away from edges."""
    y, x = torch.meshgrid(torch.arange(72.0), torch.arange(96.0), indexing="ij")
    same = functional.max_pool2d(clip.mask[None].float(), 3, 1, 1)[0] == clip.mask
    inner = same & (-functional.max_pool2d(-clip.mask[None].float(), 3, 1, 1)[0] == clip.mask)
    hidden = functional.max_pool2d(clip.hidden.float(), 5, 1, 2).bool()
    for t in (0, 5, 11):
        u, v = clip.displacement[t]
        grid = torch.stack([(x + u) / 95 * 2 - 1, (y + v) / 71 * 2 - 1], -1)[None]
        read = functional.grid_sample(
            clip.video[t + 1][None], grid, mode="bicubic", align_corners=True
        )[0]
        shown = inner & ~hidden[t]
        error = (read - clip.video[0]).abs().mean(0)[shown]
        still = (clip.video[t + 1] - clip.video[0]).abs().mean(0)
        moved = shown & (clip.displacement[t].norm(dim=0) > 1)
        assert error.mean() < 0.01
        if moved.any():
            assert (read - clip.video[0]).abs().mean(0)[moved].mean() < 0.35 * still[moved].mean()


def test_it_moves_and_no_further_than_it_may(clip: Clip) -> None:
    size = clip.displacement.norm(dim=1)
    assert 1 < size.max() <= SMALL.sway * 1.05  # a swing may take a little of its height
    assert size[:, clip.mask == 0].max() == 0
    for number in range(2, 6):
        if (clip.mask == number).any():
            assert size[:, clip.mask == number].max() > 0.1


def test_something_is_hidden_and_most_is_not(clip: Clip) -> None:
    assert 0 < clip.hidden.float().mean() < 0.2


def test_a_pixel_moves_as_its_layer_says(clip: Clip) -> None:
    seconds = torch.arange(1, 13) / SMALL.frames_per_second
    for number, layer in enumerate(clip.layers):
        for row, column in (clip.mask == number).nonzero()[::200].tolist():
            place = torch.tensor([[float(column), float(row)]])
            expected = layer.displacement(place, seconds)
            torch.testing.assert_close(clip.displacement[:, :, row, column], expected)


def test_its_modes_are_found_in_its_motion() -> None:
    """One pendulum, one mode: the frequency read off the spectrum is the one it was given."""
    garden = Garden(
        width=48, height=48, frames=149, sway=6, stems=0, cloths=0, water=False, lowest=0.8, seed=1
    )
    clip = simulate(garden)
    (mode,) = clip.layers[1].modes
    found = modal_analysis(spectral_volume(clip.displacement[None], 24), 149, 30.0, count=1)
    assert found.frequencies.item() == pytest.approx(mode.frequency, rel=0.01)
    assert found.damping.item() == pytest.approx(mode.damping, abs=0.01)


def test_a_clip_follows_from_seed_and_number_alone() -> None:
    garden = Garden(width=40, height=32, frames=2, sway=3, stems=1, seed=5)
    first, again, other = simulate(garden, 7), simulate(garden, 7), simulate(garden, 8)
    assert torch.equal(first.video, again.video)
    assert torch.equal(first.displacement, again.displacement)
    assert not torch.equal(first.video[0], other.video[0])
    frequencies = [[m.frequency for layer in scene(garden, c) for m in layer.modes] for c in (7, 8)]
    assert frequencies[0] != frequencies[1]
    assert all(garden.lowest <= f <= garden.highest for f in frequencies[0] + frequencies[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 16}, "too small"),
        ({"sway": 50.0}, "sway must lie between 0 and an eighth"),
        ({"lowest": 3.0}, "lowest"),
        ({"frames": 0}, "frames and frames_per_second must be positive"),
        ({"stems": -1}, "fewer than 0"),
    ],
)
def test_gardens_that_cannot_be_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Garden(**change)  # type: ignore[arg-type]
