"""Epochs: every window once, in another order each time, and the same order after a resume."""

import logging
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from data_modules.climate_cube import ClimateCubeDataModule
from data_modules.cube import Cube
from data_modules.errors import DataError
from data_modules.loader import WindowLoader
from data_modules.windows import Windows, chunked_spans

PATHS = [
    pytest.param({"in_memory": True}, id="in memory"),
    pytest.param({"in_memory": True, "num_workers": 2}, id="in memory, 2 workers"),
    pytest.param({"in_memory": False}, id="streamed"),
    pytest.param({"in_memory": False, "num_workers": 2}, id="streamed, 2 workers"),
]


class SmallGroups(ClimateCubeDataModule):
    """Spans of 12 frames and groups of 50, so that a small cube has several of both."""

    def _loader(self, name: str, shuffle: bool = False, scatter: bool = False) -> WindowLoader:
        loader = super()._loader(name, shuffle, scatter)
        if not self.in_memory:
            split = self.split(name)
            windows = Windows(split, self.window_length, self.window_stride, self.frame_stride)
            loader.spans = tuple(chunked_spans(windows, self.cube.chunks, most_frames=12))
            loader.group_frames = 50
        return loader


def module(path: Path, **options: Any) -> ClimateCubeDataModule:
    return SmallGroups(path, **{"window_length": 3, "batch_size": 7} | options)


def windows(cube: ClimateCubeDataModule, batch: dict[str, Tensor]) -> list[tuple[int, ...]]:
    """(trajectory, frame, frame, ...) of each window, which the values of the cube tell."""
    values = cube.normalisation.denormalise(batch["frames"])[:, :, 0, 0, 0].double()
    place = values.round().long()
    trajectory, frames = place // 1000, place % 1000
    assert (trajectory == trajectory[:, :1]).all()
    assert torch.equal(frames * 0.5, batch["time"])
    return [(int(t[0]), *f.tolist()) for t, f in zip(trajectory, frames, strict=True)]


def epoch(cube: ClimateCubeDataModule, loader: WindowLoader) -> list[tuple[int, ...]]:
    return [window for batch in loader for window in windows(cube, batch)]


@pytest.mark.parametrize("options", PATHS)
def test_an_epoch_has_each_window_once(make_cube, options):
    cube = module(make_cube(), window_stride=2, frame_stride=2, **options)
    loader = cube.train_dataloader()
    expected = {(t, s, s + 2, s + 4) for t in range(6) for s in range(0, 16, 2)}
    batches = [windows(cube, batch) for batch in loader]
    assert [len(batch) for batch in batches] == [7] * len(loader) == [7] * (48 // 7)
    seen = [window for batch in batches for window in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= expected
    over_epochs = {window for _ in range(5) for window in epoch(cube, loader)}
    assert over_epochs == expected  # what does not fill a batch differs from epoch to epoch


@pytest.mark.parametrize("options", PATHS)
def test_prediction_is_in_order_and_evaluation_is_complete(make_cube, options):
    cube = module(make_cube(), **options)
    everything = [w for batch in cube.test_dataloader() for w in windows(cube, batch)]
    assert sorted(everything) == [(7, s, s + 1, s + 2) for s in range(18)]
    loader = cube.predict_dataloader()
    batches = [windows(cube, batch) for batch in loader]
    assert [w for b in batches for w in b] == [(7, s, s + 1, s + 2) for s in range(18)]
    assert {len(batch) for batch in batches} == {6}  # 18 in 3, none left with a rest
    assert epoch(cube, loader) == [window for batch in batches for window in batch]


@pytest.mark.parametrize("in_memory", [True, False])
def test_epochs_differ_and_seeds_differ(make_cube, in_memory):
    path = make_cube()
    cube = module(path, in_memory=in_memory)
    loader = cube.train_dataloader()
    first, second = epoch(cube, loader), epoch(cube, loader)
    assert first != second
    assert first != sorted(first)
    assert epoch(cube, module(path, in_memory=in_memory).train_dataloader()) == first
    assert epoch(cube, module(path, in_memory=in_memory, seed=1).train_dataloader()) != first


def test_streaming_reads_no_chunk_twice_in_a_group_and_mixes_spans(make_cube):
    cube = module(make_cube(), in_memory=False)
    groups = cube.train_dataloader().groups(epoch=0)
    assert len(groups) > 2
    assert all(sum(span.size for span in group.spans) <= 50 for group in groups)
    assert any(len(group.spans) > 1 for group in groups)
    spans = [span for group in groups for span in group.spans]
    assert Counter(spans).most_common(1)[0][1] == 1


@pytest.mark.parametrize("options", PATHS)
@pytest.mark.parametrize("given", [1, 5, 14, 15])
def test_resume_neither_repeats_nor_skips(make_cube, options, given):
    path = make_cube()
    cube = module(path, **options)
    loader = cube.train_dataloader()
    assert len(loader) == 15
    whole, following = epoch(cube, loader), epoch(cube, loader)

    loader = module(path, **options).train_dataloader()
    batches = iter(loader)
    seen = [window for _ in range(given) for window in windows(cube, next(batches))]
    state = loader.state_dict()
    resumed = module(path, **options).train_dataloader()
    resumed.load_state_dict(state)
    if given < len(loader):
        seen += epoch(cube, resumed)
    assert seen == whole
    assert epoch(cube, resumed) == following


def test_few_blocks_are_in_memory(make_cube):
    cube = module(make_cube(), in_memory=False)
    loader = cube.train_dataloader()
    loader.group_frames = 20
    assert len(loader.groups(0)) > 4
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most, real = 0, loader.read

    def read(spans):
        nonlocal most
        block = real(spans)
        alive.add(block.frames)
        most = max(most, len(alive))
        return block

    loader.read = read
    assert len(epoch(cube, loader)) == 105
    assert most <= 3


def test_chunks_of_several_trajectories(make_cube, tmp_path):
    path = make_cube()
    source = xr.open_dataset(path, engine="zarr", consolidated=False)
    source["u"].encoding.clear()
    deep = tmp_path / "deep.zarr"
    source.to_zarr(deep, consolidated=False, encoding={"u": {"chunks": (4, 6, 4, 5)}})
    cube = module(deep, in_memory=False)
    reads, real = [], Cube.read

    def read(self, trajectories, frames, out=None):
        reads.append((trajectories.start, trajectories.stop, frames.start, frames.stop))
        return real(self, trajectories, frames, out)

    cube.statistics  # noqa: B018 (before reads are counted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cube, "read", read)
        seen = epoch(cube, cube.train_dataloader())
    assert len(set(seen)) == 105
    assert {(a, b) for a, b, _, _ in reads} == {(0, 4), (4, 6)}
    assert len(set(reads)) == len(reads)


def test_resume_with_another_number_of_workers(make_cube):
    path = make_cube()
    cube = module(path, in_memory=False)
    whole = epoch(cube, cube.train_dataloader())
    loader = cube.train_dataloader()
    batches = iter(loader)
    seen = [window for _ in range(4) for window in windows(cube, next(batches))]
    resumed = module(path, in_memory=False, num_workers=2).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert seen + epoch(cube, resumed) == whole


def test_resume_reads_only_what_is_left(make_cube, monkeypatch):
    cube = module(make_cube(), in_memory=False)
    loader = cube.train_dataloader()
    groups = loader.groups(0)
    batches = iter(loader)
    for _ in range(14):
        next(batches)
    resumed = cube.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    read, real = [], resumed.read
    monkeypatch.setattr(resumed, "read", lambda spans: read.append(spans) or real(spans))
    assert len(list(resumed)) == 1
    assert len(read) <= 2
    assert read[-1] == groups[-1].spans


def test_resume_with_other_windows_starts_the_epoch_again(make_cube, caplog):
    path = make_cube()
    cube = module(path)
    loader = cube.train_dataloader()
    next(iter(loader))
    other = module(path, batch_size=5).train_dataloader()
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(loader.state_dict())
    assert "starts again from its first batch, since batch_size changed" in caplog.text
    assert len(epoch(cube, other)) == 105


def test_the_global_random_state_is_left_alone(make_cube):
    cube = module(make_cube(), in_memory=False, num_workers=2)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(cube.train_dataloader())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("options", PATHS)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_and_workers_share_the_windows(make_cube, options, world):
    cube = module(make_cube(), **options)

    def ranks(loader: WindowLoader) -> Iterator[WindowLoader]:
        for rank in range(world):
            loader.rank, loader.world = rank, world
            yield loader

    for of in range(2):
        seen, lengths = [], set()
        for loader in ranks(cube.train_dataloader()):
            loader.epoch = of
            lengths.add(len(loader))
            seen += epoch(cube, loader)
        assert len(seen) == len(set(seen)) > 105 - 7 * world * 2
        assert len(lengths) == 1
    seen = [w for loader in ranks(cube.test_dataloader()) for w in epoch(cube, loader)]
    assert sorted(seen) == [(7, s, s + 1, s + 2) for s in range(18)]


def test_crops_are_random_in_training_and_central_else(make_cube):
    def columns(dataset):
        return dataset + 0.01 * dataset["x"].astype("float32")

    path = make_cube(change=columns)
    for in_memory in (True, False):
        cube = module(path, crop=(2, 3), in_memory=in_memory)

        def corners(loader, cube=cube):
            first = [cube.normalisation.denormalise(b["frames"])[..., 0, 0] for b in loader]
            return {round(float(v % 1), 2) for v in torch.cat(first).double().flatten()}

        everywhere = {round(0.1 * y + 0.01 * x, 2) for y in range(3) for x in range(3)}
        assert corners(cube.train_dataloader()) == everywhere
        assert corners(cube.test_dataloader()) == {0.11}
        once, again = ([b["frames"] for b in cube.train_dataloader()] for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
        assert once[0].shape == (7, 3, 1, 2, 3)


def test_errors_of_workers_are_ours(make_cube):
    path = make_cube()
    cube = module(path, in_memory=False, num_workers=2)
    cube.statistics  # noqa: B018 (before the damage)
    (path / "u" / "c" / "2" / "1" / "0" / "0").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"^Variable 'u' of .* cannot be read from frames"):
        list(cube.train_dataloader())


def test_too_little_shared_memory_is_a_sentence(make_cube, monkeypatch):
    cube = module(make_cube(), in_memory=False, num_workers=2)
    loader = cube.train_dataloader()
    loader.frame_bytes = 2**50
    with pytest.raises(DataError, match=r"2 workers need .* MiB of shared memory, but"):
        list(loader)


class Recorder(LightningModule):
    """Remembers which windows it was trained on."""

    def __init__(self, cube: ClimateCubeDataModule) -> None:
        super().__init__()
        self.cube = [cube]
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, ...]] = []

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        self.seen += windows(self.cube[0], batch)
        return self.weight * batch["frames"].mean()

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(cube: ClimateCubeDataModule, folder: Path, resume: str | None = None, **options: Any):
    model = Recorder(cube)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[
            ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(folder, "end-{step}", every_n_epochs=1, save_top_k=-1),
        ],
        **options,
    )
    trainer.fit(model, datamodule=cube, ckpt_path=resume)
    return model.seen


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:The dirpath has changed")
@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("limit", [1.0, 10])
def test_lightning_resumes_in_the_middle_of_an_epoch(make_cube, tmp_path, in_memory, limit):
    path = make_cube()
    options: dict[str, Any] = {"limit_train_batches": limit, "max_steps": 40}
    whole = train(module(path, in_memory=in_memory), tmp_path, **options)
    assert len(whole) == 40 * 7
    per_epoch = 15 if limit == 1.0 else 10
    assert len(set(whole[: 7 * per_epoch])) == 7 * per_epoch
    assert whole[:7] != whole[7 * per_epoch : 7 * per_epoch + 7]
    for step in (4, per_epoch - 1, per_epoch, per_epoch + 7):
        resumed = train(
            module(path, in_memory=in_memory),
            tmp_path / "again",
            str(tmp_path / f"step={step}.ckpt"),
            **options,
        )
        assert resumed == whole[7 * step :], f"resumed from step {step}"
    resumed = train(
        module(path, in_memory=in_memory),
        tmp_path / "again",
        str(tmp_path / f"end-step={per_epoch}.ckpt"),
        **options,
    )
    assert resumed == whole[7 * per_epoch :]
