"""Mode shapes in bytes, grids of half the size, grown edges, and what is behind things."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from torch import Tensor

from dyngen.motion.modes import Modes, PartModes
from dyngen.motion.spectral_volume import spectral_volume
from dyngen.view.backdrop import behind, in_front
from dyngen.view.packing import encode, grow, halve, pack, unpack
from dyngen.view.page import find_modes
from dyngen.view.sources import Motion

HEIGHT, WIDTH = 10, 14


@pytest.fixture
def labels() -> Tensor:
    """The rest to the left, part 1 on the upper right, part 2 on the lower right."""
    made = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    made[:6, 7:], made[6:, 7:] = 1, 2
    return made


@pytest.fixture
def found(labels: Tensor) -> PartModes:
    """Two modes of part 1, one of part 2, of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    part = torch.tensor([1, 1, 2])
    shapes = torch.randn(3, 2, HEIGHT, WIDTH, dtype=torch.complex64, generator=generator)
    shapes *= torch.tensor([5.0, 0.3, 20.0]).view(3, 1, 1, 1)
    shapes *= labels == part.view(3, 1, 1, 1)
    return PartModes(Modes(shapes, torch.tensor([1.0, 2.0, 1.5]), torch.full((3,), 0.02)), part)


def test_bytes_hold_every_shape_to_half_a_step(found: PartModes, labels: Tensor) -> None:
    packed = pack(found, labels)
    assert packed.layers.shape == (2, HEIGHT, WIDTH, 4)  # parts share layers
    assert packed.layer.tolist() == [0, 1, 0]
    error = torch.view_as_real(unpack(packed, found.part) - found.modes.shapes).abs()
    for m in range(3):
        largest = torch.view_as_real(found.modes.shapes[m]).abs().max().item()
        assert packed.scale[m].item() == pytest.approx(largest)
        assert error[m].max().item() <= 1.001 * largest / 254
    assert packed.error == pytest.approx(error.max().item(), rel=1e-3)


def test_what_is_encoded_can_be_read_as_the_page_does(found: PartModes, labels: Tensor) -> None:
    packed = pack(found, labels)
    raw = np.frombuffer(zlib.decompress(encode(packed)), np.uint8).reshape(-1, HEIGHT, WIDTH)
    planes = np.cumsum(raw, axis=2, dtype=np.uint8)  # each row was written as differences
    assert np.array_equal(planes[0], labels.numpy())
    layers = planes[1:].view(np.int8).reshape(2, 4, HEIGHT, WIDTH).transpose(0, 2, 3, 1)
    assert np.array_equal(layers, packed.layers.numpy())


def test_half_the_grid_holds_means_within_parts(found: PartModes, labels: Tensor) -> None:
    smaller, small = halve(found, labels)
    assert torch.equal(small, labels[::2, ::2])
    assert smaller.modes.shapes.shape == (3, 2, HEIGHT // 2, WIDTH // 2)
    for row, column in ((0, 3), (1, 5), (4, 6)):
        block = (slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
        same = labels[block] == small[row, column]
        own = found.modes.shapes[:, :, block[0], block[1]][:, :, same].mean(-1)
        torch.testing.assert_close(smaller.modes.shapes[:, :, row, column], own)
    odd, odder = halve(
        PartModes(
            Modes(found.modes.shapes[..., :-1, :-1], *_rest(found)),
            found.part,
        ),
        labels[:-1, :-1],
    )
    assert odder.shape == (HEIGHT // 2 - 1, WIDTH // 2 - 1)
    assert odd.modes.shapes.shape[-2:] == odder.shape


def _rest(found: PartModes) -> tuple[Tensor, Tensor]:
    return found.modes.frequencies, found.modes.damping


def test_what_moves_takes_a_pixel_around_it_along(found: PartModes, labels: Tensor) -> None:
    strength = torch.tensor([0.0, 1.0, 1.5])  # 2 is not strong enough to take from 1
    grown, taken = grow(found, labels, strength)
    expected = labels.clone()
    expected[:6, 6], expected[6:, 6] = 1, 2
    assert torch.equal(taken, expected)
    torch.testing.assert_close(grown.modes.shapes[:, :, :, 6], found.modes.shapes[:, :, :, 7])
    torch.testing.assert_close(grown.modes.shapes[:, :, :, 7:], found.modes.shapes[:, :, :, 7:])
    assert grown.modes.shapes[:, :, :, :6].abs().max() == 0


def test_what_is_behind_goes_on_from_around_it() -> None:
    ramp = torch.linspace(0, 200, 24).expand(3, 16, 24)
    front = torch.zeros(16, 24, dtype=torch.bool)
    front[4:12, 9:15] = True
    picture = torch.where(front, 255.0, ramp)
    filled = behind(picture, front)
    assert torch.equal(filled[:, ~front], picture[:, ~front])
    assert (filled - ramp)[:, front].abs().max() < 40  # of 200, from one side to the other
    level = torch.where(front, 255.0, 90.0).expand(3, 16, 24)
    torch.testing.assert_close(behind(level, front), torch.full((3, 16, 24), 90.0))
    everything = torch.ones(16, 24, dtype=torch.bool)
    assert torch.equal(behind(picture, everything), picture)


def test_only_edges_over_something_weaker_are_in_front() -> None:
    labels = torch.zeros(12, 20, dtype=torch.int64)
    labels[:, 5:15] = 1
    front = in_front(labels, torch.tensor([0.1, 3.0]), reach=2)
    columns = front.any(0).nonzero().flatten().tolist()
    assert columns == [5, 6, 7, 12, 13, 14]  # the edge, and two pixels further in
    assert not in_front(labels, torch.tensor([3.0, 3.1]), reach=2).any()
    whole = in_front(labels, torch.tensor([0.1, 3.0]), reach=64)
    assert torch.equal(whole, labels == 1)


def test_a_motion_estimated_from_a_film_is_one_smooth_sheet() -> None:
    """As flow is: right but for its noise, and wrong altogether at one pixel in twenty."""
    generator = torch.Generator().manual_seed(0)
    height, width, frames = 40, 80, 60
    column = torch.linspace(0, 3, width).expand(height, width)
    swing = torch.sin(2 * torch.pi * 1.5 * torch.arange(1, frames + 1) / 30)
    true = torch.zeros(1, frames, 2, height, width)
    true[0, :, 0] = swing[:, None, None] * column
    seen = true + 0.3 * torch.randn(true.shape, generator=generator)
    wrong = torch.rand(height, width, generator=generator) < 0.05
    seen[..., wrong] = 8 * torch.randn(frames, 2, int(wrong.sum()), generator=generator)
    motion = Motion(spectral_volume(seen, 8)[0], frames, 30.0, None, None, "film")
    found, labels = find_modes((width, height), motion, damping=0.02)
    assert not labels.any()
    assert set(found.part.tolist()) == {0}
    sizes = found.modes.shapes.abs().square().sum(1).mean((1, 2)).sqrt()
    m = int(sizes.argmax())
    assert found.modes.frequencies[m].item() == pytest.approx(1.5, rel=0.02)
    error = found.modes.shapes[m, 0].abs() - column
    assert error[:, 4:-4].abs().mean() < 0.06
    assert error[:, 4:-4].abs().max() < 0.35
