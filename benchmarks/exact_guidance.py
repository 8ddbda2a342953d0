"""How near trained parts come to the closed form: AR(1) fields, whose every law is known.

An image model and a U-Net energy are trained on frames of an AR(1) process for about a minute
each. One frame is then sampled after each of many histories, and held against the exact law of the
next frame `N(a h, (1 - a^2) C)`, beside the same sampler with the exact denoiser and logit.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from dyngen.callbacks.averaging import ExponentialMovingAverage
from dyngen.diffusion.guidance import discriminator_guidance, guide
from dyngen.diffusion.noise import LogNormalNoise, edm_sigmas
from dyngen.diffusion.precision import computes_bf16
from dyngen.diffusion.samplers import heun
from dyngen.metrics.crps import crps_ensemble
from dyngen.models import ImageDDPM, TimeConsistencyDiscriminator
from dyngen.networks.discriminators import ForecastEnergy
from dyngen.networks.unet import UNet2d
from dyngen.simulate.autoregressive import AutoregressiveFields, power_law_spectrum

SIZE, COEFFICIENT, BATCH, MEMBERS, HISTORIES = 16, 0.9, 64, 8, 64
UNET: dict[str, Any] = {"channels": 1, "widths": [32, 48], "blocks": 1, "patch": 2}


class Fields(IterableDataset[dict[str, Tensor]]):
    """Batches of independent windows of the process, without end: data are no limit here."""

    def __init__(self, world: AutoregressiveFields, length: int, seed: int) -> None:
        self.world, self.length, self.seed = world, length, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield {"frames": self.world.simulate(BATCH, self.length, generator=generator)}


@dataclass(frozen=True)
class Trained:
    """The trained pair, the process it learned, and the seconds it took."""

    world: AutoregressiveFields
    model: TimeConsistencyDiscriminator
    seconds: float


def train(image_steps: int = 600, discriminator_steps: int = 600, seed: int = 0) -> Trained:
    """Train an image model, and a discriminator beside it, from nothing."""
    world = AutoregressiveFields(power_law_spectrum(SIZE, SIZE, slope=3.0), COEFFICIENT)
    torch.manual_seed(seed)
    noise = LogNormalNoise(-0.5, 1.4)
    start = time.perf_counter()
    image = ImageDDPM(UNet2d(**UNET), noise=noise, learning_rate=2e-3)
    _fit(image, Fields(world, 1, seed), image_steps)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "image.pt"
        torch.save(image.denoiser.network.state_dict(), weights)
        weights.with_suffix(".json").write_text(json.dumps({"network": UNET}))
        energy = ForecastEnergy(history_length=1, **UNET)
        model = TimeConsistencyDiscriminator(energy, str(weights), noise=noise, learning_rate=2e-3)
    _fit(model, Fields(world, 2, seed + 1), discriminator_steps)
    return Trained(world, model.eval(), time.perf_counter() - start)


def _fit(model: LightningModule, fields: Fields, steps: int) -> None:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        precision="bf16-mixed" if computes_bf16(torch.device("cpu")) else "32-true",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ExponentialMovingAverage(0.995)],
    )
    trainer.fit(model, DataLoader(fields, batch_size=None))


def measure(
    world: AutoregressiveFields,
    denoiser: Callable[[Tensor, Tensor], Tensor],
    logit: Callable[[Tensor, Tensor, Tensor], Tensor],
    scale: float = 1.0,
    steps: int = 20,
    seed: int = 2,
) -> dict[str, tuple[float, float]]:
    """Scores of sampled next frames against the closed form, each with its standard error.

    Returns:
        `crps` (fair, at lead 1), `mean_error` (RMS error of the conditional mean in units of the
        conditional standard deviation, the ensemble's own sampling error taken out), `spread`
        (sampled over exact conditional standard deviation) and `correlation` (with the last frame).
    """
    generator = torch.Generator().manual_seed(seed)  # the same draws for whichever parts
    window = world.simulate(HISTORIES, 2, generator=generator)
    history = window[:, :1].repeat_interleave(MEMBERS, 0)
    sigmas = edm_sigmas(steps, 0.02, 50.0)
    term = discriminator_guidance(lambda x, sigma: logit(x, sigma, history), scale)
    eps = torch.randn(history[:, 0].shape, generator=generator)
    start = history[:, 0] + sigmas[0].float() * eps  # as a rollout starts
    samples = heun(guide(denoiser, [term]), start, sigmas)
    samples = samples.view(HISTORIES, MEMBERS, *samples.shape[1:])

    exact = (1 - COEFFICIENT**2) * world.variance().mean().item()
    variance = samples.var(1).mean((-3, -2, -1))  # by history
    off = samples.mean(1) - world.conditional_mean(window[:, :1])
    error = off.square().mean((-3, -2, -1)) - variance / MEMBERS
    scores = crps_ensemble(samples, window[:, 1], member_dim=1).mean((-3, -2, -1))
    product = (samples * window[:, None, 0]).mean((1, 2, 3, 4)) / world.variance().mean()

    def with_error(values: Tensor) -> tuple[float, float]:
        return values.mean().item(), values.std().item() / math.sqrt(len(values))

    squared, uncertain = with_error(error)
    spread, spread_error = with_error(variance)
    rms = math.sqrt(max(squared, 0.0) / exact)
    return {
        "crps": with_error(scores),
        "mean_error": (rms, uncertain / exact / (2 * max(rms, math.sqrt(uncertain / exact)))),
        "spread": (
            math.sqrt(spread / exact),
            spread_error / (2 * math.sqrt(spread * exact)),
        ),
        "correlation": with_error(product),
    }


def run() -> list[dict[str, Any]]:
    """Scores of trained parts beside exact parts in the same sampler and the closed form."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trained = train()
    world, model = trained.world, trained.model
    assert model.denoiser is not None
    ours = measure(world, model.denoiser, model.logit)
    peer = measure(world, world.denoise, world.logit)
    closed = {
        "crps": world.expected_crps(1).mean().item(),
        "mean_error": 0.0,
        "spread": 1.0,
        "correlation": COEFFICIENT,
    }
    titles = {
        "crps": "CRPS at lead 1",
        "mean_error": "error of the conditional mean",
        "spread": "spread",
        "correlation": "lag-1 correlation",
    }
    units = {"mean_error": "conditional standard deviations", "spread": "of the exact one"}
    return [
        {
            "name": f"guided sampling of AR(1) fields with trained parts: {titles[key]}",
            "ours": value,
            "peer": peer[key][0],
            "peer_name": "exact denoiser and logit in the same sampler",
            "limit": closed[key],
            "unit": units.get(key, "1"),
            "ratio_to_peer": value / peer[key][0] if peer[key][0] else None,
            "ratio_to_limit": value / closed[key] if closed[key] else None,
            "spread": error,
        }
        for key, (value, error) in ours.items()
    ]


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
