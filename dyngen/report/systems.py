"""Whatever was handed in as forecasts, runs and truth, checked, and ready to be read in blocks."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dyngen.report.forecast_sums import Block

# What is read


def readers(
    forecasts: dict[str, xr.DataArray],
    target: xr.DataArray,
    initial_frames: xr.DataArray | None,
    training: xr.DataArray,
) -> dict[str, tuple[Block, int]]:
    """By system: what reads its forecasts from some initial states, and its number of members."""
    space = target.dims[2:]
    leads = target.shape[1]

    def truth(block: slice) -> Tensor:
        return _tensor(target[block])[:, None]

    readers: dict[str, tuple[Block, int]] = {"truth": (truth, 1)}
    for name, data in forecasts.items():
        ordered = data.transpose("initial", "member", "lead", *space)

        def read(block: slice, ordered: xr.DataArray = ordered) -> Tensor:
            return _tensor(ordered[block])

        readers[name] = read, ordered.sizes["member"]
    if initial_frames is not None:
        frames = initial_frames

        def persistence(block: slice) -> Tensor:
            return _tensor(frames[block])[:, None, None].expand(-1, 1, leads, -1, -1)

        readers["persistence"] = persistence, 1
    if forecasts:
        members = max(data.sizes["member"] for data in forecasts.values())
        readers["climatology"] = _climatology(training, max(members, 2), leads)
    return readers


def _climatology(training: xr.DataArray, members: int, leads: int) -> tuple[Block, int]:
    """An ensemble of stretches of the training data, evenly spread over it.

    More stretches are read than there are members, and each initial state has the next ones, so
    that the score is that of the climate and not of one draw of ``members`` from it.
    """
    runs, length = training.shape[:2]
    starts = length - leads + 1
    if starts < 1:
        raise ValueError(
            f"climatology needs stretches of {leads} frames, as long as the forecasts, but the "
            f"runs of {training.name!r} have {length}."
        )
    members = min(members, runs * starts)
    turns = max(1, min(64, runs * starts) // members)
    stretches = []
    for i in range(members * turns):
        place = (2 * i + 1) * runs * starts // (2 * members * turns)
        run, start = divmod(place, starts)
        stretches.append(_tensor(training[run, start : start + leads]))
    pool = torch.stack(stretches)  # (members * turns, L, H, W)

    def read(block: slice) -> Tensor:
        rows = [pool[i % turns :: turns][:members] for i in range(block.start, block.stop)]
        return torch.stack(rows)

    return read, members


def _tensor(data: xr.DataArray) -> Tensor:
    values = data.to_numpy()
    if values.dtype.kind != "f":
        values = values.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(values))


# What is refused


def variables_of(truth: xr.Dataset) -> list[Hashable]:
    """The variables to score: those of the truth with dimensions (initial, lead, y, x)."""
    found = [
        name
        for name, data in truth.data_vars.items()
        if {"initial", "lead"} <= set(data.dims) and data.ndim == 4
    ]
    if not found:
        raise ValueError(
            "truth has no variable with dimensions (initial, lead, y, x); it has "
            f"{ {name: data.dims for name, data in truth.data_vars.items()} }."
        )
    return found


def check_forecast(
    name: str, dataset: xr.Dataset, truth: xr.Dataset, variables: list[Hashable]
) -> None:
    for variable in variables:
        if variable not in dataset:
            raise ValueError(
                f"system {name!r} has no variable {variable!r}; it has "
                f"{', '.join(map(str, dataset.data_vars)) or 'none'}."
            )
        wanted = {str(d): n for d, n in truth[variable].sizes.items()}
        found = {str(d): n for d, n in dataset[variable].sizes.items()}
        if set(found) != {*wanted, "member"}:
            raise ValueError(
                f"variable {variable!r} of system {name!r} has dimensions {tuple(found)}; they "
                f"must be {('initial', 'member', *list(wanted)[1:])}."
            )
        for dim, size in wanted.items():
            if found[dim] != size:
                raise ValueError(
                    f"variable {variable!r} of system {name!r} has {found[dim]} of dimension "
                    f"{dim!r} where the truth has {size}."
                )
    if (
        "initial_time" in dataset.coords
        and "initial_time" in truth.coords
        and not np.array_equal(dataset["initial_time"].values, truth["initial_time"].values)
    ):
        raise ValueError(f"system {name!r} starts from other initial times than the truth.")


def as_runs(
    what: str, dataset: xr.Dataset, variable: Hashable, space: tuple[str, ...]
) -> xr.DataArray:
    """(run, time, y, x) of whatever the first dimension is called, or of a single run."""
    if variable not in dataset:
        raise ValueError(
            f"{what} has no variable {variable!r}; it has "
            f"{', '.join(map(str, dataset.data_vars)) or 'none'}."
        )
    data = dataset[variable]
    others = [d for d in data.dims if d not in (*space, "time")]
    if "time" not in data.dims or not set(space) <= set(data.dims) or len(others) > 1:
        raise ValueError(
            f"variable {variable!r} of {what} has dimensions {data.dims}; they must be "
            f"{('time', *space)} with at most one more, a run, before them."
        )
    data = data if others else data.expand_dims("run")
    return data.transpose(*(others or ["run"]), "time", *space)


def frames_of(dataset: xr.Dataset, variable: Hashable, space: tuple[str, ...]) -> xr.DataArray:
    if variable not in dataset or set(dataset[variable].dims) != {"initial", *space}:
        raise ValueError(
            f"initial_frames must have variable {variable!r} with dimensions {('initial', *space)}."
        )
    return dataset[variable].transpose("initial", *space)
