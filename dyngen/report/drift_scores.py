"""Whether a long run stays where it began and where the truth is, beside how far the truth strays.

Every distance of the run's last block of years from the reference has beside it the distance of
each block of the reference from the rest of the reference: what is no larger is no drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from dyngen.metrics.extremes import fit_extreme_value_law, return_level
from dyngen.metrics.spectra import log_spectral_distance
from dyngen.report.drift_sums import DRY, WET, Ruler, YearSums, spread_out
from dyngen.report.run_extremes import mean_of_sorted

LEVEL = 0.95
PERIODS = (1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50)  # years, of return levels
TOLD_PERIOD = 10.0
FEWEST_MAXIMA = 5


class Trend(NamedTuple):
    """A straight line through yearly values: its slope per year, and the slope's standard error."""

    slope: float
    standard_error: float


def trend(values: np.ndarray) -> Trend:
    """Least squares through yearly values (Y,).

    The standard error is that of as many independent years as the correlation of the residuals from
    one year to the next leaves, `Y (1 - r) / (1 + r)`, where r is positive (Santer et al. 2000, J.
    Geophys. Res. 105, 7337).

    Raises:
        ValueError: for fewer than three years.
    """
    count = len(values)
    if count < 3:
        raise ValueError(f"a trend and its error want three years or more, not {count}.")
    time = np.arange(count) - (count - 1) / 2
    slope = float(time @ values / (time @ time))
    left = values - values.mean() - slope * time
    power = float(left @ left)
    r = float(left[1:] @ left[:-1]) / power if power > 0 else 0.0
    effective = count * (1 - max(r, 0.0)) / (1 + max(r, 0.0))
    freedom = max(effective - 2, 1.0)
    return Trend(slope, math.sqrt(power / freedom / float(time @ time)))


def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t: Cornish-Fisher's expansion (Abramowitz & Stegun 1964, 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


class MapLaw(NamedTuple):
    """Mean map of n years, the variance of a single year's map, and n."""

    mean: np.ndarray
    variance: np.ndarray
    years: int


def map_law(sums: YearSums, blocks: list[int]) -> MapLaw:
    """What the years of some blocks of all members say of the yearly mean at each cell."""
    years = int(sums.sizes[blocks].sum()) * len(sums.map_sum)
    total = sums.map_sum[:, blocks].sum((0, 1))
    square = sums.map_square[:, blocks].sum((0, 1))
    mean = total / years
    variance = np.maximum(square - years * mean**2, 0) / (years - 1)
    return MapLaw(mean, variance, years)


def within_spread(mean: np.ndarray, years: int, law: MapLaw) -> np.ndarray:
    """Where the mean map of so many years is what the reference's years would give, 19 times in 20.

    If both are means of independent years of one climate, their difference over
    `s sqrt(1 / years + 1 / n)`, with s^2 the reference's variance from year to year over n years,
    has Student's law of n - 1 degrees of freedom; within is within its central 95 %. A perfect run
    is within at 95 % of the area, not at all of it.
    """
    bound = student_quantile((1 + LEVEL) / 2, law.years - 1)
    return np.abs(mean - law.mean) <= bound * np.sqrt(
        law.variance * (1 / years + 1 / law.years) + 1e-12 * law.variance.mean()
    )


def drift_scores(run: YearSums, reference: YearSums, ruler: Ruler) -> dict[str, Any]:
    """Everything told of one variable, as plain numbers.

    Args:
        run: of the rollout.
        reference: of what it is held against.
        ruler: what both were measured with.

    Returns:
        Name -> number, or mapping of names to numbers. Of each distance there are `last` (the last
        block of years from the reference), `first`, and `reference` (mean over the reference's
        blocks, each from the rest of it). A trend is None where there are fewer than three years.
    """
    others = list(range(len(reference.sizes)))
    whole = float(reference.annual.mean())
    found: dict[str, Any] = {
        "years": len(run.years),
        "members": len(run.annual),
        "block_years": run.sizes.tolist(),
        "reference_years": len(reference.years),
        "reference_block_years": reference.sizes.tolist(),
        "missing_values": run.missing,
        "mean": {
            "reference": whole,
            "run": float(run.annual.mean()),
            "first": float(run.of_block(run.annual, 0).mean()),
            "last": float(run.of_block(run.annual, -1).mean()),
            "reference_year_to_year_std": float(reference.annual.std(axis=1, ddof=1).mean()),
            "run_year_to_year_std": float(run.annual.std(axis=1, ddof=1).mean()),
        },
        "trend": _trends(run.annual, whole),
        "reference_trend": _trends(reference.annual, whole),
        "map": _map_scores(run, reference, ruler, others),
        "zonal_mean_rms": _distances(run, reference, lambda s, b: _zonal(s, b), _rms_rows(ruler)),
        "seasonal_cycle_rms": {
            region: _distances(
                run,
                reference,
                lambda s, b, r=r: _cycle(s, b)[:, r],  # type: ignore[misc]
                lambda a, b: float(np.sqrt(np.mean((a - b) ** 2))),
            )
            for r, region in enumerate(ruler.regions)
        },
        "variance_ratio": _distances(run, reference, _variance, lambda a, b: float(a / b)),
        "spectrum_db": _distances(run, reference, _spectrum, _decibels),
    }
    if min(len(sums.years) for sums in (run, reference)) >= FEWEST_MAXIMA:
        level = _level_of(ruler)
        found["return_level_ratio"] = {
            "period_years": TOLD_PERIOD,
            **_distances(run, reference, level, lambda a, b: float(a / b)),
        }
    if run.spells is not None and reference.spells is not None:
        for kind, name in ((DRY, "dry"), (WET, "wet")):
            found[f"mean_{name}_spell_days"] = _spell_days(run, reference, kind, mean_spell)
            found[f"long_{name}_spell_days"] = _spell_days(run, reference, kind, long_spell)
    return found


def _trends(annual: np.ndarray, whole: float) -> dict[str, float] | None:
    """Mean slope over the members, and its error."""
    if annual.shape[1] < 3:
        return None
    lines = [trend(values) for values in annual]
    slope = 100 * float(np.mean([line.slope for line in lines]))
    error = 100 * math.sqrt(sum(line.standard_error**2 for line in lines)) / len(lines)
    return {
        "per_century": slope,
        "standard_error": error,
        "percent_per_century": 100 * slope / abs(whole),
        "percent_standard_error": 100 * error / abs(whole),
    }


def _map_scores(
    run: YearSums, reference: YearSums, ruler: Ruler, others: list[int]
) -> dict[str, Any]:
    law = map_law(reference, others)
    area = ruler.area

    def fraction(which: int, against: MapLaw) -> float:
        years = int(run.sizes[which])
        inside = [within_spread(map_ / years, years, against) for map_ in run.map_sum[:, which]]
        return float(np.mean([area[one].sum() for one in inside]))

    own = []
    for block in others:
        rest = [b for b in others if b != block]
        size = int(reference.sizes[block])
        if reference.sizes[rest].sum() * len(reference.annual) < 3:
            continue
        left = map_law(reference, rest)
        for total in reference.map_sum[:, block]:
            own.append(float(area[within_spread(total / size, size, left)].sum()))
    first, last = map_law(run, [0]), map_law(run, [len(run.sizes) - 1])
    half = math.sqrt(1 / first.years + 1 / last.years)
    stays = np.abs(last.mean - first.mean) <= student_quantile(
        (1 + LEVEL) / 2, law.years - 1
    ) * half * np.sqrt(law.variance + 1e-12 * law.variance.mean())
    return {
        "within_spread_fraction": {
            "last": fraction(-1, law),
            "first": fraction(0, law),
            "reference_blocks": own,
            "expected": LEVEL,
        },
        "last_within_spread_of_first_fraction": float(area[stays].sum()),
        "rms": _distances(
            run,
            reference,
            lambda s, b: map_law_mean(s, b),
            lambda a, b: float(np.sqrt((area * (a - b) ** 2).sum())),
        ),
    }


def map_law_mean(sums: YearSums, blocks: list[int]) -> np.ndarray:
    """(H, W) mean of some blocks of all members."""
    years = int(sums.sizes[blocks].sum()) * len(sums.map_sum)
    mean: np.ndarray = sums.map_sum[:, blocks].sum((0, 1)) / years
    return mean


def _distances(
    run: YearSums,
    reference: YearSums,
    what: Callable[[YearSums, list[int]], Any],
    between: Callable[[Any, Any], float],
) -> dict[str, Any]:
    """How far the first and the last block are from the reference, and its blocks from its rest."""
    others = list(range(len(reference.sizes)))
    whole = what(reference, others)
    own = [
        between(what(reference, [b]), what(reference, [o for o in others if o != b]))
        for b in others
    ]
    return {
        "first": between(what(run, [0]), whole),
        "last": between(what(run, [len(run.sizes) - 1]), whole),
        "reference_blocks": own,
    }


def chosen_years(sums: YearSums, blocks: list[int]) -> np.ndarray:
    """Numbers of the years of some blocks."""
    return np.concatenate([np.arange(sums.edges[b], sums.edges[b + 1]) for b in blocks])


def _cycle(sums: YearSums, blocks: list[int]) -> np.ndarray:
    """(12, R)."""
    cycle: np.ndarray = sums.month[:, chosen_years(sums, blocks)].mean((0, 1))
    return cycle


def _zonal(sums: YearSums, blocks: list[int]) -> np.ndarray:
    """(H,)."""
    zonal: np.ndarray = map_law_mean(sums, blocks).mean(-1)
    return zonal


def _rms_rows(ruler: Ruler) -> Callable[[np.ndarray, np.ndarray], float]:
    rows = ruler.area.sum(1)
    return lambda a, b: float(np.sqrt((rows * (a - b) ** 2).sum()))


def _variance(sums: YearSums, blocks: list[int]) -> float:
    return float(sums.variance[:, chosen_years(sums, blocks)].mean())


def _spectrum(sums: YearSums, blocks: list[int]) -> np.ndarray:
    spectrum: np.ndarray = sums.spectrum[:, chosen_years(sums, blocks)].mean((0, 1))
    return spectrum


def _decibels(power: np.ndarray, reference: np.ndarray) -> float:
    return float(log_spectral_distance(torch.from_numpy(power), torch.from_numpy(reference)))


def level_curve(
    sums: YearSums, years: np.ndarray, ruler: Ruler, periods: tuple[float, ...] = PERIODS
) -> np.ndarray:
    """(periods,) return levels of some years of all members, as in `run_extremes`."""
    maxima = torch.from_numpy(spread_out(sums.maxima, years))
    area = torch.from_numpy(np.ascontiguousarray(ruler.area[ruler.spread])).flatten()
    law = fit_extreme_value_law(mean_of_sorted(maxima, area))
    return return_level(law, torch.tensor(periods, dtype=torch.float64)).numpy()


def _level_of(ruler: Ruler) -> Callable[[YearSums, list[int]], float]:
    def level(sums: YearSums, blocks: list[int]) -> float:
        years = chosen_years(sums, blocks)
        if len(years) * len(sums.maxima) < FEWEST_MAXIMA:
            return math.nan
        return float(level_curve(sums, years, ruler, (TOLD_PERIOD,))[0])

    return level


def mean_spell(counts: np.ndarray) -> float:
    """Mean length of the spells counted (L,) by length."""
    return float(counts @ np.arange(1, len(counts) + 1) / counts.sum()) if counts.any() else 0.0


def long_spell(counts: np.ndarray) -> float:
    """The length that one spell in twenty exceeds."""
    if not counts.any():
        return 0.0
    return float(np.searchsorted(np.cumsum(counts) / counts.sum(), LEVEL - 1e-12) + 1)


def _spell_days(
    run: YearSums, reference: YearSums, kind: int, of: Callable[[np.ndarray], float]
) -> dict[str, Any]:
    def days(sums: YearSums, blocks: list[int]) -> float:
        assert sums.spells is not None
        return of(sums.spells[:, blocks, kind, 0].sum((0, 1)))

    others = list(range(len(reference.sizes)))
    return {
        "first": days(run, [0]),
        "last": days(run, [len(run.sizes) - 1]),
        "reference": days(reference, others),
        "reference_blocks": [days(reference, [b]) for b in others],
    }


def drift_curves(
    run: YearSums, reference: YearSums, ruler: Ruler, target: xr.DataArray
) -> xr.Dataset:
    """What is drawn, labelled: everything by year, month, region, row, cell and wavenumber.

    Args:
        run, reference, ruler: as for `drift_scores`.
        target: the reference itself, for the names and coordinates of its space.
    """
    rows, columns = map(str, target.dims[-2:])
    law = map_law(reference, list(range(len(reference.sizes))))
    sides = {"reference": (reference, None), "first": (run, 0), "last": (run, -1)}
    maps, zonal, cycle, spectrum, levels, spells = [], [], [], [], [], []
    for sums, block in sides.values():
        blocks = list(range(len(sums.sizes)))
        some = blocks if block is None else [blocks[block]]
        maps.append(map_law_mean(sums, some))
        zonal.append(_zonal(sums, some))
        cycle.append(_cycle(sums, some))
        spectrum.append(_spectrum(sums, some))
        levels.append(_stretch_levels(sums, block, len(reference.years), ruler))
        if sums.spells is not None:
            spells.append(sums.spells[:, some].sum((0, 1)))
    last = int(run.sizes[-1])
    inside = [within_spread(one / last, last, law) for one in run.map_sum[:, -1]]
    blocks = list(range(len(reference.sizes)))
    data: dict[str, Any] = {
        "annual_mean": (("member", "year"), run.annual),
        "annual_variance": (("member", "year"), run.variance),
        "reference_annual_mean": (("reference_year",), reference.annual.mean(0)),
        "reference_annual_variance": (("reference_year",), reference.variance.mean(0)),
        "mean_map": (("stretch", rows, columns), np.stack(maps)),
        "within_spread": ((rows, columns), np.mean(inside, axis=0)),
        "year_to_year_std": ((rows, columns), np.sqrt(law.variance)),
        "zonal_mean": (("stretch", rows), np.stack(zonal)),
        "reference_zonal_mean": (
            ("block", rows),
            np.stack([_zonal(reference, [b]) for b in blocks]),
        ),
        "seasonal_cycle": (("stretch", "month", "region"), np.stack(cycle)),
        "reference_seasonal_cycle": (
            ("block", "month", "region"),
            np.stack([_cycle(reference, [b]) for b in blocks]),
        ),
        "zonal_spectrum": (("stretch", "zonal_wavenumber"), np.stack(spectrum)),
        "reference_zonal_spectrum": (
            ("block", "zonal_wavenumber"),
            np.stack([_spectrum(reference, [b]) for b in blocks]),
        ),
        "return_level": (("stretch", "return_period"), np.stack(levels)),
    }
    if len(spells) == len(sides):
        dims = ("stretch", "spell", "region", "spell_days")
        data["spells"] = (dims, np.stack(spells))
    coords: dict[str, Any] = {
        "stretch": list(sides),
        "year": run.years,
        "reference_year": reference.years,
        "month": np.arange(1, 13),
        "region": list(ruler.regions),
        "return_period": ("return_period", list(PERIODS), {"units": "years"}),
        "spell": ["dry", "wet"],
        **{name: target[name] for name in (rows, columns) if name in target.coords},
    }
    if "spells" not in data:
        del coords["spell"]
    curves = xr.Dataset(data, coords)
    curves.attrs["units"] = str(target.attrs.get("units", "1"))
    curves.attrs["first_years"] = int(run.sizes[0])
    curves.attrs["last_years"] = last
    return curves.expand_dims(variable=[str(target.name)])


def _stretch_levels(sums: YearSums, block: int | None, length: int, ruler: Ruler) -> np.ndarray:
    """Return levels of a stretch as long as the reference, or of half a shorter run."""
    count = len(sums.years)
    kept = count if block is None else max(min(length, count // 2), int(sums.sizes[block]))
    years = np.arange(count)[-kept:] if block == -1 else np.arange(count)[:kept]
    if kept * len(sums.maxima) < FEWEST_MAXIMA:
        return np.full(len(PERIODS), np.nan)
    return level_curve(sums, years, ruler)
