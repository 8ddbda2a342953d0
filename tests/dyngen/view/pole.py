"""A bright pole before a dark ground, that sways: the picture and the motion of the tests' page."""

from pathlib import Path

import numpy as np
import xarray as xr

SWINGS = (0.8, 1.6)  # hertz
WIDTH, HEIGHT = 128, 80
FOOT = 0.2  # of the sway at the top


def write_pole(folder: Path) -> Path:
    """Write how it sways by three pixels at two frequencies, as a motion.zarr."""
    picture = np.full((HEIGHT, WIDTH, 3), 30, dtype=np.uint8)
    picture[10:, 58:70] = (240, 200, 60)
    seconds = np.arange(1, 151)[:, None, None] / 30
    slow, fast = (np.sin(2 * np.pi * f * seconds) for f in SWINGS)
    motion = np.zeros((1, 150, 2, HEIGHT, WIDTH), np.float16)
    motion[0, :, 0, 10:, 56:72] = 3 * (slow + 0.4 * fast) * np.linspace(1, FOOT, HEIGHT)[10:, None]
    data = xr.Dataset(
        {
            "displacement": (("clip", "time", "axis", "y", "x"), motion),
            "image": (("clip", "y", "x", "channel"), picture[None]),
            "object": (("clip", "y", "x"), (motion[:, 5, 0] != 0).astype(np.uint8)),
            "fps": ("clip", [30.0]),
        }
    )
    data.to_zarr(folder / "pole.zarr", zarr_format=3, consolidated=False)
    return folder / "pole.zarr"
