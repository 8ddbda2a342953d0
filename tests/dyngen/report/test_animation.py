"""The GIF of fields: its frames, what it shows of them, and what it refuses."""

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from dyngen.report.animation import MISSING, animation_gif


def pictures(gif: bytes) -> list[np.ndarray]:
    frames = ImageSequence.Iterator(Image.open(io.BytesIO(gif)))
    return [np.asarray(frame.convert("RGB")) for frame in frames]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("steps", [1, 7])
def test_it_has_as_many_frames_as_steps(steps: int) -> None:
    gif = animation_gif({"truth": draw(steps, 8, 8), "guided": draw(steps, 8, 8, seed=1)}, panel=48)
    shown = pictures(gif)
    assert len(shown) == steps
    assert len({picture.shape for picture in shown}) == 1
    with Image.open(io.BytesIO(gif)) as image:
        assert image.info["loop"] == 0  # for ever
        assert image.info["duration"] == 120


def test_a_cell_becomes_a_block_of_one_colour() -> None:
    """Two values, at the top left of the panel (8, 26): red above zero, blue below."""
    field = np.where(np.indices((2, 4, 4))[1] < 2, 1.0, -1.0)
    picture = pictures(animation_gif({"truth": field}, panel=40))[0]
    upper, lower = picture[26:46, 8:48], picture[46:66, 8:48]
    assert (upper == upper[0, 0]).all()
    assert (lower == lower[0, 0]).all()
    assert upper[0, 0, 0] > upper[0, 0, 2]
    assert lower[0, 0, 2] > lower[0, 0, 0]


def test_a_missing_cell_is_grey_and_a_shorter_system_goes_blank() -> None:
    truth, short = draw(5, 4, 4), draw(2, 4, 4, seed=1)
    truth[:, 0, 0] = np.nan
    shown = pictures(animation_gif({"truth": truth, "short": short}, panel=40))
    assert len(shown) == 5
    assert (shown[0][28:34, 10:16] == np.array(MISSING)).all()
    right = [picture[26:66, 56:96] for picture in shown]
    assert right[1].std() > 5
    assert all((panel == panel[0, 0]).all() for panel in right[2:])


def test_what_cannot_be_drawn_is_refused() -> None:
    for frames in ({}, {"truth": draw(0, 4, 4)}, {"truth": draw(2, 4, 4), "other": draw(2, 4, 5)}):
        with pytest.raises(ValueError, match="frames of one grid"):
            animation_gif(frames)
