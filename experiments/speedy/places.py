"""What kind of place each cell is, from the training years: static fields for the networks.

    python experiments/speedy/places.py CUBE places.zarr

The cube has neither orography nor a land-sea mask, and latitude and longitude alone leave it to the
networks to learn the map. Its own statistics say most of it: mean surface pressure is orography,
the day-to-day spread of temperature tells land from sea, and how often it rains tells where rain is
a rare event. They lie beside the cube as a second path, so that the cube is left as it is.
"""

from __future__ import annotations

import sys

import numpy as np
import xarray as xr

TRAINING_YEARS = ("1983", "2002")
WET = 1.0  # mm/day


def places(cube: xr.Dataset) -> xr.Dataset:
    """Static fields (lat, lon) of a cube with `pr`, `ta` and `ps`."""
    seen = cube.sel(time=slice(*TRAINING_YEARS)).load()
    changes = seen[["pr", "ta"]].diff("time")
    return xr.Dataset(
        {
            "mean_pressure": seen["ps"].mean("time"),
            "temperature_spread": np.log(changes["ta"].std("time")),
            "rain_spread": np.log(changes["pr"].std("time") + 0.01),
            "wet_days": (seen["pr"] >= WET).mean("time"),
        }
    ).astype("float32")


if __name__ == "__main__":
    places(xr.open_zarr(sys.argv[1])).to_zarr(sys.argv[2], mode="w")
