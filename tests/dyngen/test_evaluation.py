"""`dyngen evaluate` on rollouts that this library did not write."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scoringrules
import xarray as xr

from dyngen.cli import main

DAYS, LAT, LON, LEADS, MEMBERS = 400, 16, 24, 4, 3
STARTS = np.array([355, 360, 366, 371, 380, 390])  # in the last eighth, which is the test split
KELVIN = {"units": "K", "long_name": "temperature"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A daily cube, a forecast of it as WeatherBench lays them out, and a film of its climate."""
    folder = tmp_path_factory.mktemp("world")
    draw = np.random.default_rng(0)
    values = np.zeros((DAYS, LAT, LON))
    noise = draw.standard_normal((DAYS, LAT, LON))
    for day in range(1, DAYS):
        values[day] = 0.8 * values[day - 1] + 0.6 * noise[day]
    time = np.datetime64("2001-01-01", "D") + np.arange(DAYS)
    coords = {
        "time": time.astype("datetime64[ns]"),
        "lat": (
            "lat",
            np.linspace(-75, 75, LAT),
            {"standard_name": "latitude", "units": "degrees_north"},
        ),
        "lon": (
            "lon",
            np.arange(LON) * 15.0,
            {"standard_name": "longitude", "units": "degrees_east"},
        ),
    }
    cube = xr.Dataset({"t": (("time", "lat", "lon"), values.astype(np.float32), KELVIN)}, coords)
    cube.to_zarr(folder / "cube.zarr", zarr_format=3, consolidated=False)
    members = np.stack(
        [
            0.8 ** (lead + 1) * values[STARTS][:, None]
            + draw.standard_normal((len(STARTS), MEMBERS, LAT, LON)) * (0.5 + 0.1 * lead)
            for lead in range(LEADS)
        ],
        axis=1,
    )  # start, lead, member, lat, lon
    forecast = xr.Dataset(
        {
            "t": (
                ("time", "prediction_timedelta", "number", "longitude", "latitude"),
                members[..., ::-1, :].swapaxes(-1, -2).astype(np.float32),  # north first
                KELVIN,
            )
        },
        {
            "time": coords["time"][STARTS],
            "prediction_timedelta": np.arange(1, LEADS + 1) * np.timedelta64(1, "D"),
            "latitude": coords["lat"][1][::-1],
            "longitude": coords["lon"][1],
        },
    )
    forecast.to_netcdf(folder / "others.nc", engine="h5netcdf")
    film = cube.isel(time=slice(0, 60)).rename(lat="latitude", lon="longitude")
    film.to_netcdf(folder / "film.nc", engine="h5netcdf")
    truth = np.stack([values[STARTS + lead] for lead in range(1, LEADS + 1)], axis=1)
    return {"folder": folder, "members": members, "truth": truth, "forecast": forecast}


def evaluated(
    world: dict[str, Any], out: Path, *rollouts: str, options: tuple[str, ...] = ()
) -> dict:
    reference = str(world["folder"] / "cube.zarr")
    common = ("--reference", reference, "--out", str(out), "--bootstrap", "20")
    main(["evaluate", *rollouts, *common, *options])
    return json.loads((out / "summary.json").read_text())


def test_scores_are_those_of_the_members_and_the_truth(
    world: dict[str, Any], tmp_path: Path
) -> None:
    forecast, film = world["folder"] / "others.nc", world["folder"] / "film.nc"
    options = ("--features.samples", "40")
    summary = evaluated(world, tmp_path / "e", str(forecast), f"a_film={film}", options=options)
    area = np.cos(np.deg2rad(np.linspace(-75, 75, LAT)))[:, None]
    for lead in range(LEADS):
        score = scoringrules.crps_ensemble(
            world["truth"][:, lead], world["members"][:, lead], m_axis=1, estimator="fair"
        )
        expected = (score * area).mean() / area.mean()
        assert summary["crps"]["others"][str(lead + 1)] == pytest.approx(expected, rel=1e-4)
    last = world["truth"][:, 0]
    assert summary["crps"]["persistence"]["1"] > summary["crps"]["others"]["1"]
    assert last.shape == (len(STARTS), LAT, LON)
    assert summary["free_run"]["a_film"]["steps"] == 60
    assert summary["free_run"]["a_film"]["std_ratio"] == pytest.approx(1, abs=0.3)
    assert "FID_scattering-j3-l4-mirror-y" in summary["feature_distances"]
    scores = xr.open_dataset(tmp_path / "e" / "scores.nc", engine="h5netcdf")
    assert set(scores["system"].values) >= {"others", "a_film", "persistence", "climatology"}
    page = (tmp_path / "e" / "report.html").read_text()
    assert "others" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def refusal(
    world: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: xr.Dataset | None,
    *arguments: str,
) -> str:
    """What is said of a changed forecast, in one line."""
    given = list(arguments)
    if changed is not None:
        changed.to_netcdf(tmp_path / "changed.nc", engine="h5netcdf")
        given = [str(tmp_path / "changed.nc"), *given]
    if "--reference" not in given:
        given += ["--reference", str(world["folder"] / "cube.zarr")]
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *given, "--out", str(tmp_path / "e")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert not (tmp_path / "e").exists()
    return said[0]


def test_what_does_not_fit_is_named(
    world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast = world["forecast"]
    celsius = forecast.copy()
    celsius["t"] = forecast["t"].assign_attrs(units="degC")
    shifted = forecast.assign_coords(longitude=forecast["longitude"] + 5)
    coarse = forecast.isel(latitude=slice(0, 8))
    late = forecast.assign_coords(time=forecast["time"] + np.timedelta64(400, "D"))
    hours = forecast.assign_coords(
        prediction_timedelta=np.arange(1, LEADS + 1) * np.timedelta64(36, "h")
    )
    cases: list[tuple[xr.Dataset, list[str]]] = [
        (celsius, ["'t'", "'degC'", "'K'"]),
        (shifted, ["'lon'", "5", "one grid"]),
        (coarse, ["8 points along 'lat'", "16"]),
        (late, ["has no frame at time", "2003"]),
        (hours, ["leads", "not evenly spaced frames"]),
        (forecast.rename(t="z"), ["no variable in common", "z", "t"]),
        (forecast.expand_dims(level=[1, 2]), ["'level'", "left over"]),
    ]
    for changed, words in cases:
        said = refusal(world, tmp_path, capsys, changed)
        for word in words:
            assert word in said, said
    film = str(world["folder"] / "film.nc")
    assert "'film'" in refusal(world, tmp_path, capsys, None, film, film)
    assert "name a rollout" in refusal(world, tmp_path, capsys, None, "--rollouts", "[]")
    nowhere = refusal(world, tmp_path, capsys, None, film, "--reference", str(tmp_path / "no.zarr"))
    assert "no.zarr" in nowhere
