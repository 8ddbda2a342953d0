"""Batches of clips: what they hold, which split they are in, and that an epoch can be resumed."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from data_modules import DataError, TrajectoryDataModule
from data_modules.trajectories import split_by_source

CLIPS, FRAMES, ROWS, COLUMNS = 16, 4, 10, 12
TEXT = np.dtypes.StringDType()


def dataset(clips: int = CLIPS, sources: int = 8) -> xr.Dataset:
    """Clips whose values name their place; the displacement's x is 10 clip + time + x / 16."""
    clip, time, y, x = np.indices((clips, FRAMES, ROWS, COLUMNS))
    moved = np.stack([10 * clip + time + x / 16, y / 16], 2)
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (clips, ROWS, COLUMNS, 3), dtype=np.uint8)
    image[:, :, :, 0] = np.arange(COLUMNS) * 10
    frames = np.broadcast_to(image[:, None], (clips, FRAMES, ROWS, COLUMNS, 3)).copy()
    frames[..., 1] = np.arange(FRAMES)[None, :, None, None] * 10
    return xr.Dataset(
        {
            "image": (("clip", "y", "x", "channel"), image),
            "displacement": (("clip", "time", "axis", "y", "x"), moved.astype(np.float16)),
            "frames": (("clip", "time", "y", "x", "channel"), frames),
            "mask": (("clip", "y", "x"), (x[:, 0] > 6).astype(np.uint8)),
            "fps": ("clip", np.full(clips, 25.0, np.float32)),
            "quality": ("clip", np.linspace(0.5, 1, clips, dtype=np.float32)),
            "source": (
                "clip",
                np.array([f"video {c * sources // clips}" for c in range(clips)], TEXT),
            ),
        }
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "motion.zarr"
    dataset().to_zarr(path, zarr_format=3, consolidated=False)
    return path


def numbers(batch: dict[str, Tensor]) -> list[int]:
    """Which clip each is, as its displacement tells."""
    return (batch["displacement"][:, 0, 0, 0, 0].abs() / 10).floor().long().tolist()


def test_a_batch_is_what_is_on_disk(path: Path) -> None:
    data = TrajectoryDataModule(path, batch_size=2, pairs=True)
    batch = next(iter(data.test_dataloader()))
    disk, clips = dataset(), numbers(batch)
    assert clips == data.split("test").tolist()[:2]
    image = disk["image"].values[clips].astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(batch["image"], torch.from_numpy(image))
    moved = disk["displacement"].values[clips].astype(np.float32)
    assert torch.equal(batch["displacement"], torch.from_numpy(moved))
    assert batch["fps"].tolist() == [25.0, 25.0]
    assert np.array_equal(batch["mask"][:, 0].numpy(), disk["mask"].values[clips])
    time = ((batch["frame"][:, 1, 0, 0] + 1) * 12.75).round().long()
    for i, t in enumerate(time.tolist()):  # the flow is the one to the frame that is given
        assert torch.equal(batch["flow"][i], batch["displacement"][i, t])


def test_no_video_is_in_two_splits(path: Path) -> None:
    data = TrajectoryDataModule(path)
    data.setup()
    sources = dataset()["source"].values
    owners = [set(sources[clips]) for clips in data.splits.values()]
    assert [len(clips) for clips in data.splits.values()] == [12, 2, 2]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 8


def test_each_split_gets_a_video_where_there_are_as_many() -> None:
    splits = split_by_source(np.arange(3), ["a", "b", "c"])
    assert {name: clips.tolist() for name, clips in splits.items()} == {
        "train": [0],
        "validate": [1],
        "test": [2],
    }
    named = split_by_source(np.arange(3), ["a", "b", "a"], {"train": ["b"], "test": ["a"]})
    assert named["test"].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (None, "1 videos cannot be divided into train, validate, test"),
        ({"train": 0.9, "tests": 0.1}, "'tests' is no split"),
        ({"test": 1.0}, "no 'train' split"),
        ({"train": 0.9, "test": ["a"]}, "mixes fractions and lists"),
        ({"train": ["b"]}, r"names the source 'b'.*there are a"),
        ({"train": ["a"], "test": ["a"]}, "in the splits 'train' and 'test'"),
        ({"train": []}, "'train' is empty"),
        ({"train": 1.5}, "add up to more"),
    ],
)
def test_splits_that_cannot_be_are_refused(splits: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_by_source(np.arange(2), ["a", "a"], splits)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="in memory"),
        pytest.param({"in_memory": False, "shuffle_buffer": 0}, id="streamed"),
        pytest.param({"in_memory": False, "num_workers": 1}, id="streamed, 1 worker"),
    ],
)
def test_an_epoch_has_every_clip_once_and_is_resumed_at_its_batch(
    path: Path, options: dict[str, Any]
) -> None:
    def loader() -> Any:
        made = TrajectoryDataModule(
            path, batch_size=2, pairs=True, crop=(6, 8), flip=True, splits={"train": 1.0}, **options
        )
        return made.train_dataloader()

    whole = loader()
    first, second = list(whole), list(whole)
    for epoch in (first, second):
        assert Counter(n for batch in epoch for n in numbers(batch)) == Counter(range(CLIPS))
    assert [numbers(b) for b in first] != [numbers(b) for b in second]

    cut = loader()
    running = iter(cut)
    for _ in range(3):
        next(running)
    resumed = loader()
    resumed.load_state_dict(cut.state_dict())
    for expected, found in zip(first[3:], resumed, strict=True):
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_what_is_mirrored_moves_the_other_way(path: Path) -> None:
    """Whatever it is cut and turned into, pixels and displacements stay together."""
    data = TrajectoryDataModule(
        path, batch_size=16, crop=(6, 8), flip=True, pairs=True, splits={"train": 1.0}
    )
    (batch,) = data.train_dataloader()
    assert data.description()["width"] == 8
    column = ((batch["image"][:, 0] + 1) * 12.75).round()  # of the file, as red tells
    size = batch["displacement"][:, 0, 0].abs()
    clip = (size[:, 0, 0] / 10).floor()
    right = size - 10 * clip[:, None, None]
    torch.testing.assert_close(right, column / 16, atol=0.07, rtol=0)  # float16 of up to 151
    turned = column[:, 0, 0] > column[:, 0, -1]
    assert 0 < turned.sum() < 16
    moves = batch["displacement"][:, :, 0].flatten(1)[:, -1]
    assert torch.equal(moves < 0, turned & (moves != 0))
    assert (batch["displacement"][:, :, 1] >= 0).all()
    assert torch.equal(batch["mask"][:, 0] > 0, column > 6)
    assert torch.equal(batch["frame"][:, 0], batch["image"][:, 0])


def test_the_description_is_plain(path: Path, tmp_path: Path) -> None:
    data = TrajectoryDataModule(path, least_quality=0.7)
    described = data.description()
    torch.save(described, tmp_path / "d.pt")
    assert torch.load(tmp_path / "d.pt", weights_only=True) == described
    assert described["frames"] == FRAMES
    assert (described["height"], described["width"], described["fps"]) == (ROWS, COLUMNS, 25.0)
    assert sum(described["clips"].values()) == int((dataset()["quality"] >= 0.7).sum())


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda d: d.drop_vars("frames"), {"pairs": True}, "no variable 'frames'"),
        (lambda d: d.drop_vars("displacement"), {}, "no variable 'displacement'"),
        (lambda d: d.rename(axis="component"), {}, "has the dimensions"),
        (lambda d: d.assign(image=d["image"] / 255), {}, "must be uint8"),
        (lambda d: d.isel(channel=slice(2)), {}, "has 2 along 'channel'; it must be 3"),
        (lambda d: d, {"crop": (11, 4)}, r"crop is \(11, 4\)"),
        (lambda d: d, {"least_quality": 2.0}, "quality of 2 or more"),
        (
            lambda d: d.assign(displacement=d["displacement"].where(d["fps"] < 0)),
            {},
            "Clip 0 of .* not finite",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused(
    tmp_path: Path, change: Any, options: dict[str, Any], message: str
) -> None:
    change(dataset()).to_zarr(tmp_path / "m.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(DataError, match=message):
        list(TrajectoryDataModule(tmp_path / "m.zarr", **options).train_dataloader())


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no motion at .*none\.zarr"):
        TrajectoryDataModule(tmp_path / "none.zarr").setup()
