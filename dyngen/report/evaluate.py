"""From datasets of forecasts, free runs and truth to one labelled dataset of scores.

Two systems that any forecast must beat are added: `persistence`, the last given frame for ever, and
`climatology`, an ensemble of stretches of the training data, evenly spread over it.

Everything is measured variable by variable and system by system, and read in blocks, so that
neither a large ensemble nor a century has to fit in memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dyngen.metrics.calibration import distance_from_flat, reduced_chi_square
from dyngen.metrics.distributions import histogram_quantile, histogram_wasserstein
from dyngen.metrics.spectra import log_spectral_distance, shells
from dyngen.metrics.temporal import correlation, drift
from dyngen.report.forecast_sums import (
    Block,
    ForecastSums,
    Yardstick,
    forecast_sums,
    resamplings,
    scores,
)
from dyngen.report.long_runs import RunStatistics, extent, run_statistics

log = logging.getLogger(__name__)

LAGS = (*range(0, 11), 12, 15, 20, 25, 30, 40, 50)
PROBABILITIES = (0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999)
FINE, COARSE = 2000, 200  # bins to compute with, bins to keep
INTERVAL = (0.025, 0.975)
BLOCKS = 40  # stretches of a free run
END = 0.2  # the part of a free run that its last figures are taken from
OWN = ("truth", "persistence", "climatology")
NOT_OF_TRUTH = {
    "crps",
    "mean_absolute_error",
    "rmse",
    "bias",
    "spread",
    "spread_skill",
    "std_ratio",
    "std_ratio_lead",
    "increment_std_ratio",
}
WITH_INTERVAL = {"crps", "bias", "spread_skill", "autocorrelation", "std_ratio"}
DIMS_OF: dict[str, tuple[str, ...]] = {
    "autocorrelation": ("lag",),
    "std_all": (),
    "std_ratio": (),
    "increment_std": (),
    "increment_std_ratio": (),
}

Scores = dict[tuple[str, str], tuple[tuple[str, ...], Tensor]]  # (score, system) -> dims, values


def evaluate(
    forecasts: Mapping[str, xr.Dataset],
    truth: xr.Dataset,
    *,
    reference: xr.Dataset,
    initial_frames: xr.Dataset | None = None,
    training: xr.Dataset | None = None,
    free_runs: Mapping[str, xr.Dataset] | None = None,
    area_weights: xr.DataArray | None = None,
    periodic: tuple[bool, bool] = (True, True),
    spacing: tuple[float, float] = (1.0, 1.0),
    lags: tuple[int, ...] = LAGS,
    bootstrap: int = 1000,
    seed: int = 0,
    memory: int = 256 * 2**20,
) -> xr.Dataset:
    """Score ensemble forecasts and free runs against what came true and its climate.

    The names of the two spatial dimensions are those of ``truth``; other variables of a system,
    such as a sampler's diagnostics, are ignored. The truth may have missing values (NaN): such
    points do not count. A forecast that is missing where there is truth makes the score NaN.

    Args:
        forecasts: by system, (initial, member, lead, y, x), in physical units.
        truth: what came true, (initial, lead, y, x).
        reference: held-out truth, (trajectory or sample, time, y, x) or (time, y, x): its mean at
            every point is what anomalies are taken from, and free runs are compared with it.
        initial_frames: the last given frames, (initial, y, x); without it no `persistence`.
        training: what `climatology` draws from, laid out like the reference; None: the reference.
        free_runs: by system, (member, time, y, x), of any length.
        area_weights: over the spatial dimensions, or one of them; None: all points count alike.
        periodic: whether y and x wrap around; where not, spectra are taken through a window.
        spacing: distance between rows and between columns, in one unit.
        lags: of the autocorrelations, in steps.
        bootstrap: resamplings of the initial states behind the intervals.
        seed: of the resamplings and of ties among ranks.
        memory: bytes to work in, about.

    Returns: dimensions variable, system, lead (steps, from 1), lag, rank, wavenumber, bin,
    probability, bound (low and high of a 95 % interval), block (a stretch of a free run), y, x.
    System `truth` holds the truth's own figures over the same windows; names that start with
    ``reference_`` the reference's; names that start with ``free_`` are of the free runs, and those
    with ``free_end_`` of their last fifth.

    Raises:
        ValueError: when a system lacks a variable or a dimension, or its sizes or initial times are
            not those of the truth.
    """
    free_runs = free_runs or {}
    training = reference if training is None else training
    variables = _variables(truth)
    for name, dataset in forecasts.items():
        if name in OWN:
            raise ValueError(f"a system cannot be called {name!r}: that one is added here.")
        _check_forecast(name, dataset, truth, variables)
    systems = ["truth", *forecasts]
    systems += ["persistence"] if initial_frames is not None else []
    systems += ["climatology"] if forecasts else []
    systems += [name for name in free_runs if name not in systems]

    parts = []
    for variable in variables:
        target = truth[variable].transpose("initial", "lead", ...)
        space = tuple(map(str, target.dims[2:]))
        runs = _as_runs("reference", reference, variable, space)
        yardstick = _yardstick(runs, area_weights, lags, periodic, spacing, memory)
        readers = _readers(
            {name: data[variable] for name, data in forecasts.items()},
            target,
            None if initial_frames is None else _frames(initial_frames, variable, space),
            _as_runs("training", training, variable, space),
        )
        part = _forecast_scores(
            readers, target, yardstick, bootstrap=bootstrap, seed=seed, memory=memory
        )
        climate = run_statistics(runs, yardstick, blocks=1, memory=memory, skip_missing=True)
        part |= _reference_scores(climate, yardstick, runs.shape[1])
        for name, dataset in free_runs.items():
            free = _as_runs(f"free run {name!r}", dataset, variable, space)
            found = run_statistics(
                free, yardstick, blocks=BLOCKS, memory=memory, skip_missing=False
            )
            part |= _free_scores(name, found, climate, yardstick)
        parts.append(_labelled(part, systems, variable, target, yardstick))
    result = xr.concat(parts, dim="variable", join="outer", combine_attrs="override")
    for label, coordinate in truth.coords.items():
        if label in space and coordinate.ndim == 1:
            result = result.assign_coords({label: coordinate})
    timed = [d for d in (*forecasts.values(), truth) if "lead" in d.coords]
    if timed:
        lead = timed[0]["lead"]
        result = result.assign_coords(lead_time=("lead", lead.values, lead.attrs))
    units = [str(truth[v].attrs.get("units", "1")) for v in variables]
    names = [str(truth[v].attrs.get("long_name", v)) for v in variables]
    result = result.assign_coords(units=("variable", units), long_name=("variable", names))
    return result.assign_attrs(
        title="Scores of generated dynamics",
        initial_states=int(truth.sizes["initial"]),
        climatology_from="training" if training is not reference else "reference",
        interval="95 % bootstrap over initial states",
        bootstrap_samples=bootstrap,
        seed=seed,
    )


# What is measured


def _forecast_scores(
    readers: dict[str, tuple[Block, int]],
    target: xr.DataArray,
    yardstick: Yardstick,
    *,
    bootstrap: int,
    seed: int,
    memory: int,
) -> Scores:
    """Of every system that forecasts, and the truth's own."""
    initials = target.shape[0]
    generator = torch.Generator().manual_seed(seed)
    resampled = resamplings(initials, bootstrap, seed)
    as_is = torch.ones(1, initials, dtype=torch.float64)
    complete = shells(target.shape[2], target.shape[3], yardstick.spacing)[1]
    found: dict[str, ForecastSums] = {}
    out: Scores = {}
    for name, (read, members) in readers.items():
        per_initial = 64 * members * math.prod(target.shape[1:])
        size = max(1, memory // per_initial)
        blocks = [slice(i, min(i + size, initials)) for i in range(0, initials, size)]
        found[name] = forecast_sums(
            read, readers["truth"][0], yardstick, blocks=blocks, generator=generator
        )
        log.info("Scored %s: %d forecasts of %d members.", name, initials, members)
    own, own_resampled = (scores(found["truth"], counts) for counts in (as_is, resampled))
    reference = found["truth"].spectrum
    for name, sums in found.items():
        point, spread = scores(sums, as_is), scores(sums, resampled)
        for here, truths in ((point, own), (spread, own_resampled)):
            here["std_ratio"] = here["std_all"] / truths["std_all"]
            here["std_ratio_lead"] = here["std"] / truths["std"]
            here["increment_std_ratio"] = here["increment_std"] / truths["increment_std"]
        for score, values in point.items():
            if name == "truth" and score in NOT_OF_TRUTH:
                continue
            dims = DIMS_OF.get(score, ("lead",))
            out[score, name] = dims, values[0]
            if score in WITH_INTERVAL:
                bounds = torch.tensor(INTERVAL, dtype=torch.float64)
                interval = spread[score].quantile(bounds, dim=0) if initials > 1 else None
                if interval is not None:
                    out[f"{score}_interval", name] = ("bound", *dims), interval
        out["members", name] = (), torch.tensor(float(sums.members))
        if sums.members > 1:
            counts = sums.rank.double()
            out["rank_histogram", name] = ("lead", "rank"), counts / counts.sum(1, keepdim=True)
            out["rank_chi_square", name] = (), reduced_chi_square(counts.sum(0))
            out["rank_distance_from_flat", name] = (), distance_from_flat(counts.sum(0))
        out["spectrum", name] = ("wavenumber",), sums.spectrum.mean(0)
        out["spectrum_lead", name] = ("lead", "wavenumber"), sums.spectrum
        out |= _distribution_scores("", name, sums, found["truth"], yardstick)
        if name != "truth":
            out["log_spectral_distance_db", name] = (
                (),
                log_spectral_distance(sums.spectrum.mean(0), reference.mean(0), last=complete),
            )
            out["log_spectral_distance_db_lead", name] = (
                ("lead",),
                log_spectral_distance(sums.spectrum, reference, last=complete),
            )
    return out


def _distribution_scores(
    prefix: str,
    name: str,
    found: ForecastSums | RunStatistics,
    truth: ForecastSums | RunStatistics,
    yardstick: Yardstick,
) -> Scores:
    """Histograms and what follows from them: quantiles, tail bias, Wasserstein-1 distances."""
    probabilities = torch.tensor(PROBABILITIES, dtype=torch.float64)
    edges = yardstick.value_edges
    quantile = histogram_quantile(found.values, edges, probabilities)
    tail = quantile - histogram_quantile(truth.values, edges, probabilities)
    moved = histogram_wasserstein(found.increments, truth.increments, yardstick.increment_edges)
    return {
        (f"{prefix}value_histogram", name): (("bin",), _density(found.values, edges)),
        (f"{prefix}increment_histogram", name): (
            ("bin",),
            _density(found.increments, yardstick.increment_edges),
        ),
        (f"{prefix}quantile", name): (("probability",), quantile),
        (f"{prefix}tail_bias", name): (("probability",), tail),
        (f"{prefix}value_wasserstein", name): (
            (),
            histogram_wasserstein(found.values, truth.values, edges),
        ),
        (f"{prefix}increment_wasserstein", name): ((), moved),
    }


def _reference_scores(climate: RunStatistics, yardstick: Yardstick, length: int) -> Scores:
    """The reference's own figures; of no system."""
    mean, std = climate.mean_and_std(torch.tensor([0, length]))
    out: Scores = {
        ("reference_autocorrelation", ""): (("lag",), correlation(climate.lags.sum(0))),
        ("reference_spectrum", ""): (("wavenumber",), climate.spectrum[0]),
        ("reference_mean", ""): ((), mean[0] + _area_mean(yardstick.centre, yardstick.area)),
        ("reference_std", ""): ((), std[0]),
        ("reference_increment_std", ""): ((), torch.tensor(climate.square_increment).sqrt()),
        ("reference_mean_map", ""): (("y", "x"), yardstick.centre),
        ("reference_value_histogram", ""): (
            ("bin",),
            _density(climate.values, yardstick.value_edges),
        ),
        ("reference_increment_histogram", ""): (
            ("bin",),
            _density(climate.increments, yardstick.increment_edges),
        ),
        ("value", ""): (("bin",), _centres(yardstick.value_edges)),
        ("increment", ""): (("bin",), _centres(yardstick.increment_edges)),
    }
    if len(climate.lags) > 1:
        bounds = torch.tensor(INTERVAL, dtype=torch.float64)
        by_run = correlation(climate.lags).quantile(bounds, dim=0)
        out["reference_autocorrelation_range", ""] = ("bound", "lag"), by_run
    return out


def _free_scores(
    name: str, found: RunStatistics, climate: RunStatistics, yardstick: Yardstick
) -> Scores:
    """Figures of a free run beside the reference's climate."""
    complete = shells(*_shape(yardstick), yardstick.spacing)[1]
    edges = found.edges
    blocks, length = len(edges) - 1, int(edges[-1])
    area_mean = _area_mean(yardstick.centre, yardstick.area)
    whole = torch.tensor([0, climate.weight.shape[1]])
    mean_of_truth, std_of_truth = (part[0] for part in climate.mean_and_std(whole))
    mean, std = found.mean_and_std(edges)
    first_of_end = min(round(blocks * (1 - END)), blocks - 1)
    end = torch.stack([edges[first_of_end], edges[-1]])
    end_mean, end_std = (part[0] for part in found.mean_and_std(end))
    all_mean, all_std = (part[0] for part in found.mean_and_std(torch.tensor([0, length])))
    steps = (edges[:-1] + edges[1:] + 1).double() / 2  # the first frame is step 1
    spectrum = _over_blocks(found.spectrum, edges, 0)
    end_spectrum = _over_blocks(found.spectrum, edges, first_of_end)

    def distance(power: Tensor) -> Tensor:
        return log_spectral_distance(power, climate.spectrum[0], last=complete)

    out: dict[str, tuple[tuple[str, ...], Tensor]] = {
        "steps": ((), torch.tensor(float(length))),
        "members": ((), torch.tensor(float(len(found.weight)))),
        "step": (("block",), _padded(steps)),
        "mean": (("block",), _padded(mean + area_mean)),
        "std": (("block",), _padded(std)),
        "log_spectral_distance_db_block": (("block",), _padded(distance(found.spectrum))),
        "bias": ((), all_mean - mean_of_truth),
        "std_ratio": ((), all_std / std_of_truth),
        "log_spectral_distance_db": ((), distance(spectrum)),
        "end_bias": ((), end_mean - mean_of_truth),
        "end_std_ratio": ((), end_std / std_of_truth),
        "end_log_spectral_distance_db": ((), distance(end_spectrum)),
        "spectrum": (("wavenumber",), spectrum),
        "end_spectrum": (("wavenumber",), end_spectrum),
        "autocorrelation": (("lag",), correlation(found.lags.sum(0))),
        "increment_std_ratio": (
            (),
            torch.tensor(found.square_increment / climate.square_increment).sqrt(),
        ),
        "mean_map": (("y", "x"), found.mean),
    }
    if blocks > 1:
        out["mean_drift"] = (), drift(mean, steps=steps)
        out["std_drift"] = (), drift(std, steps=steps)
    stretch = length // blocks
    if climate.weight.shape[1] >= stretch:
        bounds = torch.tensor(INTERVAL, dtype=torch.float64)
        for which, part in zip(("mean", "std"), climate.segments(stretch), strict=True):
            part = part[~part.isnan()]
            if len(part) > 1:
                offset = area_mean if which == "mean" else 0.0
                out[f"{which}_range_of_truth"] = ("bound",), part.quantile(bounds) + offset
    labelled = {(f"free_{key}", name): value for key, value in out.items()}
    return labelled | _distribution_scores("free_", name, found, climate, yardstick)


def _over_blocks(spectrum: Tensor, edges: Tensor, first: int) -> Tensor:
    """Mean power over the blocks from ``first`` on, each by its steps."""
    steps = edges.diff()[first:].double()
    return (spectrum[first:] * (steps / steps.sum())[:, None]).sum(0)


def _padded(values: Tensor) -> Tensor:
    """To BLOCKS values, for a run that is shorter than that."""
    return torch.cat([values, torch.full((BLOCKS - len(values),), math.nan, dtype=torch.float64)])


def _density(counts: Tensor, edges: Tensor) -> Tensor:
    """Probability density in coarse bins."""
    coarse = counts.reshape(COARSE, -1).sum(1)
    return coarse / coarse.sum() / (edges[:: FINE // COARSE].diff())


def _centres(edges: Tensor) -> Tensor:
    coarse = edges[:: FINE // COARSE]
    return (coarse[:-1] + coarse[1:]) / 2


def _shape(yardstick: Yardstick) -> tuple[int, int]:
    return yardstick.centre.shape[0], yardstick.centre.shape[1]


def _area_mean(field: Tensor, area: Tensor) -> Tensor:
    return (field.nan_to_num(0.0) * area).sum() / area.sum()


# What is read


def _yardstick(
    reference: xr.DataArray,
    area_weights: xr.DataArray | None,
    lags: tuple[int, ...],
    periodic: tuple[bool, bool],
    spacing: tuple[float, float],
    memory: int,
) -> Yardstick:
    known = extent(reference, memory)
    space = reference.dims[2:]
    shape = reference.shape[2:]
    area = torch.ones(shape, dtype=torch.float64)
    if area_weights is not None:
        unknown = set(area_weights.dims) - set(space)
        if unknown or any(area_weights.sizes[d] != reference.sizes[d] for d in area_weights.dims):
            raise ValueError(
                f"area_weights have dimensions {dict(area_weights.sizes)}; the grid has "
                f"{dict(zip(space, shape, strict=True))}."
            )
        given = area_weights.transpose(*(d for d in space if d in area_weights.dims)).to_numpy()
        sizes = [n if d in area_weights.dims else 1 for d, n in zip(space, shape, strict=True)]
        area = torch.tensor(given, dtype=torch.float64).reshape(sizes).expand(shape)
    area = torch.where(known.mean.isnan(), 0.0, area)
    margin = 0.5 * (known.highest - known.lowest) or 1.0
    largest = 2 * known.largest_increment or 1.0
    return Yardstick(
        centre=known.mean,
        area=area,
        lags=tuple(lags),
        value_edges=torch.linspace(
            known.lowest - margin, known.highest + margin, FINE + 1, dtype=torch.float64
        ),
        increment_edges=torch.linspace(-largest, largest, FINE + 1, dtype=torch.float64),
        periodic=periodic,
        spacing=spacing,
    )


def _readers(
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


def _variables(truth: xr.Dataset) -> list[Hashable]:
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


def _check_forecast(
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


def _as_runs(
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


def _frames(dataset: xr.Dataset, variable: Hashable, space: tuple[str, ...]) -> xr.DataArray:
    if variable not in dataset or set(dataset[variable].dims) != {"initial", *space}:
        raise ValueError(
            f"initial_frames must have variable {variable!r} with dimensions {('initial', *space)}."
        )
    return dataset[variable].transpose("initial", *space)


# What comes out


def _labelled(
    found: Scores,
    systems: list[str],
    variable: Hashable,
    target: xr.DataArray,
    yardstick: Yardstick,
) -> xr.Dataset:
    """Scores of one variable as a dataset; NaN where a system has no such score."""
    names = dict(zip(("y", "x"), map(str, target.dims[2:]), strict=True))
    ranks = max(
        (v.shape[1] for (s, _), (_, v) in found.items() if s == "rank_histogram"), default=2
    )
    data: dict[str, Any] = {}
    for score in dict.fromkeys(score for score, _ in found):
        of = {system: found[score, system] for system in ["", *systems] if (score, system) in found}
        dims, first = next(iter(of.values()))
        labels = tuple(names.get(d, d) for d in dims)
        if "" in of:
            data[score] = labels, first.double().numpy(), _attributes(score)
            continue
        shape = [ranks if d == "rank" else n for d, n in zip(dims, first.shape, strict=True)]
        values = np.full((len(systems), *shape), np.nan)
        for system, (_, value) in of.items():
            rows: tuple[int | slice, ...] = (systems.index(system), *map(slice, value.shape))
            values[rows] = value.double().numpy()
        data[score] = ("system", *labels), values, _attributes(score)
    wavenumbers, complete = shells(target.shape[2], target.shape[3], yardstick.spacing)
    coords: dict[str, Any] = {
        "system": systems,
        "lead": ("lead", np.arange(1, target.shape[1] + 1), {"long_name": "lead", "units": "step"}),
        "lag": ("lag", np.array(yardstick.lags), {"long_name": "lag", "units": "step"}),
        "wavenumber": (
            "wavenumber",
            wavenumbers.numpy(),
            {"long_name": "wavenumber", "units": "waves per longer side", "complete_to": complete},
        ),
        "probability": list(PROBABILITIES),
        "bound": ["low", "high"],
        "rank": np.arange(ranks),
    }
    dims_used = {d for v in data.values() for d in v[0]}
    coords = {name: value for name, value in coords.items() if name in dims_used}
    return xr.Dataset(data, coords).expand_dims(variable=[str(variable)])


LONG_NAMES = {
    "crps": "fair continuous ranked probability score",
    "mean_absolute_error": "mean absolute error of the ensemble mean",
    "rmse": "root-mean-square error of the ensemble mean (skill)",
    "bias": "mean error of the ensemble mean",
    "spread": "root-mean variance of the members",
    "spread_skill": "spread-skill ratio with the factor sqrt((M + 1) / M)",
    "std": "standard deviation over initial states, members and points",
    "std_all": "standard deviation over everything",
    "std_ratio": "standard deviation over that of the truth",
    "rank_histogram": "frequency of the truth's rank among the members",
    "rank_chi_square": "reduced chi-square of the rank histogram",
    "rank_distance_from_flat": "Kullback-Leibler divergence of the rank histogram from flat",
    "autocorrelation": "correlation of frames a lag apart, anomalies from climatology",
    "free_autocorrelation": "correlation of frames a lag apart, anomalies from the run's mean",
    "increment_std": "root-mean-square increment from one frame to the next",
    "increment_wasserstein": "Wasserstein-1 distance of the increments from the truth's",
    "log_spectral_distance_db": "log-spectral distance from the truth in dB",
    "log_spectral_distance_db_lead": "log-spectral distance from the truth in dB, by lead",
    "spectrum": "isotropic power spectrum, mean over leads",
    "tail_bias": "quantile less that of the truth",
    "quantile": "quantile of anomalies from climatology",
    "free_mean": "mean over members and points in a stretch of steps",
    "free_std": "standard deviation in a stretch of steps",
}


def _attributes(score: str) -> dict[str, str]:
    name = LONG_NAMES.get(score) or LONG_NAMES.get(score.removesuffix("_interval"))
    return {"long_name": name} if name else {}
