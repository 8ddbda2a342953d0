"""A bright pole before a dark ground, that sways: the picture and the motion of the tests' page."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dyngen.motion.spectral_volume import spectral_volume

SWINGS = (0.8, 1.6)  # hertz
WIDTH, HEIGHT = 128, 80


def write_pole(folder: Path) -> tuple[Path, Path]:
    """Write a picture, and how it sways by three pixels at two frequencies, as a volume."""
    picture = np.full((HEIGHT, WIDTH, 3), 30, dtype=np.uint8)
    picture[10:, 58:70] = (240, 200, 60)
    Image.fromarray(picture).save(folder / "pole.png")
    time = torch.arange(1, 150) / 30
    height = torch.linspace(1, 0, HEIGHT)[:, None] * torch.ones(WIDTH)
    inside = torch.zeros(HEIGHT, WIDTH)
    inside[10:, 56:72] = 1
    slow, fast = (torch.sin(2 * torch.pi * f * time) for f in SWINGS)
    sway = 3 * (slow + 0.4 * fast)[:, None, None] * height * inside
    motion = torch.stack([sway, torch.zeros_like(sway)], dim=1)
    torch.save(spectral_volume(motion[None])[0], folder / "m.pt")
    return folder / "pole.png", folder / "m.pt"
