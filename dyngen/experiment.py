"""Lightning's command line, with this library's defaults and refusals."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from omegaconf import OmegaConf

from dyngen.callbacks.cost import TrainingCost
from dyngen.callbacks.progress import TrainingProgress
from dyngen.diffusion.precision import computes_bf16, tell_of_single_precision
from dyngen.models.checkpoints import not_on_disk, read_checkpoint
from dyngen.options import OptionParser

# What decides the weights: a run is continued with the same only.
DECIDE = (
    "seed_everything",
    "model.",
    "data.",
    "trainer.precision",
    "trainer.gradient_clip",
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
)
FREE = ("data.init_args.num_workers", "data.init_args.in_memory", "data.init_args.shuffle_buffer")


class ExperimentParser(OptionParser, LightningArgumentParser):
    """Lightning's parser, with this library's errors."""


class ExperimentCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` for any model on any data, configured by YAML.

    With `ckpt_path: last`, `fit` goes on with the run that is in the log folder, or starts it when
    there is none; a run with other settings is not continued but refused, nor is one of more steps
    than are asked for.

    Args:
        arguments: Command line, the verb first.

    Raises:
        ArgumentError: For an option that does not exist or has a wrong value.
        ValueError: If the run in the log folder has other settings.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._restored: dict[str, Any] | None = None
        options = {
            "parser_mode": "omegaconf",
            "exit_on_error": False,
            "allow_abbrev": False,
            "prog": "dyngen",
        }
        # Where Lightning looks for them, also to start the other processes of DDP.
        with patch.object(sys, "argv", [sys.argv[0], *arguments]):
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
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, counting what training costs, with one bar unless bars are switched off.

        In full precision where bf16 is asked for, and a CPU that has none is to compute it.
        """
        settings = self.config_init[self.subcommand].trainer
        imitated = _on_cpu(settings) and not computes_bf16(torch.device("cpu"))
        if settings.get("precision") == "bf16-mixed" and imitated:
            tell_of_single_precision()
            settings.precision = "32-true"
        given = settings.callbacks or []  # a Trainer takes a single one too
        given = given if isinstance(given, list) else [given]
        settings.callbacks = [*given, TrainingCost()]
        if settings.get("enable_progress_bar") is not False:
            settings.callbacks = [*settings.callbacks, TrainingProgress()]
        return super().instantiate_trainer(**kwargs)

    def instantiate_classes(self) -> None:
        """Make model, data and trainer; what a checkpoint holds of other models is in place."""
        super().instantiate_classes()
        if self._restored is not None and not_on_disk(self._restored):
            self.model.on_load_checkpoint(self._restored)
        if self.subcommand != "fit" and self.config[self.subcommand].ckpt_path == "last":
            keep = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
            if not any(callback._find_last_checkpoints(self.trainer) for callback in keep):
                raise ValueError(  # Lightning would go on with an untrained model
                    f"{self.subcommand} is to read the last checkpoint of its run, and there is "
                    "none, or no callback and logger that know where: name the file, --ckpt_path."
                )

    def before_instantiate_classes(self) -> None:
        """Refuse to continue a run with other settings."""
        if self.subcommand != "fit":  # each keeps its own: that of `fit` is what is gone on with
            self.save_config_kwargs["config_filename"] = f"{self.subcommand}.yaml"
        settings = self.config[self.subcommand]
        checkpoint = str(settings.get("ckpt_path"))
        if self.subcommand != "fit" and Path(checkpoint).is_file():
            self._restored = read_checkpoint(checkpoint)
            for name in not_on_disk(self._restored):
                settings.model.init_args[name] = None
        if self.subcommand != "fit" or checkpoint != "last":
            return
        logger = settings.trainer.get("logger")
        if not hasattr(logger, "get") or not logger.get("init_args"):
            return
        place = logger.init_args
        folder = Path(str(place.save_dir), str(place.get("name")), str(place.get("version")))
        last = folder / "checkpoints" / "last.ckpt"
        if not last.exists():
            return
        made = read_checkpoint(last)["global_step"]
        asked = settings.trainer.get("max_steps", -1)
        if 0 <= asked < made:  # Lightning would call it finished
            raise ValueError(
                f"{folder} holds a run of {made} steps already, more than trainer.max_steps = "
                f"{asked}: ask for no fewer, delete the folder to start anew, or choose another "
                "one with --trainer.logger.init_args.version."
            )
        self._dump_config()
        told = folder / "config.yaml"
        if not told.is_file():
            raise ValueError(
                f"{told} is missing, which says how {last} was trained: put it back, or delete "
                "the folder to start anew."
            )
        saved = OmegaConf.to_container(OmegaConf.load(told))
        there = _flat(cast(dict[str, Any], saved))
        now = _flat(self.config_dump)
        for key in now:
            decides = key.startswith(DECIDE) and key not in FREE
            if decides and there.get(key) != now[key]:
                raise ValueError(
                    f"{folder} holds a run with {key} = {there.get(key)}, not {now[key]}: go on "
                    "with that, delete the folder to start anew, or choose another one with "
                    "--trainer.logger.init_args.version."
                )


def _on_cpu(settings: Any) -> bool:
    """Whether a trainer with these settings computes on a CPU."""
    asked = settings.get("accelerator") or "auto"
    others = torch.cuda.is_available() or torch.backends.mps.is_available()
    return asked == "cpu" or (asked == "auto" and not others)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
