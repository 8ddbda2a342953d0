"""`dyngen calibrate`: quantile maps from forecasts of one step, against a climate that strays."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from data_modules.calendars import as_numbers, year_fraction
from data_modules.climate_cube import ClimateCubeDataModule, check_compatible
from data_modules.conditioning import first_channel
from data_modules.normalisation import Normalisation
from data_modules.truth import Truth
from dyngen.evaluation import fitting, verification
from dyngen.models.checkpoints import read_checkpoint
from dyngen.rollout import open_rollout
from dyngen.rollout.calibration import Calibration, Seasons, normal_at

log = logging.getLogger(__name__)


def calibrate(
    rollout: Path, reference: str, out: Path, model: Path | None = None, knots: int = 32
) -> None:
    """Fit the map that gives forecasts of one step the distribution of what came true, by cell.

    A rollout with `--sampling.calibration` of the file that this writes puts each frame through the
    map before it goes on from there, with the same model and sampling. The forecasts should start
    from some thousand states of the years that the model was trained on, by
    `dyngen rollout --split train --steps 1 --members 1 --initial_states 4096 --normalised true`;
    they are all held in memory. What came true on dry days is as a `spread` of the transform
    spreads it, and forecasts as the model makes them. Of variables with a transform
    values are mapped where there is a time of the year, of others anomalies (see
    `dyngen.rollout.calibration`).

    Args:
        rollout: The forecasts, a Zarr of `dyngen rollout`, uncalibrated and normalised.
        reference: Cube of what came true.
        out: File to write.
        model: The checkpoint, if it is no longer where it was at the time of the rollout.
        knots: Of the map of each cell, which is straight between them.

    Raises:
        ValueError: If these are no forecasts of one step, or cube and model do not fit them.
    """
    data_set = open_rollout(rollout, normalised=True)
    settings = json.loads(data_set.attrs["dyngen_settings"])
    if not data_set.attrs["dyngen_complete"]:
        raise ValueError(f"{rollout} is not finished: repeat its command first.")
    if settings["sampler"].get("calibration"):
        raise ValueError(f"{rollout} was calibrated already: forecast without a calibration.")
    if "initial" not in data_set.dims or data_set.sizes["lead"] != 1 or settings["every"] != 1:
        raise ValueError(
            f"{rollout} holds no forecasts of one step from several states: make them by dyngen "
            "rollout --steps 1 --initial_states 4096 --normalised true."
        )
    place = model or Path(json.loads(data_set.attrs["dyngen_provenance"])["checkpoint"])
    trained = read_checkpoint(place).get("cube")
    if trained is None:
        raise ValueError(f"{place} does not say how frames are normalised: give another --model.")
    data = ClimateCubeDataModule(reference, variables=settings["variables"])
    check_compatible(trained, data.outline())
    run = fitting(str(rollout), data_set, data, normalised=True)
    places, leads = verification({"rollout": run}, {"rollout": str(rollout)}, data, "train")
    frames = [frame + data.frame_stride for _, frame in places]
    times = data.cube.times[frames]
    normalisation = Normalisation(**trained["normalisation"])
    truths = torch.from_numpy(Truth(data).read_after(places, leads[0]))
    forecasts = _frames(run, settings["variables"])[:, :, 0].transpose(0, 1).flatten(0, 1)
    truths = normalisation.normalise(truths, times).nan_to_num_(nan=0.0)
    channel = first_channel(trained.get("conditioning") or {}, "day_of_year")
    phases = normal = None
    error = (forecasts.mean(0) - truths.mean(0)).square().mean((-2, -1)).sqrt()
    if channel is not None:
        phases = torch.from_numpy(year_fraction(as_numbers(times), str(data.cube.calendar)))
        normal = normalisation.normal_values()
    members = len(forecasts) // len(truths)
    if normal is not None and phases is not None:
        for index, phase in enumerate(phases.tolist()):
            level = normal_at(normal, phase)
            truths[index] += level
            forecasts[index :: len(truths)] += level
    seasons = Seasons.fit(
        forecasts,
        truths.repeat(members, 1, 1, 1),
        None if phases is None else phases.repeat(members),
        knots,
        progress=True,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    fitted_to = settings["weights"], settings["sampler"]
    Calibration(str(out), seasons, *fitted_to, channel, normal).write()
    for name, each in zip(settings["variables"], error.tolist(), strict=True):
        log.info("%s: the mean of cells was off by %.2g standard deviations", name, each)
    log.info(
        "%s: %d maps of %d knots for each cell, from %d forecasts",
        out,
        len(seasons.maps),
        knots,
        len(forecasts),
    )


def _frames(dataset: xr.Dataset, variables: list[str]) -> Tensor:
    """Frames (..., C, H, W) of a dataset (..., y, x)."""
    stacked = [np.asarray(dataset[name].values, np.float32) for name in variables]
    return torch.from_numpy(np.stack(stacked, -3))
