"""Scores, figures and moving pictures in TensorBoard; scalars in any Lightning logger."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
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
    at one lead. TensorBoard has besides each curve by lead as a chart in which every system is a
    run, under `by lead/step N`; custom charts of CRPS; the figures; the fields as a short video;
    and the model's hyperparameters beside its first scores.

    Args:
        trainer: Its loggers are written to, at its global step.
        summary: As `assess` gives it.
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
            writer = logger.experiment
            for name, figure in figures.items():
                writer.add_figure(name, figure, trainer.global_step, close=False)
            if animation is not None:
                add_gif(writer, "rollout", animation, trainer.global_step)
            writer.add_custom_scalars(_layout(scalars))
            logger.log_hyperparams(
                dict(trainer.lightning_module.hparams),
                {f"hp/{name}": value for name, value in scalars.items() if _is_headline(name)},
            )
            writer.flush()
            folder = Path(logger.log_dir) / "by lead" / f"step {trainer.global_step}"
            for system, curves in _curves(summary).items():
                _write_curves(folder / system, curves)


def _curves(summary: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """System -> name of a chart -> lead, lag or step -> value."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for variable, scores in by_variable(summary).items():
        charts = {
            f"{name} by {'lag' if name == 'autocorrelation' else 'lead'}": scores.get(name, {})
            for name in CURVES
        }
        charts |= {
            name: of
            for name, of in scores.get("feature_distances", {}).items()
            if not name.endswith("_floor") and any(isinstance(v, Mapping) for v in of.values())
        }
        for chart, systems in charts.items():
            for system, curve in systems.items():
                tag = "/".join(filter(None, (variable, chart)))
                found.setdefault(system, {})[tag] = curve
    return found


def _write_curves(folder: Path, curves: Mapping[str, Mapping[str, float]]) -> None:
    """One run of TensorBoard whose steps are leads, in place of what an earlier one left."""
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for tag, curve in curves.items():
            for at, value in curve.items():
                if value is not None:
                    writer.add_scalar(tag, value, int(at))


def _layout(scalars: Mapping[str, float]) -> dict[str, dict[str, list[Any]]]:
    """Custom charts: each score by lead, a line for each lead of a system."""
    charts: dict[str, dict[str, list[Any]]] = {}
    for name in scalars:
        parts = name.split("/")
        if len(parts) >= 3 and parts[-1].startswith(("lead_", "lag_")):
            score, system = parts[-3], parts[-2]
            tags = charts.setdefault(score, {}).setdefault(system, ["Multiline", []])[1]
            tags.append(f"^{re.escape(name)}$")
    return charts


def _is_headline(name: str) -> bool:
    """Whether a scalar stands beside the hyperparameters."""
    return name.startswith(("std_ratio/", "log_spectral_distance_db/")) or (
        name.startswith(("crps/", "spread_skill/")) and name.endswith("lead_01")
    )


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
    for distance, of in scores.get("feature_distances", {}).items():
        flat |= {f"{distance}/{s}": v for s, v in of.items() if isinstance(v, float)}
    for system, run in scores.get("free_run", {}).items():
        flat |= {f"free_run/{system}/{k}": v for k, v in run.items() if isinstance(v, float)}
    return {name: value for name, value in flat.items() if value is not None}
