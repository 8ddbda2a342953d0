"""Cubes where they lie: in a bucket, on a web server, in many files, of any calendar or grid."""

import functools
import http.server
import io
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from data_modules.climate_cube import ClimateCubeDataModule
from data_modules.cube import open_cube
from data_modules.errors import DataError
from data_modules.sources import Source, find_source, trouble_at

Options = dict[str, Any]


def refused(sentence: str) -> Any:
    return pytest.raises(DataError, match=re.escape(sentence))


def fields(times: Any, name: str = "pr", seed: int = 0, **attrs: Any) -> xr.Dataset:
    values = np.random.default_rng(seed).random((len(times), 4, 6)).astype(np.float32)
    return xr.Dataset(
        {name: (("time", "lat", "lon"), values, attrs)},
        {
            "time": times,
            "lat": ("lat", [60.0, 20.0, -20.0, -60.0], {"units": "degrees_north"}),
            "lon": ("lon", np.arange(0.0, 360.0, 60.0), {"units": "degrees_east"}),
        },
    )


def days(start: str, count: int, calendar: str = "standard") -> Any:
    return xr.date_range(start, periods=count, calendar=calendar, use_cftime=calendar != "standard")


# --- an S3-compatible server -------------------------------------------------------------------


STORED: dict[str, Options] = {
    "v3": {"zarr_format": 3, "consolidated": False},
    "v3 consolidated": {"zarr_format": 3, "consolidated": True},
    "v3 sharded": {
        "zarr_format": 3,
        "consolidated": False,
        "encoding": {"pr": {"chunks": (5, 4, 6), "shards": (10, 4, 6)}},
    },
    "v2": {"zarr_format": 2, "consolidated": False},
    "v2 consolidated": {"zarr_format": 2, "consolidated": True},
}


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("how", STORED)
def test_every_kind_of_zarr_in_a_bucket(s3: Options, how: str) -> None:
    dataset = fields(days("2001-01-01", 20))
    url = f"s3://climate/{how.replace(' ', '-')}.zarr"
    dataset.to_zarr(url, storage_options=s3, **STORED[how])
    cube = open_cube(url, storage_options=s3)
    assert (cube.path, list(cube.variables)) == (url, ["pr"])
    read = cube.read(slice(0, 1), slice(3, 17))
    np.testing.assert_array_equal(read[0, :, 0], dataset["pr"].values[3:17])


def test_zarr_in_a_google_bucket(gcs: Options) -> None:
    dataset = fields(days("2001-01-01", 20))
    for how in ("v3", "v2 consolidated"):
        url = f"gs://climate/{how.replace(' ', '-')}.zarr"
        dataset.to_zarr(url, storage_options=gcs, **STORED[how])
        read = open_cube(url, storage_options=gcs).read(slice(0, 1), slice(3, 17))
        np.testing.assert_array_equal(read[0, :, 0], dataset["pr"].values[3:17])
    data = ClimateCubeDataModule(
        url, in_memory=False, num_workers=2, batch_size=4, storage_options=gcs
    )
    assert next(iter(data.train_dataloader()))["frames"].shape == (4, 2, 1, 4, 6)
    for missing in ("gs://climate/none.zarr", "gs://nowhere/pr.zarr"):
        with refused(f"There is no cube at {missing}; make it first, or correct the path."):
            open_cube(missing, storage_options=gcs)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_a_bucket(s3: Options, workers: int) -> None:
    dataset = fields(days("2001-01-01", 60))
    url = f"s3://climate/batches-{workers}.zarr"
    dataset.to_zarr(
        url, storage_options=s3, consolidated=False, encoding={"pr": {"chunks": (5, 4, 6)}}
    )
    data = ClimateCubeDataModule(
        url, in_memory=False, num_workers=workers, batch_size=4, storage_options=s3
    )
    frames = torch.cat([batch["frames"] for batch in data.train_dataloader()])
    assert len(frames) == 44  # windows of two frames in 45 days
    physical = data.normalisation.denormalise(frames)
    assert float(physical.min()) >= float(dataset["pr"].values[:45].min()) - 1e-6


def test_netcdf_and_patterns_in_a_bucket(s3: Options, tmp_path: Path) -> None:
    import fsspec

    system = fsspec.filesystem("s3", **s3)
    parts = [fields(days(f"{year}-01-01", 365), seed=year) for year in (2001, 2002)]
    for year, part in zip((2001, 2002), parts, strict=True):
        part.to_netcdf(tmp_path / f"{year}.nc", engine="h5netcdf")
        system.put(str(tmp_path / f"{year}.nc"), f"climate/years/pr_{year}.nc")
    cube = open_cube("s3://climate/years/pr_*.nc", storage_options=s3)
    assert cube.path == "s3://climate/years/pr_2001.nc and 1 more"
    together = np.concatenate([part["pr"].values for part in parts])
    read = cube.read(slice(0, 1), slice(360, 370))
    np.testing.assert_array_equal(read[0, :, 0], together[360:370])
    with refused("Nothing matches s3://climate/years/ta_*.nc; correct the path."):
        open_cube("s3://climate/years/ta_*.nc", storage_options=s3)


def test_what_is_wrong_with_a_bucket(s3: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    with refused("There is no cube at s3://climate/none.zarr; make it first, or correct the path."):
        open_cube("s3://climate/none.zarr", storage_options=s3)
    with refused("There is no cube at s3://nowhere/pr.zarr; make it first, or correct the path."):
        open_cube("s3://nowhere/pr.zarr", storage_options=s3)
    with refused(
        "There are no credentials for s3://climate/pr.zarr; configure them as for any other "
        "program, give them in storage_options, or for public data {'anon': true}."
    ):
        open_cube("s3://climate/pr.zarr", storage_options={"endpoint_url": s3["endpoint_url"]})
    unreachable = s3 | {
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    with refused("s3://climate/pr.zarr cannot be reached (Could not connect to the endpoint URL"):
        open_cube("s3://climate/pr.zarr", storage_options=unreachable)


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers every request as S3 answers one whose credentials it does not accept."""

    code, status = "ExpiredToken", 400

    def do_GET(self) -> None:
        body = (
            f"<?xml version='1.0'?><Error><Code>{self.code}</Code>"
            "<Message>The provided token is not accepted.</Message></Error>"
        ).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def serve(handler: Any) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("code", "status", "sentence"),
    [
        (
            "ExpiredToken",
            400,
            "The credentials for s3://climate/pr.zarr have expired (The provided",
        ),
        (
            "AccessDenied",
            403,
            "Access to s3://climate/pr.zarr is denied (The provided token is not",
        ),
        ("InvalidAccessKeyId", 403, "Access to s3://climate/pr.zarr is denied (The provided token"),
    ],
)
def test_credentials_that_are_not_accepted(
    s3: Options, code: str, status: int, sentence: str
) -> None:
    handler = type("Handler", (Refusing,), {"code": code, "status": status})
    for url in serve(handler):
        with refused(sentence):
            open_cube("s3://climate/pr.zarr", storage_options=s3 | {"endpoint_url": url})


def test_credentials_that_expire_in_the_middle() -> None:
    error = OSError("[Errno 22] Bad Request")
    error.__cause__ = RuntimeError("An error occurred (ExpiredToken) when calling GetObject")
    assert "have expired" in str(trouble_at("s3://climate/pr.zarr", error))
    assert trouble_at("local/pr.zarr", error) is None
    assert trouble_at("s3://climate/pr.zarr", ValueError("bad chunk")) is None


def test_a_package_that_is_missing() -> None:
    error = ImportError("Install s3fs to access S3")
    assert str(trouble_at("s3://a/b.zarr", error)).endswith(
        "needs the package s3fs; install it: pip install s3fs."
    )


# --- a web server ------------------------------------------------------------------------------


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    for url in serve(functools.partial(Quiet, directory=str(folder))):
        yield url, folder


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_behind_a_web_server(web: tuple[str, Path], zarr_format: Any) -> None:
    url, folder = web
    dataset = fields(days("2001-01-01", 20))
    dataset.to_zarr(folder / "pr.zarr", zarr_format=zarr_format, consolidated=True)
    cube = open_cube(f"{url}/pr.zarr")
    read = cube.read(slice(0, 1), slice(3, 17))
    np.testing.assert_array_equal(read[0, :, 0], dataset["pr"].values[3:17])
    again = pickle.loads(pickle.dumps(cube)).read(slice(0, 1), slice(3, 17))
    np.testing.assert_array_equal(again, read)
    with refused(f"There is no cube at {url}/ta.zarr; make it first, or correct the path."):
        open_cube(f"{url}/ta.zarr")
    with refused("http://127.0.0.1:9/pr.zarr cannot be reached (Cannot connect to host"):
        open_cube("http://127.0.0.1:9/pr.zarr")


def test_netcdf_behind_a_web_server_that_gives_whole_files_only(web: tuple[str, Path]) -> None:
    url, folder = web
    dataset = fields(days("2001-01-01", 20))
    dataset.to_netcdf(folder / "pr.nc", engine="h5netcdf")
    read = open_cube(f"{url}/pr.nc").read(slice(0, 1), slice(3, 17))
    np.testing.assert_array_equal(read[0, :, 0], dataset["pr"].values[3:17])


# --- many files --------------------------------------------------------------------------------


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_files_by_year_and_by_variable(tmp_path: Path, calendar: str, suffix: str) -> None:
    parts: dict[str, list[xr.Dataset]] = {"pr": [], "ta": []}
    length = {"standard": 365, "noleap": 365, "360_day": 360}[calendar]
    for name, known in parts.items():
        for year in (2001, 2002, 2003):
            part = fields(days(f"{year}-01-01", length, calendar), name, seed=year)
            path = tmp_path / f"{name}_{year}.{suffix}"
            if suffix == "nc":
                part.to_netcdf(path, engine="h5netcdf")
            else:
                part.to_zarr(path, consolidated=False)
            known.append(part)
    paths = sorted(tmp_path.iterdir(), reverse=True)  # in no order of theirs
    for given in (f"{tmp_path}/*.{suffix}", [str(path) for path in paths]):
        cube = open_cube(given, ["ta", "pr"])
        assert len(cube.times) == 3 * length
        assert cube.runs() == [(0, 3 * length)]
        for channel, name in enumerate(("ta", "pr")):
            truth = np.concatenate([part[name].values for part in parts[name]])
            read = cube.read(slice(0, 1), slice(300, 800, 7))
            np.testing.assert_array_equal(read[0, :, channel], truth[300:800:7])
    assert open_cube(given).calendar in ("proleptic_gregorian", "noleap", "360_day")


def test_a_data_module_takes_a_list(tmp_path: Path) -> None:
    paths = []
    for year in (2001, 2002):
        paths.append(str(tmp_path / f"{year}.nc"))
        fields(days(f"{year}-01-01", 365)).to_netcdf(paths[-1], engine="h5netcdf")
    data = ClimateCubeDataModule(paths, in_memory=False, num_workers=2, batch_size=16)
    assert data.path == ", ".join(paths)
    assert data.split("train").frames == round(0.75 * 730)
    assert len(list(data.train_dataloader())) == 546 // 16
    assert find_source(paths).name == f"{paths[0]} and 1 more"


def test_files_are_never_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for year in (2001, 2002):
        fields(days(f"{year}-01-01", 365)).to_netcdf(tmp_path / f"{year}.nc", engine="h5netcdf")
    data = ClimateCubeDataModule(f"{tmp_path}/*.nc", in_memory=False, seasonal=1, batch_size=16)
    monkeypatch.setattr("data_modules.statistics.SPAN_BYTES", 2**12)
    read, real = [], xr.DataArray.compute

    def compute(self: xr.DataArray, **options: Any) -> xr.DataArray:
        read.append(self.sizes["time"])
        return real(self, **options)

    monkeypatch.setattr(xr.DataArray, "compute", compute)
    monkeypatch.setattr(xr.Dataset, "__dask_graph__", None)  # nothing may ask for all of it
    assert data.normalisation.is_seasonal
    assert sum(read) == 2 * data.split("train").frames  # once for each pass
    assert max(read) < 64
    assert data.cube.dataset["pr"].chunks is not None


def wrong(parts: list[xr.Dataset], which: str) -> list[xr.Dataset]:
    """Two files of which one does not go with the other."""
    first, second = parts
    if which == "units":
        second["pr"].attrs["units"] = "mm s-1"
    if which == "calendar":
        second = second.assign_coords(time=days("2002-01-01", 365, "noleap"))
    if which == "overlap":
        second = second.assign_coords(time=days("2001-12-31", 365))
    if which == "grid":
        second = second.assign_coords(lon=second["lon"] + 1)
    return [first, second]


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        ("units", "'pr' has units mm d-1 in {a}, but mm s-1 in {b}; convert one of them."),
        (
            "calendar",
            "'time' has calendar standard in {a}, but noleap in {b}; convert one of them.",
        ),
        ("overlap", "{a} and {b} overlap in time, from 2001-12-31T00:00:00 on; leave one of them"),
        ("grid", "{a} and 1 more cannot be joined into one cube ("),
    ],
)
def test_files_that_do_not_go_together(tmp_path: Path, which: str, sentence: str) -> None:
    parts = [fields(days(f"{year}-01-01", 365), units="mm d-1") for year in (2001, 2002)]
    a, b = tmp_path / "a.nc", tmp_path / "b.nc"
    for path, part in zip((a, b), wrong(parts, which), strict=True):
        part.to_netcdf(path, engine="h5netcdf")
    with refused(sentence.format(a=a, b=b)):
        open_cube([a, b])


def test_lists_and_patterns_of_nothing(tmp_path: Path) -> None:
    with refused("path is an empty list; name at least one cube."):
        open_cube([])
    with refused(f"Nothing matches {tmp_path}/*.nc; correct the path."):
        open_cube(f"{tmp_path}/*.nc")


# --- what cubes look like ----------------------------------------------------------------------


def test_levels_become_channels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 24, 4, 6)).astype(np.float32)
    dataset = fields(days("2001-01-01", 24)).assign_coords(
        plev=("plev", [850.0, 500.0, 250.0], {"units": "hPa", "positive": "down"})
    )
    dataset["ta"] = (("plev", "time", "lat", "lon"), values, {"units": "K"})
    dataset.to_zarr(tmp_path / "levels.zarr", consolidated=False)
    cube = open_cube(tmp_path / "levels.zarr")
    assert list(cube.variables) == ["pr", "ta_850", "ta_500", "ta_250"]
    assert cube.variables["ta_500"] == {"units": "K", "level": 500.0, "level_units": "hPa"}
    read = cube.read(slice(0, 1), slice(2, 9))
    np.testing.assert_array_equal(read[0, :, 1:], values[:, 2:9].transpose(1, 0, 2, 3))
    few = open_cube(tmp_path / "levels.zarr", ["ta_250", "pr", "ta_850"])
    read = few.read(slice(0, 1), slice(0, 24))
    np.testing.assert_array_equal(read[0, :, 0], values[2])
    np.testing.assert_array_equal(read[0, :, 2], values[0])
    with refused("has no level '700'; it gives ta_850, ta_500, ta_250."):
        open_cube(tmp_path / "levels.zarr", ["ta_700"])
    with refused("name a level twice; name each once."):
        open_cube(tmp_path / "levels.zarr", ["ta", "ta_850"])
    data = ClimateCubeDataModule(tmp_path / "levels.zarr", ["ta"])
    assert next(iter(data.train_dataloader()))["frames"].shape[2:] == (3, 4, 6)


def test_dimensions_of_one_are_of_no_consequence(tmp_path: Path) -> None:
    dataset = fields(days("2001-01-01", 12)).expand_dims(height=[2.0], band=[0])
    dataset.to_zarr(tmp_path / "a.zarr", consolidated=False)
    assert open_cube(tmp_path / "a.zarr").read(slice(0, 1), slice(0, 3)).shape == (1, 3, 1, 4, 6)


Change = Callable[[xr.Dataset], xr.Dataset]


def projected(dataset: xr.Dataset) -> xr.Dataset:
    dataset = dataset.rename(lat="yc", lon="xc").drop_vars(["yc", "xc"])
    latitudes, longitudes = np.meshgrid(np.linspace(50, 60, 4), np.linspace(0, 9, 6), indexing="ij")
    coords = {
        "yc": ("yc", np.arange(4) * 1e4, {"standard_name": "projection_y_coordinate"}),
        "xc": ("xc", np.arange(6) * 1e4, {"standard_name": "projection_x_coordinate"}),
        "lat": (("yc", "xc"), latitudes, {"units": "degrees_north"}),
        "lon": (("yc", "xc"), longitudes, {"units": "degrees_east"}),
    }
    dataset = dataset.assign_coords(coords)
    dataset["crs"] = ((), 0, {"grid_mapping_name": "lambert_conformal_conic"})
    dataset["pr"].attrs["grid_mapping"] = "crs"
    return dataset


def curvilinear(dataset: xr.Dataset) -> xr.Dataset:
    """Dimensions without coordinates, and latitudes of each cell: what a regional model writes."""
    dataset = projected(dataset).drop_vars(["yc", "xc"])
    return dataset.rename(yc="eta", xc="xi", time="record").rename(record="valid")


def rotated(dataset: xr.Dataset) -> xr.Dataset:
    dataset = dataset.rename(lat="rlat", lon="rlon")
    dataset["rlat"].attrs = {"standard_name": "grid_latitude", "units": "degrees"}
    dataset["rlon"].attrs = {"standard_name": "grid_longitude", "units": "degrees"}
    return dataset.assign_coords(rlon=("rlon", np.arange(6.0), dataset["rlon"].attrs))


def upside_down(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.isel(lat=slice(None, None, -1))


def from_the_date_line(dataset: xr.Dataset) -> xr.Dataset:
    longitudes = ("lon", np.arange(-180.0, 180.0, 60.0), {"units": "degrees_east"})
    return dataset.assign_coords(lon=longitudes)


def across_the_meridian(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign_coords(lon=("lon", [350.0, 354.0, 358.0, 2.0, 6.0, 10.0]))


def pole_to_pole(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign_coords(lat=("lat", [67.5, 22.5, -22.5, -67.5]))


def unnamed(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.rename(lat="nj", lon="ni").drop_vars(["nj", "ni"])


def transposed(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.transpose("lon", "lat", "time")


@pytest.mark.parametrize(
    ("change", "dims", "boundary", "weighted"),
    [
        (lambda d: d, ("lat", "lon"), ("reflect", "periodic"), True),
        (projected, ("yc", "xc"), ("reflect", "reflect"), False),
        (curvilinear, ("eta", "xi"), ("reflect", "reflect"), False),
        (rotated, ("rlat", "rlon"), ("reflect", "reflect"), True),
        (upside_down, ("lat", "lon"), ("reflect", "periodic"), True),
        (from_the_date_line, ("lat", "lon"), ("reflect", "periodic"), True),
        (across_the_meridian, ("lat", "lon"), ("reflect", "reflect"), True),
        (pole_to_pole, ("lat", "lon"), ("pole", "periodic"), True),
        (unnamed, ("nj", "ni"), ("reflect", "reflect"), False),
        (transposed, ("lat", "lon"), ("reflect", "periodic"), True),
    ],
)
def test_grids(
    tmp_path: Path,
    change: Change,
    dims: tuple[str, str],
    boundary: tuple[str, str],
    weighted: bool,
) -> None:
    dataset = change(fields(days("2001-01-01", 24)))
    dataset.to_netcdf(tmp_path / "grid.nc", engine="h5netcdf")
    data = ClimateCubeDataModule(tmp_path / "grid.nc")
    cube = data.cube
    assert (cube.dims, cube.boundary) == (dims, boundary)
    assert (cube.calendar, cube.step) == ("proleptic_gregorian", 86400.0)
    truth = dataset["pr"].transpose(..., *dims)
    np.testing.assert_array_equal(cube.read(slice(0, 1), slice(0, 24))[0, :, 0], truth)
    assert (data.area_weights.std() > 0) == weighted
    torch.save(data.description(), io.BytesIO())


@pytest.mark.parametrize("calendar", ["noleap", "360_day", "julian"])
def test_splits_by_dates_of_any_calendar(tmp_path: Path, calendar: str) -> None:
    times = days("2000-01-01", 1100, calendar)
    fields(times).to_zarr(tmp_path / "a.zarr", consolidated=False)
    splits = {"train": ["2000", "2001-06"], "test": ["2001-07", "2002-02-28"]}
    data = ClimateCubeDataModule(tmp_path / "a.zarr", splits=splits)
    (start, stop), = data.split("test").runs  # fmt: skip
    assert times[start] == cftime.datetime(2001, 7, 1, calendar=calendar)
    assert times[stop - 1] == cftime.datetime(2002, 2, 28, calendar=calendar)


def test_a_source_is_plain(tmp_path: Path) -> None:
    source = Source((str(tmp_path / "a.zarr"),), {"anon": True})
    assert pickle.loads(pickle.dumps(source)) == source
    zarr.create_group(tmp_path / "a.zarr")
    assert not source.open().variables
