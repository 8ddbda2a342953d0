"""Statistics against numpy, over the training split alone."""

import dask
import numpy as np
import pytest
import torch
import xarray as xr

from data_modules.cube import open_cube
from data_modules.errors import DataError
from data_modules.normalisation import Normalisation
from data_modules.splits import make_splits
from data_modules.statistics import compute_statistics


def random(dataset: xr.Dataset) -> xr.Dataset:
    generator = np.random.default_rng(0)
    shape = dataset["u"].shape
    # A mean far from zero shows cancellation, were squares summed naively.
    dataset["u"] = (dataset["u"].dims, (1e4 + generator.normal(size=shape)).astype(np.float32))
    dataset["v"] = (dataset["u"].dims, generator.gamma(0.1, size=shape).astype(np.float32))
    return dataset


def expected(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return np.array([np.nanmean(values), np.nanstd(values), np.nanmin(values), np.nanmax(values)])


@pytest.mark.parametrize("split_by", ["trajectory", "time"])
def test_against_numpy(make_cube, split_by):
    cube = open_cube(make_cube(change=random, times=np.r_[0:11, 15:24] * 1.0))
    split = make_splits(cube, split_by=split_by)["train"]
    found = compute_statistics(cube, split)
    values = cube.read(slice(*split.trajectories), slice(0, split.runs[-1][1]))
    for channel in range(2):
        ours = [found.mean, found.std, found.minimum, found.maximum]
        np.testing.assert_allclose(
            [part[channel] for part in ours], expected(values[:, :, channel]), rtol=1e-9
        )


def test_the_same_on_any_scheduler(make_cube):
    cube = open_cube(make_cube(change=random))
    split = make_splits(cube)["train"]
    with dask.config.set(scheduler="synchronous"):
        one = compute_statistics(cube, split)
    with dask.config.set(scheduler="threads"):
        assert compute_statistics(cube, split) == one


def test_missing_values_are_left_out_or_filled(make_cube):
    def hole(dataset):
        dataset = random(dataset)
        dataset["v"].values[:, ::2, 1:] = np.nan
        return dataset

    path = make_cube(change=hole)
    values = xr.open_dataset(path, engine="zarr", consolidated=False)["v"].values[:6]
    cube = open_cube(path, ["v"], missing="fill")
    found = compute_statistics(cube, make_splits(cube)["train"])
    ours = [*found.mean, *found.std, *found.minimum, *found.maximum]
    np.testing.assert_allclose(ours, expected(values), rtol=1e-6)
    cube = open_cube(path, ["v"], missing="fill", fill_value=-3.0)
    found = compute_statistics(cube, make_splits(cube)["train"])
    np.testing.assert_allclose(found.mean, expected(np.nan_to_num(values, nan=-3.0))[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "missing", "sentence"),
    [
        (2.0, "refuse", "is 2 everywhere in the training split, so that it cannot be normalised"),
        (np.nan, "fill", "has no value at all in the training split; leave it out of variables"),
        (np.nan, "refuse", r"Variable 'u' .* has missing values in the chunk of trajectory"),
    ],
)
def test_variables_without_statistics(make_cube, value, missing, sentence):
    cube = open_cube(make_cube(change=lambda d: d * 0 + value), missing=missing)
    with pytest.raises(DataError, match=sentence):
        compute_statistics(cube, make_splits(cube)["train"])


def test_normalisation_and_back():
    normalisation = Normalisation([10.0, -1.0], [2.0, 0.5])
    x = torch.tensor([[12.0, -1.5]])[..., None, None].expand(1, 2, 3, 4)
    assert torch.equal(normalisation.normalise(x)[0, :, 0, 0], torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(normalisation.denormalise(normalisation.normalise(x)), x)
