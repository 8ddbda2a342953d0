"""Lightning's command line, with this library's defaults and refusals."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from dyngen.callbacks.progress import TrainingProgress
from dyngen.options import OptionParser

# What may differ between a run and its continuation.
FREE = ("ckpt_path", "config", "weights_only", "trainer.enable_", "trainer.max_time")


class ExperimentParser(OptionParser, LightningArgumentParser):
    """Lightning's parser, with this library's errors."""


class ExperimentCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` for any model on any data, configured by YAML.

    With `ckpt_path: last`, `fit` goes on with the run that is in the log folder, or starts it when
    there is none; a run with other settings is not continued but refused.

    Args:
        arguments: Command line, the verb first.

    Raises:
        ArgumentError: For an option that does not exist or has a wrong value.
        ValueError: If the run in the log folder has other settings.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        options = {
            "parser_mode": "omegaconf",
            "exit_on_error": False,
            "allow_abbrev": False,
            "prog": "dyngen",
        }
        with patch.object(sys, "argv", sys.argv[:1]):  # Lightning warns about arguments in both
            super().__init__(
                LightningModule,
                LightningDataModule,
                save_config_kwargs={"overwrite": True},
                seed_everything_default=0,
                parser_class=ExperimentParser,
                parser_kwargs=options | {verb: options for verb in self.subcommands()},
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                args=list(arguments),
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with one progress bar over all steps unless bars are switched off."""
        settings = self.config_init[self.subcommand].trainer
        if settings.get("enable_progress_bar") is not False:
            settings.callbacks = [*(settings.callbacks or []), TrainingProgress()]
        return super().instantiate_trainer(**kwargs)

    def before_instantiate_classes(self) -> None:
        """Refuse to continue a run with other settings."""
        settings = self.config[self.subcommand]
        if self.subcommand != "fit" or settings.get("ckpt_path") != "last":
            return
        logger = settings.trainer.get("logger")
        if not hasattr(logger, "get") or not logger.get("init_args"):
            return
        place = logger.init_args
        folder = Path(str(place.save_dir), str(place.get("name")), str(place.get("version")))
        if not (folder / "checkpoints" / "last.ckpt").exists():
            return
        self._dump_config()
        there = _flat(yaml.safe_load((folder / "config.yaml").read_text()))
        now = _flat(self.config_dump)
        for key in now:
            if not key.startswith(FREE) and there.get(key) != now[key]:
                raise ValueError(
                    f"{folder} holds a run with {key} = {there.get(key)}, not {now[key]}: go on "
                    "with that, delete the folder to start anew, or choose another one with "
                    "--trainer.logger.init_args.version."
                )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
