"""Feature distances of films whose features have known Gaussian laws."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from dyngen.report.assessment import summarise_distances
from dyngen.report.distance_figures import distance_figures
from dyngen.report.feature_distances import Features, feature_distances
from dyngen.report.table import score_table

SPACE = ("y", "x")


class FrameMean:
    """One feature, the mean over a frame: its law is that of a number."""

    name = "mean"
    dimension = 1

    def __call__(self, frames: Tensor) -> Tensor:
        return frames.mean((1, 2, 3))[:, None]


class LastChange:
    """One feature of a window: by how much its mean changes from its first frame to its last."""

    name = "change"

    def __call__(self, windows: Tensor) -> Tensor:
        means = windows.mean((2, 3, 4))
        return (means[:, -1] - means[:, 0])[:, None]


HERE = "test_feature_distances"
FEATURES = Features(
    frames={"class_path": f"{HERE}.FrameMean"},
    windows={4: {"class_path": f"{HERE}.LastChange"}},
    samples=100_000,
)


def fields(numbers: np.ndarray, dims: tuple[str, ...]) -> xr.Dataset:
    """Frames whose values are all their number."""
    values = np.broadcast_to(numbers[..., None, None], (*numbers.shape, 4, 4))
    return xr.Dataset({"u": ((*dims, *SPACE), values.astype(np.float32))})


def world(seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed).standard_normal
    return {
        "forecasts": {
            "shifted": fields(1.0 + draw((40, 5, 8)), ("initial", "member", "lead")),
            "wide": fields(2.0 * draw((40, 5, 8)), ("initial", "member", "lead")),
        },
        "truth": fields(draw((40, 8)), ("initial", "lead")),
        "initial_frames": fields(draw(40), ("initial",)),
        "reference": fields(draw((20, 500)), ("run", "time")),
        "free_runs": {
            "drifting": fields(draw((4, 800)) + np.linspace(0, 3, 800), ("member", "time"))
        },
        "features": FEATURES,
    }


def test_distances_of_gaussian_features_are_their_closed_form() -> None:
    found = feature_distances(**world())
    fid = found["FID_mean"]
    # Squared difference of means plus that of standard deviations.
    assert float(fid.sel(system="shifted")) == pytest.approx(1.0, abs=0.15)
    assert float(fid.sel(system="wide")) == pytest.approx(1.0, abs=0.15)
    assert float(fid.sel(system="truth")) == pytest.approx(0.0, abs=0.03)
    # Frames that repeat have no change: (0 - sqrt 2)^2, as differences have variance 2.
    fvd = found["FVD-4_change"]
    assert float(fvd.sel(system="persistence")) == pytest.approx(2.0, rel=0.1)
    assert float(fvd.sel(system="shifted")) == pytest.approx(0.0, abs=0.02)
    # The kernel (x y + 1)^3 has mean discrepancy 7 for a shift by one and 9 + 9 for twice the std.
    expected = {"shifted": _kernel_distance(1.0, 1.0), "wide": _kernel_distance(0.0, 2.0)}
    for system, value in expected.items():
        kid = float(found["KID_mean"].sel(system=system))
        assert kid == pytest.approx(value, rel=0.25), system


def _kernel_distance(mean: float, std: float) -> float:
    """MMD with (x y + 1)^3 of N(mean, std) and N(0, 1): sum of squared differences of moments."""
    moments = [1.0, mean, mean**2 + std**2, mean**3 + 3 * mean * std**2]
    own = [1.0, 0.0, 1.0, 0.0]
    return sum(c * (a - b) ** 2 for c, a, b in zip((1, 3, 3, 1), moments, own, strict=True))


def test_distance_by_lead_and_along_a_run_follow_a_drift() -> None:
    given = world()
    leads = np.linspace(0, 2, 8)
    draw = np.random.default_rng(1).standard_normal
    given["forecasts"] = {"going": fields(leads + draw((40, 5, 8)), ("initial", "member", "lead"))}
    found = feature_distances(**given)
    curve = found["FID_mean_lead"].sel(system="going").values
    np.testing.assert_allclose(curve, leads**2, atol=0.6)
    run = found["free_sliding-FID-30_mean"].sel(system="drifting")
    centre = run["start_1"].values + 14.5
    np.testing.assert_allclose(run.values, (centre * 3 / 800) ** 2, rtol=0.35, atol=0.3)
    assert run["start_1"].values[:3].tolist() == [1, 16, 31]


def test_units_do_not_matter_and_nor_does_what_is_never_observed() -> None:
    given = world()
    first = feature_distances(**given)

    def changed(dataset: xr.Dataset) -> xr.Dataset:
        dataset = 300 + 20 * dataset
        dataset["u"][..., 0, :] = np.nan
        return dataset

    for key in ("truth", "initial_frames", "reference"):
        given[key] = changed(given[key])
    for key in ("forecasts", "free_runs"):
        given[key] = {name: changed(data) for name, data in given[key].items()}
    second = feature_distances(**given)
    # A quarter of the points is zero: features shrink by as much, distances by its square.
    ratio = second["FID_mean"].sel(system="wide") / first["FID_mean"].sel(system="wide")
    assert float(ratio) == pytest.approx(0.75**2, rel=1e-3)


def test_a_forecast_with_holes_is_refused() -> None:
    given = world()
    given["forecasts"]["wide"]["u"][3, 2, 1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="'u' of system 'wide' has values that are missing"):
        feature_distances(**given)


def test_scattering_is_the_default_and_warns_of_few_samples(
    caplog: pytest.LogCaptureFixture,
) -> None:
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> np.ndarray:
        return torch.randn(*shape, 16, 16, generator=draw).numpy()

    reference = xr.Dataset({"u": (("run", "time", *SPACE), noise(2, 80))})
    smooth = xr.Dataset({"u": (("member", "time", *SPACE), noise(2, 60))})
    smooth["u"] = smooth["u"].rolling(x=3, center=True, min_periods=1).mean()
    same = xr.Dataset({"u": (("member", "time", *SPACE), noise(2, 60))})
    found = feature_distances(
        {},
        None,
        reference=reference,
        free_runs={"smooth": smooth, "same": same},
        features=Features(samples=80),
    )
    fid = found["free_FID_scattering-j3-l4"]
    assert float(fid.sel(system="smooth")) > 5 * float(fid.sel(system="same"))
    fvd = found["free_FVD_scattering-j3-l4-t3"]
    assert float(fvd.sel(system="smooth")) > 5 * float(fvd.sel(system="same"))
    assert "samples are few for 46 features" in caplog.text


def test_tiny_frames_are_refused() -> None:
    reference = fields(np.zeros((2, 40)), ("run", "time")).isel(y=slice(0, 2), x=slice(0, 2))
    with pytest.raises(ValueError, match="2 x 2 cells are too small for scattering"):
        feature_distances({}, None, reference=reference)


def test_summary_and_figures() -> None:
    found = feature_distances(**world())
    summary = summarise_distances(found)
    assert set(summary["FID_mean"]) == {"truth", "shifted", "wide", "persistence"}
    assert list(summary["FID_mean_lead"]["wide"]) == [str(lead) for lead in range(1, 9)]
    figures = distance_figures(found)
    assert {"distances", "distance_lead", "free_distance_start_1"} <= set(figures)
    panels = figures["distances"].axes
    assert {axes.get_title("left").splitlines()[0] for axes in panels if axes.get_visible()} >= {
        "FID",
        "KID",
        "FVD-4",
    }
    bars = [bar.get_width() for bar in panels[0].patches]
    assert bars[1] == pytest.approx(summary["FID_mean"]["shifted"])


def test_the_table_names_distances_with_their_features() -> None:
    summary = {
        "crps": {"a": {"1": 0.5}, "b": {"1": 0.6}},
        "spread_skill": {},
        "autocorrelation": {},
        "std_ratio": {},
        "log_spectral_distance_db": {},
        "feature_distances": {
            "FID_mean": {"truth": 0.1, "a": 3.0, "b": 2.0},
            "FID_mean_floor": {"a": 0.2, "b": 0.2},
            "FID_mean_lead": {"a": {"1": 1.0}},
        },
    }
    headings, rows = score_table(summary)
    column = headings.index("FID mean ↓") - 1
    cells = {row.system: row.cells[column] for row in rows}
    assert {system: cell.text for system, cell in cells.items()} == {
        "a": "3.00",
        "b": "2.00",
        "truth": "0.100",
    }
    assert [system for system, cell in cells.items() if cell.best] == ["b"]
    assert sum("FID" in heading for heading in headings) == 1
