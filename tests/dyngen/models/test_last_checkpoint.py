"""The file that a run goes on from: written at its end too, and where its folder has been moved."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_cube import UNET, fit, make

from dyngen.callbacks import ExponentialMovingAverage, LastCheckpoint
from dyngen.models.checkpoints import read_checkpoint


def train(folder: Path, interval: int = 2, **options: Any) -> None:
    torch.manual_seed(0)
    fit(
        make("ImageDDPM", network=UNET),
        callbacks=[ExponentialMovingAverage(0.5), LastCheckpoint(interval)],
        enable_checkpointing=True,
        default_root_dir=folder,
        **options,
    )


@pytest.mark.parametrize(
    "options", [{"max_steps": 5}, {"max_steps": -1, "max_epochs": 1, "limit_train_batches": 3}]
)
def test_the_last_steps_are_kept(tmp_path: Path, options: dict[str, Any]) -> None:
    train(tmp_path, **options)
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(last)
    assert checkpoint["global_step"] == (5 if options["max_steps"] == 5 else 3)
    current, average = checkpoint["current_model_state"], checkpoint["state_dict"]
    assert any(not torch.equal(current[name], average[name]) for name in average)


def test_a_run_that_was_moved_goes_on_in_the_same_file(tmp_path: Path) -> None:
    train(tmp_path / "here", max_steps=4)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    last = tmp_path / "there" / "checkpoints" / "last.ckpt"
    train(tmp_path / "there", max_steps=7, ckpt_path=str(last))
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(last)["global_step"] == 7
