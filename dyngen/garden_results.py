"""What trained models of motion come to on held-out clips, as numbers in a JSON file."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor

from dyngen.models.checkpoints import load_model
from dyngen.models.cube_module import VALIDATION_SIGMAS
from dyngen.models.spectral_ldm import SAMPLER, SpectralLDM, seeded_noise
from dyngen.motion.spectral_volume import FrequencyAdaptive, energy_lost, frequencies
from dyngen.report.motion import motion_scores, reconstruction_error
from dyngen.report.provenance import machine

log = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]
TERMS = (4, 8, 16, 24)
OUT = Path("docs/results/garden/motion.json")


def motion_results(
    data: LightningDataModule,
    models: dict[str, Path],
    out: Path = OUT,
    split: Literal["validate", "test"] = "test",
    clips: int = 16,
    steps: int = 25,
    guidance_scale: float = 0.0,
    sampler: str = SAMPLER,
    samplings: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
    seed: int = 0,
    device: str = "auto",
    command: str = "",
) -> dict[str, Any]:
    """Measure models of motion on held-out clips and write what they come to.

    Figures of an earlier run that this one does not measure, such as the end-point error of
    extraction, stay in the file. A model whose autoencoder scales by image size is measured in the
    first other model's frequency-adaptive normalisation, so that its error is in the same units.

    Args:
        data: Clips, in batches with `image`, `displacement` and, if there is one, `mask`.
        models: Checkpoints of `SpectralLDM` by name, such as `coordinated`, `independent`, `volume`
            and those of the ablation.
        out: JSON file to write.
        split: Which clips.
        clips: How many of them at most; each is sampled once.
        steps: Of the sampler.
        guidance_scale: w of classifier-free guidance.
        sampler: Name of the sampler.
        samplings: By a name of its own, one of the models and in what it is sampled otherwise, such
            as `{"w 1.75": ("coordinated", {"guidance_scale": 1.75})}`.
        seed: Of the samples.
        device: cpu, cuda, or auto.
        command: The command line that this is part of, for the record.

    Returns:
        What is in the file: `energy_kept` by K; `reconstruction_error` of the autoencoder alone and
        of each model; `models`, all scores of each; `ablation`, the same in short; `samplings`,
        likewise; `autoencoder`, of real motion encoded and decoded; `floor`, how far one half of
        the held-out clips is from the other; `machine`, `command` and settings.

    Raises:
        ValueError: If there are no clips, or a checkpoint is of another kind of model.
    """
    place = torch.device(_device(device))
    batches = held_out(data, split, clips, place)
    results: dict[str, Any] = {
        "clips": sum(len(batch["image"]) for batch in batches),
        "energy_kept": energy_kept(batches),
        "reconstruction_error": {},
        "reconstruction_error_by_noise": {},
        "models": {},
        "ablation": {},
        "samplings": {},
        "sampling": {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale},
        "machine": machine(),
        "command": command,
    }
    adaptive: FrequencyAdaptive | None = None
    for name, checkpoint in models.items():
        model = _open(checkpoint).to(place)
        scale = model.latents.normalisation
        if isinstance(scale, FrequencyAdaptive):
            adaptive = adaptive or scale
        else:
            scale = adaptive or scale
        errors = reconstruction_errors(model, batches, scale.normalise)
        decoded, limit = through_autoencoder(model, batches, scale.normalise)
        scores, seconds, real, mask = _sampled(model, batches, seed, results["sampling"])
        rate = float((model.cube or {}).get("fps") or 30.0)
        scores["frequencies"] = frequencies(model.terms, model.frames, rate).tolist()
        results["models"][name] = scores
        if "autoencoder" not in results:
            results["autoencoder"] = in_short(motion_scores(decoded, real, mask))
        results["reconstruction_error"].setdefault("autoencoder", limit)
        results["reconstruction_error"][name] = _mean(errors.values())
        results["reconstruction_error_by_noise"][name] = errors
        results["ablation"][name] = {
            "terms": model.terms,
            "parameters": sum(p.numel() for p in model.network.parameters()),
            "autoencoder_error": limit,
            "reconstruction_error": _mean(errors.values()),
            "seconds_per_sample": seconds,
            **in_short(scores),
        }
        for other, (of, changes) in (samplings or {}).items():
            if of == name:
                settings = {**results["sampling"], **changes}
                found, seconds, *_ = _sampled(model, batches, seed, settings)
                results["samplings"][other] = {
                    "model": name,
                    **settings,
                    "seconds_per_sample": seconds,
                    **in_short(found),
                }
        if len(real) > 1 and "floor" not in results:
            first, second = real.tensor_split(2)
            results["floor"] = in_short(motion_scores(first, second))
        log.info("%s: %s", name, ", ".join(_told(results["ablation"][name])))
    return write_results(out, results)


def held_out(
    data: LightningDataModule, split: str, clips: int, device: torch.device
) -> list[dict[str, Tensor]]:
    """Batches of the first clips of a split, as many as there are or are asked for.

    Raises:
        ValueError: If there are none.
    """
    data.setup("validate" if split == "validate" else "test")
    loader: Iterable[Batch] = (
        data.val_dataloader() if split == "validate" else data.test_dataloader()
    )
    batches, left = [], clips
    for batch in loader:
        if left <= 0:
            break
        batches.append({k: v[:left].to(device) for k, v in batch.items()})
        left -= len(batch["image"])
    if not batches:
        raise ValueError(f"The {split} split has no clips, or none are asked for (clips={clips}).")
    return batches


def energy_kept(batches: Iterable[Batch]) -> dict[str, float]:
    """The part of the mean square displacement that K terms keep, for each K that frames allow."""
    displacements = [batch["displacement"] for batch in batches]
    frames = displacements[0].shape[1]
    weight = torch.cat([d.double().square().mean((1, 2, 3, 4)).cpu() for d in displacements])
    kept = {}
    for terms in TERMS:
        if 2 * terms <= frames + 1:
            lost = torch.cat([energy_lost(d, terms).double().cpu() for d in displacements])
            kept[str(terms)] = 1 - float((weight * lost).sum() / weight.sum())
    return kept


def sample_all(
    model: SpectralLDM, batches: Iterable[Batch], seed: int, **options: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One sample of each clip, the real one, both ``(N, K, 4, H, W)``, and masks ``(N, H, W)``."""
    sampled, real, masks, first = [], [], [], 0
    for batch in batches:
        noise = seeded_noise(seed, len(batch["image"]), first)
        sampled.append(model.sample(batch["image"], noise, **options).cpu())
        real.append(model.volume(batch["displacement"]).cpu())
        if "mask" in batch:
            masks.append(batch["mask"][:, 0].cpu() > 0)
        first += len(batch["image"])
    return torch.cat(sampled), torch.cat(real), torch.cat(masks) if masks else None


def reconstruction_errors(
    model: SpectralLDM, batches: Sequence[Batch], normalise: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """The error of volumes noised, denoised and decoded, by noise level, the mean over clips."""
    total = torch.zeros(len(VALIDATION_SIGMAS), dtype=torch.float64)
    for number, batch in enumerate(batches):
        errors = model.reconstruction_errors(dict(batch), number, normalise)
        total += len(batch["image"]) * errors.double().cpu()
    total /= sum(len(batch["image"]) for batch in batches)
    return {f"{s:g}": e for s, e in zip(VALIDATION_SIGMAS, total.tolist(), strict=True)}


@torch.no_grad()
def through_autoencoder(
    model: SpectralLDM, batches: Iterable[Batch], normalise: Callable[[Tensor], Tensor]
) -> tuple[Tensor, float]:
    """What is the limit of all: volumes encoded and decoded, (N, K, 4, H, W) in pixels.

    And the mean absolute error of these, normalised.
    """
    every, total = [], 0.0
    for batch in batches:
        volume = model.volume(batch["displacement"])
        decoded = model.latents.decode(model.latents.encode(volume))
        total += len(volume) * reconstruction_error(normalise(decoded), normalise(volume))
        every.append(decoded.cpu())
    together = torch.cat(every)
    return together, total / len(together)


def in_short(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """One number of each kind of score; None where there is no mask."""
    agreement = scores.get("mask_agreement", {})
    return {
        "power_spectrum_distance_db": scores["power_spectrum_distance_db"],
        "amplitude_distance": _mean(scores["amplitude_distance"][1:]),
        "spatial_correlation_error": scores["spatial_correlation_error"],
        "frequency_coherence_error": scores["frequency_coherence_error"],
        "area_under_curve": agreement.get("area_under_curve"),
        "intersection_over_union": agreement.get("intersection_over_union"),
    }


def write_results(out: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Write figures into a JSON file, and keep those that are there and not among them."""
    before = json.loads(out.read_text()) if out.exists() else {}
    merged: dict[str, Any] = {**before, **_finite(results)}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps(merged, indent=1) + "\n")
    partial.replace(out)
    return merged


def _open(checkpoint: Path) -> SpectralLDM:
    model = load_model(checkpoint)
    if not isinstance(model, SpectralLDM):
        raise ValueError(
            f"{checkpoint} holds a {type(model).__name__}, which samples no motion; give a "
            "checkpoint of SpectralLDM."
        )
    return model


def _sampled(
    model: SpectralLDM, batches: Iterable[Batch], seed: int, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], float, Tensor, Tensor | None]:
    """Scores of sampled motion, seconds per sample, the real motion (N, K, 4, H, W), and masks."""
    started = time.perf_counter()
    sampled, real, mask = sample_all(model, batches, seed, **settings)
    seconds = (time.perf_counter() - started) / len(sampled)
    return motion_scores(sampled, real, mask), seconds, real, mask


def _told(row: Mapping[str, Any]) -> Iterable[str]:
    for key, value in row.items():
        if value is not None:
            yield f"{key.replace('_', ' ')} {value:.3g}"


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
