"""Checkpoints as files that explain themselves: any model of ours from its path alone."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import instantiate_module
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context

from dyngen.metrics.features import EncoderFeatures

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`: nothing in it is executed.

    Raises:
        ValueError: If there is no such file, or it is not a checkpoint, naming it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"There is no checkpoint {path}; train it first, or give the path of one that exists."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); it may be cut short: "
            "train again, or use another checkpoint."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(
            f"{path} holds no 'state_dict' of a Lightning checkpoint; give one that "
            "`dyngen fit` wrote."
        )
    return checkpoint


def build(hyper_parameters: dict[str, Any], path: str | Path, **replace: Any) -> LightningModule:
    """Make the untrained model that a checkpoint's hyperparameters describe.

    Args:
        hyper_parameters: What `dyngen fit` saved: the model's class path and its arguments.
        path: Where they were read, for the error.
        replace: Arguments to use instead of the saved ones.

    Raises:
        ValueError: If they do not name a model of this library, or of a module that can be imported
            here.
    """
    name = str(hyper_parameters.get("_class_path", ""))
    kind = _class_of(name)
    if not (isinstance(kind, type) and issubclass(kind, LightningModule)):
        raise ValueError(
            f"{path} does not say which model it holds ('{name}'); use a checkpoint that "
            "`dyngen fit` wrote, or load it with `load_from_checkpoint(path, network=...)`."
        )
    settings = {k: v for k, v in hyper_parameters.items() if not k.startswith("_")}
    with _given_hyperparameters_context(hyper_parameters, INSTANTIATOR):
        return instantiate_module(kind, settings | replace)


def _class_of(class_path: str) -> Any:
    """A model of ours by its name, or anybody's by its class path; None if there is none."""
    from dyngen import models  # the models import this file

    module, _, name = class_path.rpartition(".")
    if hasattr(models, name):
        return getattr(models, name)
    try:
        return getattr(importlib.import_module(module), name, None) if module else None
    except ImportError:
        return None


def training_cost(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What training cost so far, where it was counted (`dyngen.callbacks.TrainingCost`)."""
    cost: dict[str, Any] = checkpoint.get("callbacks", {}).get("TrainingCost", {})
    return cost


def sampling_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """How frames were sampled beside training: of the first system of its `RolloutEvaluation`."""
    systems = checkpoint.get("callbacks", {}).get("RolloutEvaluation", {}).get("systems", {})
    return dict(next(iter(systems.values()), {}))


def not_on_disk(checkpoint: dict[str, Any]) -> list[str]:
    """Arguments of a model that name files which its checkpoint holds itself, or can do without."""
    names = ("image_model", "reference") if "image_model" in checkpoint else ()
    return [name for name in names if name in checkpoint.get("hyper_parameters", {})]


def load_model(path: str | Path) -> LightningModule:
    """A trained model from its checkpoint alone, in evaluation mode, with averaged weights if any.

    Raises:
        ValueError: If the file is missing, damaged, or does not fit the code, naming it.
    """
    checkpoint = read_checkpoint(path)
    model = build(
        checkpoint.get("hyper_parameters", {}), path, **dict.fromkeys(not_on_disk(checkpoint))
    )
    model.on_load_checkpoint(checkpoint)
    missing, unexpected = model.load_state_dict(checkpoint["state_dict"], strict=False)
    if missing or unexpected:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: missing weights {missing[:3]}, "
            f"unexpected weights {unexpected[:3]}; it was made by another version of the "
            "network, train again."
        )
    return model.eval().requires_grad_(False)


def encoder_features(checkpoint: str, **settings: Any) -> EncoderFeatures:
    """Features of frames from the denoiser of a trained model; for `Features` by class path.

    Args:
        checkpoint: Of an image model, or a discriminator, which holds one.
        settings: Of `EncoderFeatures`: layer, sigma and name.

    Raises:
        ValueError: If the model has no denoiser of frames, naming it.
    """
    model = load_model(checkpoint)
    denoiser = getattr(model, "denoiser", None)
    if not isinstance(denoiser, torch.nn.Module):
        raise ValueError(
            f"{checkpoint} holds a {type(model).__name__}, which has no denoiser of frames; give "
            "the checkpoint of an image model."
        )
    return EncoderFeatures(denoiser, **settings)
