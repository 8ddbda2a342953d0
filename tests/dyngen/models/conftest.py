"""A briefly trained image model, and a record of what a model logs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning import LightningModule
from tiny_cube import UNET, fit, make


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def image_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a briefly trained ImageDDPM."""
    path = tmp_path_factory.mktemp("image") / "image.ckpt"
    model = make("ImageDDPM", network=UNET, learning_rate=0.01, warmup_steps=1)
    fit(model).save_checkpoint(path)
    return path


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Callable[[LightningModule], dict[str, float]]:
    """A model -> the dictionary that its `log` writes to from now on."""

    def record(model: LightningModule) -> dict[str, float]:
        values: dict[str, float] = {}
        monkeypatch.setattr(model, "log", lambda k, v, **_: values.__setitem__(k, v.item()))
        return values

    return record
