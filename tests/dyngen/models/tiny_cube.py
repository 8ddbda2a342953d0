"""A cube small enough to hold in the head, and training runs of a second or two."""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch import Tensor
from torch.utils.data import DataLoader

from dyngen.simulate.autoregressive import AutoregressiveFields, power_law_spectrum

SIZE = 8


class TinyCube(LightningDataModule):
    """Windows of two-channel AR(1) fields, with the description a real data module gives.

    Args:
        length: Frames in a window.
        mean: Of the first variable, as described; the fields themselves do not change.
    """

    def __init__(
        self, length: int = 3, variables: tuple[str, str] = ("u", "v"), mean: float = 0.0
    ) -> None:
        super().__init__()
        world = AutoregressiveFields(power_law_spectrum(SIZE, SIZE, channels=2), 0.9)
        self.frames = world.simulate(24, length, generator=torch.Generator().manual_seed(0))
        self.variables, self.mean = variables, mean

    def description(self) -> dict[str, Any]:
        axis = torch.arange(float(SIZE))
        return {
            "variables": {name: {"units": "m s-1"} for name in self.variables},
            "dims": ["y", "x"],
            "shape": [SIZE, SIZE],
            "coords": {d: {"dims": [d], "values": axis, "attributes": {}} for d in ("y", "x")},
            "normalisation": {"mean": [self.mean, 0.0], "std": [1.0, 1.0]},
        }

    def loader(self) -> DataLoader[dict[str, Tensor]]:
        windows = [{"frames": window} for window in self.frames]
        return DataLoader(windows, batch_size=8)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = loader


UNET = {
    "class_path": "dyngen.networks.unet.UNet2d",
    "init_args": {"channels": 2, "widths": [8, 8], "blocks": 1},
}
ENERGY = {
    "class_path": "dyngen.networks.discriminators.UNetEnergy",
    "init_args": {"channels": 2, "history_length": 2, "widths": [8], "blocks": 1},
}


def make(name: str, **arguments: Any) -> LightningModule:
    """A model as the command line makes it, so that its checkpoints say how."""
    with patch.object(sys, "argv", sys.argv[:1]):  # Lightning warns of arguments in both
        cli = LightningCLI(
            LightningModule,
            subclass_mode_model=True,
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={"accelerator": "cpu", "logger": False, "enable_checkpointing": False},
            args={"model": {"class_path": f"dyngen.models.{name}", "init_args": arguments}},
        )
    return cli.model


def fit(model: LightningModule, data: LightningDataModule | None = None, **options: Any) -> Trainer:
    """Train for three steps, quietly; options are the trainer's, and `ckpt_path`."""
    ckpt_path = options.pop("ckpt_path", None)
    trainer = Trainer(
        **{
            "max_steps": 3,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        | options
    )
    trainer.fit(model, datamodule=data or TinyCube(), ckpt_path=ckpt_path)
    return trainer
