"""From a data module to what rollouts start from, and what they are held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_modules.climate_cube import ClimateCubeDataModule, field_arguments
from data_modules.truth import Place, Truth
from dyngen.report.assessment import World
from dyngen.rollout import Field


def initial_field(
    data: ClimateCubeDataModule, places: Sequence[Place], description: dict | None = None
) -> Field:
    """What a rollout that starts at these places of a cube is made of.

    Args:
        data: Of the cube.
        places: Trajectory and number of the frame of each initial state.
        description: Of the fields, where it is not the cube's own.
    """
    several = data.cube.trajectories > 1
    return Field(
        initial_times=data.cube.times[[frame for _, frame in places]],
        initial_trajectories=np.array([t for t, _ in places]) if several else None,
        **field_arguments(data.description() if description is None else description),
    )


def world_of(
    data: ClimateCubeDataModule,
    split: str,
    places: Sequence[Place],
    leads: Sequence[int],
) -> World:
    """What rollouts from these places are held against.

    Args:
        data: Of the cube; its split `train` is what climatology is drawn from.
        split: Held-out frames whose climate is the reference.
        places: Trajectory and number of the frame of each initial state.
        leads: Steps after them.

    Raises:
        DataError: If the cube ends before, or has a gap there.
    """
    truth = Truth(data)
    every = leads[0]
    reference, training = (
        truth.runs(name, at_least=2 * leads[-1]).isel(time=slice(None, None, every))
        for name in (split, "train")
    )
    return World(
        truth=truth.after(places, leads),
        initial_frames=truth.at(places),
        reference=reference,
        training=training,
        area_weights=truth.area_weights,
        periodic=truth.periodic,
    )
