"""Scores, figures and moving pictures in TensorBoard; scalars in any Lightning logger."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from dyngen.report.summary import by_variable

SCALARS = ("std_ratio", "log_spectral_distance_db", "increment_std_ratio")
CURVES = ("crps", "spread_skill", "bias", "autocorrelation")


def log_evaluation(
    trainer: Trainer,
    summary: Mapping[str, Any],
    figures: Mapping[str, Figure],
    animation: bytes | None,
) -> None:
    """Log an evaluation.

    A score at each lead or lag is a scalar `score/system/lead_N`, so that training can be followed
    at one lead; TensorBoard has the curves as figures and the fields as a short video besides.

    Args:
        trainer: Its loggers are written to, at its global step.
        summary: As `summarise` gives it.
        figures: Name -> figure.
        animation: A GIF, or None.
    """
    scalars = {
        f"{'/'.join(filter(None, (variable, name)))}": value
        for variable, scores in by_variable(summary).items()
        for name, value in _flat(scores).items()
    }
    for logger in trainer.loggers:
        logger.log_metrics(scalars, step=trainer.global_step)
        if isinstance(logger, TensorBoardLogger):
            for name, figure in figures.items():
                logger.experiment.add_figure(name, figure, trainer.global_step, close=False)
            if animation is not None:
                add_gif(logger.experiment, "rollout", animation, trainer.global_step)
            logger.experiment.flush()


def add_gif(writer: SummaryWriter, tag: str, gif: bytes, step: int) -> None:
    """Show an encoded GIF under TensorBoard's images, where it plays."""
    with Image.open(io.BytesIO(gif)) as image:
        width, height = image.size
    picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
    summary = Summary(value=[Summary.Value(tag=tag, image=picture)])
    writer._get_file_writer().add_summary(summary, step)


def _flat(scores: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for score in SCALARS:
        flat |= {f"{score}/{system}": v for system, v in scores.get(score, {}).items()}
    for score in CURVES:
        at = "lag" if score == "autocorrelation" else "lead"
        for system, curve in scores.get(score, {}).items():
            flat |= {f"{score}/{system}/{at}_{int(key):02d}": v for key, v in curve.items()}
    for system, run in scores.get("free_run", {}).items():
        flat |= {f"free_run/{system}/{k}": v for k, v in run.items() if isinstance(v, float)}
    return {name: value for name, value in flat.items() if value is not None}
