"""Filling of holes, and frames rendered without a network."""

from __future__ import annotations

import pytest
import torch

from dyngen.motion.holes import fill_holes, splat_frames


def test_what_is_covered_stays() -> None:
    values = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(fill_holes(values, torch.ones(2, 1, 5, 7)), values)
    torch.testing.assert_close(fill_holes(values, torch.full((2, 1, 5, 7), 3.0)), values)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 7), (16, 16)])
def test_holes_in_one_colour_get_that_colour(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    coverage = (torch.rand(1, 1, *size, generator=generator) > 0.7).float()
    coverage[..., 0, 0] = 1
    values = torch.full((1, 2, *size), 0.25) * (coverage > 0)
    filled = fill_holes(values, coverage)
    torch.testing.assert_close(filled, torch.full_like(filled, 0.25))


def test_a_hole_is_filled_from_near_it() -> None:
    values = torch.zeros(1, 1, 16, 16)
    values[..., 8:] = 1
    coverage = torch.ones(1, 1, 16, 16)
    coverage[..., 4:6, 2:4] = coverage[..., 4:6, 12:14] = 0
    filled = fill_holes(values * coverage, coverage)
    assert filled[..., 4:6, 2:4].abs().max() < 0.05
    assert (filled[..., 4:6, 12:14] - 1).abs().max() < 0.05


def test_nothing_covered_is_nothing() -> None:
    assert not fill_holes(torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)).any()


def test_frames_of_a_translation_are_the_translated_image() -> None:
    image = torch.rand(2, 3, 6, 8)
    displacement = torch.zeros(2, 3, 2, 6, 8)
    displacement[:, 1, 0] = 2
    displacement[:, 2, 1] = -1
    frames = splat_frames(image, displacement)
    assert frames.shape == (2, 3, 3, 6, 8)
    torch.testing.assert_close(frames[:, 0], image)
    torch.testing.assert_close(frames[:, 1, ..., 2:], image[..., :-2])
    torch.testing.assert_close(frames[:, 2, :, :-1], image[..., 1:, :])


def test_what_moves_hides_what_does_not() -> None:
    image = torch.zeros(1, 1, 3, 6)
    image[..., 1, 1] = 1  # one white pixel moves over black ones
    displacement = torch.zeros(1, 1, 2, 3, 6)
    displacement[..., 0, 1, 1] = 3
    importance = torch.zeros(1, 1, 3, 6)
    importance[..., 1, 1] = 20
    assert splat_frames(image, displacement, importance)[..., 1, 4].item() == pytest.approx(1)
    assert splat_frames(image, displacement)[..., 1, 4].item() > 0.9
    assert splat_frames(image, displacement, 0 * importance)[..., 1, 4].item() == pytest.approx(0.5)
