"""The image diffusion model: it only ever sees single snapshots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dyngen.diffusion.denoiser import Denoiser, Parameterisation, align
from dyngen.diffusion.noise import LogNormalNoise, LogUniformNoise
from dyngen.models.cube_module import (
    VALIDATION_SIGMAS,
    CubeModule,
    as_context,
    fixed_noise,
    frame_context,
    unless_given,
)
from dyngen.models.optimisers import Optimiser


class ImageDDPM(CubeModule):
    """Denoising diffusion of single frames (Ho et al. 2020; Karras et al. 2022).

    Args:
        network: A network `(scaled frames, noise label) -> output`, such as `UNet2d`. One with
            `context_channels` is given the static fields and the forcing of each frame too.
        parameterisation: What the network predicts: edm, eps, v or x0.
        noise: Distribution of the noise levels trained on.
        sigma_data: Standard deviation of the normalised frames.
        learning_rate: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Weight decay.
        area_weighted: Whether errors count by the area of their cells.
        optimiser: `adamw`, or `muon` for the kernels between hidden layers (see `MuonAdamW`).
    """

    def __init__(
        self,
        network: nn.Module,
        parameterisation: Parameterisation = "edm",
        noise: LogNormalNoise | LogUniformNoise | None = None,
        sigma_data: float = 1.0,
        learning_rate: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        area_weighted: bool = False,
        optimiser: Optimiser = "adamw",
    ) -> None:
        super().__init__(learning_rate, warmup_steps, weight_decay, area_weighted, optimiser)
        self.save_hyperparameters(ignore=unless_given("network", "noise"))
        self.denoiser = Denoiser(network, parameterisation, sigma_data)
        self.noise = noise or LogNormalNoise(-0.5, 1.4)

    @property
    def context_channels(self) -> int:
        """Channels of static fields and forcing that the network takes."""
        return int(getattr(self.denoiser.network, "context_channels", 0))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted denoising error of the batch's frames, each at its own noise level."""
        clean = batch["frames"].flatten(0, 1)
        sigma = self.noise.sample(len(clean), clean.device)
        context = frame_context(self.denoiser.network, batch)
        known = as_context(None if context is None else context.flatten(0, 1))
        noisy = clean + align(sigma, clean) * torch.randn_like(clean)
        error = self.mean_square(self.denoiser(noisy, sigma, **known) - clean)
        loss = (self.denoiser.loss_weight(sigma) * error).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the denoising error at fixed noise levels, with the same noise each time."""
        clean = batch["frames"][:, -1]
        context = frame_context(self.denoiser.network, batch)
        known = as_context(None if context is None else context[:, -1])
        noise = fixed_noise(clean, seed=batch_idx)
        total = torch.zeros((), device=clean.device)
        for level in VALIDATION_SIGMAS:
            sigma = clean.new_full((len(clean),), level)
            denoised = self.denoiser(clean + level * noise, sigma, **known)
            error = self.mean_square(denoised - clean).mean()
            total = total + error * self.denoiser.loss_weight(sigma).mean()
            self.log(f"denoising_error/sigma_{level:g}", error)
        self.log("validate/loss", total / len(VALIDATION_SIGMAS), prog_bar=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The same figures as in validation, on the test split."""
        self.validation_step(batch, batch_idx)

    def forward(self, x: Tensor, sigma: Tensor, **conditioning: Any) -> Tensor:
        """The estimate of the clean frames (B, C, H, W) from noisy ones at sigma (B,)."""
        return self.denoiser(x, sigma, **conditioning)
