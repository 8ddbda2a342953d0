"""Patches of radar composites as many short films: one rain event to train on, one to test.

    python experiments/radar/patches.py RADAR.nc runs/radar/cube.zarr

Reflectivity is averaged (as a power, not in dB) over squares of 4 x 4 km; what lies above 5 dBZ is
kept as decibels over that, no echo as 0. Of the squares of 32 x 32 cells that lie within coverage
throughout, those are left where it rains in a tenth of the cells, and of these a few from the
wettest to the driest: of the first event from overlapping ones, those in the north, apart from the
others, to validate; of the second event from ones that hardly overlap. In one event the wind blows
from one side: films to train with are turned and mirrored, so that rain is seen to drift every way.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import xarray as xr

COARSE = 4  # km
SIDE = 32  # cells
LOWEST = 5.0  # dBZ
COUNTS = {"train": 48, "validate": 8, "test": 12}
STRIDES = {"train": 8, "validate": 16, "test": 24}
WET = 0.1


def patches(radar: xr.Dataset) -> xr.Dataset:
    """Films `echo (trajectory, time, y, x)` in dB, those of each split in a row."""
    times = radar["time"].values
    second = int(np.argmax(np.diff(times))) + 1  # the longest gap parts the events
    echo = coarse(radar["DBZH"])
    north = echo.shape[1] // 3  # rows begin in the north
    regions = {
        "train": echo[:second, north:],
        "validate": echo[:second, :north],
        "test": echo[second:],
    }
    films: list[np.ndarray] = []
    for split, count in COUNTS.items():
        rainy = [
            film for film in squares(regions[split], STRIDES[split]) if (film > 0).mean() > WET
        ]
        if len(rainy) < count:
            raise SystemExit(f"The radar has {len(rainy)} squares to {split} with, not {count}.")
        rainy.sort(key=lambda film: -float(film.mean()))
        chosen = [rainy[i] for i in np.linspace(0, len(rainy) - 1, count).astype(int)]
        if split == "train":
            chosen = [turned for film in chosen for turned in ways(film)]
        films += chosen
    length = min(len(film) for film in films)
    minutes = np.arange(length) * 5.0
    return xr.Dataset(
        {
            "echo": (
                ("trajectory", "time", "y", "x"),
                np.stack([film[:length] for film in films]).astype("float32"),
                {"units": "dB", "long_name": f"radar reflectivity above {LOWEST:g} dBZ"},
            )
        },
        {
            "time": ("time", minutes, {"units": "minutes", "long_name": "time in the event"}),
            "y": ("y", np.arange(SIDE) * float(COARSE), {"units": "km"}),
            "x": ("x", np.arange(SIDE) * float(COARSE), {"units": "km"}),
        },
        {key: radar.attrs[key] for key in ("institution", "license") if key in radar.attrs}
        | {"title": "Rain over Finland in squares, two events"},
    )


def ways(film: np.ndarray) -> Iterator[np.ndarray]:
    """A film (time, y, x) in its eight orientations."""
    for mirrored in (film, film[..., ::-1]):
        for quarters in range(4):
            yield np.rot90(mirrored, quarters, axes=(1, 2))


def coarse(reflectivity: xr.DataArray) -> np.ndarray:
    """Echo (time, y, x) in dB above the lowest, on coarse squares; NaN outside coverage."""
    rows, columns = (size // COARSE for size in reflectivity.shape[1:])
    coarse = np.empty((len(reflectivity), rows, columns), "float32")
    for number, frame in enumerate(reflectivity):
        power = 10 ** (frame.values[: rows * COARSE, : columns * COARSE] / 10)
        mean = power.reshape(rows, COARSE, columns, COARSE).mean((1, 3))
        coarse[number] = np.maximum(10 * np.log10(mean) - LOWEST, 0)
    return coarse


def squares(echo: np.ndarray, stride: int) -> Iterator[np.ndarray]:
    """The films (time, SIDE, SIDE) of all squares that lie within coverage throughout."""
    for row in range(0, echo.shape[1] - SIDE + 1, stride):
        for column in range(0, echo.shape[2] - SIDE + 1, stride):
            film = echo[:, row : row + SIDE, column : column + SIDE]
            if np.isfinite(film).all():
                yield film


if __name__ == "__main__":
    made = patches(xr.open_dataset(sys.argv[1]))
    made.to_zarr(sys.argv[2], mode="w", encoding={"echo": {"chunks": (1, *made["echo"].shape[1:])}})
