"""Training with two processes is training with one: the same windows, gradients and weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from lightning import Callback, Trainer
from tiny_cube import ENERGY, SIZE, UNET, make
from torch import Tensor

from data_modules.climate_cube import ClimateCubeDataModule
from dyngen.callbacks import RolloutEvaluation, rollout_evaluation
from dyngen.rollout import Sampling

sys.path.append(str(Path(__file__).parents[1] / "rollout"))  # where ranks.py lies

import ranks

DAYS, GLOBAL_BATCH, STEPS = 60, 8, 3


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variables over sixty days: a slow process at each point."""
    generator = np.random.default_rng(0)
    values = np.zeros((2, DAYS, SIZE, SIZE), np.float32)
    for day in range(1, DAYS):
        values[:, day] = 0.8 * values[:, day - 1] + generator.normal(size=(2, SIZE, SIZE))
    axis = np.arange(SIZE, dtype=np.float64)
    path = tmp_path_factory.mktemp("cube") / "cube.zarr"
    xr.Dataset(
        {name: (("time", "y", "x"), field) for name, field in zip("uv", values, strict=True)},
        {"time": np.datetime64("2001-01-01", "ns") + np.arange(DAYS) * np.timedelta64(1, "D"),
         "y": axis, "x": axis},
    ).to_zarr(path, zarr_format=3, consolidated=False)  # fmt: skip
    return path


class Watch(Callback):
    """Notes the windows of each step and the gradient before the first one."""

    def __init__(self) -> None:
        self.windows: list[list[float]] = []
        self.gradient: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.windows.append(batch["time"][:, -1].tolist())

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if not self.gradient:
            self.gradient = {
                name: parameter.grad.clone()
                for name, parameter in module.named_parameters()
                if parameter.grad is not None
            }


class OneLevel:
    """A single noise level, in place of random ones."""

    def sample(self, batch: int, device: Any, generator: Any = None) -> Tensor:
        return torch.full((batch,), 0.7, device=device)


def noise_of(x: Tensor, **kwargs: Any) -> Tensor:
    """Noise that follows from each frame alone, wherever in a batch it is, and on which rank."""
    seeds = (x.double().flatten(1).sum(1) * 1e6).long() % 2**31
    return torch.stack(
        [
            torch.randn(frame.shape, generator=torch.Generator().manual_seed(int(seed)))
            for frame, seed in zip(x, seeds, strict=True)
        ]
    )


def data_of(cube: Path, batch_size: int) -> ClimateCubeDataModule:
    return ClimateCubeDataModule(cube, window_length=3, batch_size=batch_size)


def trainer_of(ranks_: int, folder: Path, callbacks: list[Callback], **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "accelerator": "cpu",
        "devices": ranks_,
        "strategy": "ddp" if ranks_ > 1 else "auto",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "default_root_dir": folder,
        "callbacks": callbacks,
    }
    return Trainer(**settings | options)


def image(folder: Path) -> Any:
    return make("ImageDDPM", network=UNET)


def discriminator(folder: Path, **options: Any) -> Any:
    checkpoint = str(folder / "image.ckpt")
    return make(
        "TimeConsistencyDiscriminator", discriminator=ENERGY, image_model=checkpoint, **options
    )


def scores_alone(folder: Path) -> Any:
    """Negatives are histories of the same rank's batch, so that cross-entropy is not the same."""
    return discriminator(folder, cross_entropy_weight=0.0)


def train(build: Callable[[Path], Any], cube: Path, folder: Path, own_noise: bool) -> None:
    """Train for a few steps as one of the processes that there are, and note what came of it."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    model = build(folder)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)  # no layer begins at zero
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.configure_optimizers = lambda: torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.02
    )
    watch = Watch()
    if own_noise:
        model.noise = OneLevel()
        torch.randn_like = noise_of
    options = {}
    if count > 1 and build is scores_alone:  # which leaves the offset without a gradient
        options["strategy"] = "ddp_find_unused_parameters_true"
    trainer = trainer_of(count, folder, [watch], **options)
    trainer.fit(model, datamodule=data_of(cube, GLOBAL_BATCH // count))
    torch.save(
        {
            "windows": watch.windows,
            "gradient": watch.gradient,
            "weights": {n: p.detach() for n, p in model.named_parameters() if p.requires_grad},
        },
        folder / f"{count}-{trainer.global_rank}.pt",
    )


@pytest.fixture
def folder(tmp_path: Path, cube: Path) -> Path:
    """With the checkpoint of an image model in it."""
    model = image(tmp_path)
    trainer = trainer_of(1, tmp_path, [], max_steps=1)
    trainer.fit(model, datamodule=data_of(cube, GLOBAL_BATCH))
    trainer.save_checkpoint(tmp_path / "image.ckpt")
    return tmp_path


def compare(folder: Path) -> tuple[Any, Any, Any]:
    return tuple(
        torch.load(folder / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt")
    )


@pytest.mark.parametrize("build", [image, scores_alone], ids=["image", "discriminator"])
def test_two_processes_train_as_one_does(
    build: Callable[[Path], Any], cube: Path, folder: Path
) -> None:
    assert ranks.run(train, 2, build, cube, folder, True) == [0, 0]
    assert ranks.run_alone(train, build, cube, folder, True) == 0
    one, first, second = compare(folder)
    for whole, here, there in zip(one["windows"], first["windows"], second["windows"], strict=True):
        assert not set(here) & set(there)
        assert sorted(whole) == sorted(here + there)
    assert one["gradient"].keys() == first["gradient"].keys()
    assert max(float(g.abs().max()) for g in one["gradient"].values()) > 1e-3
    for what, tolerance in (("gradient", 1e-5), ("weights", 1e-5)):
        for name, values in one[what].items():
            torch.testing.assert_close(first[what][name], values, rtol=1e-4, atol=tolerance)
            torch.testing.assert_close(first[what][name], second[what][name], rtol=0, atol=0)
    moved = build(folder)
    start = dict(moved.named_parameters())
    assert any((one["weights"][n] - start[n]).abs().max() > 1e-4 for n in one["weights"])


def test_a_discriminator_trains_with_both_losses(cube: Path, folder: Path) -> None:
    """Each rank draws noise of its own, and both keep the same weights."""
    assert ranks.run(train, 2, discriminator, cube, folder, False) == [0, 0]
    first, second = (torch.load(folder / f"2-{r}.pt", weights_only=True) for r in range(2))
    for name, values in first["weights"].items():
        torch.testing.assert_close(values, second["weights"][name], rtol=0, atol=0)
    drawn = [torch.tensor(side["windows"]) for side in (first, second)]
    assert not torch.equal(*drawn)


def test_the_command_line_starts_the_other_processes(cube: Path, tmp_path: Path) -> None:
    """As in the guide, without torchrun: Lightning starts what it finds in `sys.argv` again."""
    (tmp_path / "main.py").write_text("from dyngen.cli import main\n\nmain()\n")
    data = {"path": str(cube), "window_length": 1, "batch_size": 4}
    config = {
        "model": {"class_path": "dyngen.models.ImageDDPM", "init_args": {"network": UNET}},
        "data": {"class_path": "data_modules.ClimateCubeDataModule", "init_args": data},
        "trainer": {"max_steps": 2, "accelerator": "cpu", "logger": False,
                    "num_sanity_val_steps": 0, "limit_val_batches": 0},
    }  # fmt: skip
    (tmp_path / "image.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "main.py", "fit", "--config", "image.yaml",
         "--trainer.devices", "2", "--trainer.strategy", "ddp"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in done.stderr
    assert "max_steps=2` reached" in done.stderr
    assert "args parameter" not in done.stderr  # a warning of Lightning's


def measure(cube: Path, folder: Path, output: Path) -> None:
    """Evaluate, with a note of who scored in place of scores and report."""
    count, rank = (int(os.environ.get(name, one)) for name, one in (("WORLD_SIZE", 1), ("RANK", 0)))
    found = SimpleNamespace(summary={}, figures={}, animation=None)
    rollout_evaluation.assess = lambda forecasts, free_runs, *args, **kwargs: found
    rollout_evaluation.write_assessment = lambda folder, *args: (
        folder / f"scored by {rank}"
    ).write_text("")
    rollout_evaluation.log_evaluation = lambda *args: None
    evaluation = RolloutEvaluation(
        systems={"guided": Sampling(steps=2, sigma_max=1.0)},
        initial_states=2,
        members=2,
        leads=2,
        free_run_steps=3,
        free_run_members=2,
        features=None,
        output=str(output),
        batch_size=1,
    )
    trainer = trainer_of(count, folder, [evaluation], limit_test_batches=1)
    trainer.test(discriminator(folder), datamodule=data_of(cube, 4), verbose=False)


def test_an_evaluation_is_shared_out_and_the_same(
    cube: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from test_store import tree

    together, alone = (tmp_path_factory.mktemp(name) for name in ("together", "alone"))
    assert ranks.run(measure, 2, cube, folder, together) == [0, 0]
    assert [file.name for file in together.glob("scored*")] == ["scored by 0"]
    assert ranks.run_alone(measure, cube, folder, alone) == 0
    written = tree(alone / "rollouts")
    assert len(written) > 10
    timings = {name for name in written if name.endswith(".cost.json")}
    assert {n: d for n, d in tree(together / "rollouts").items() if n not in timings} == {
        n: d for n, d in written.items() if n not in timings
    }
