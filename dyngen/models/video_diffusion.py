"""The video diffusion baseline: a conditional denoiser of blocks of frames, given past frames."""

from __future__ import annotations

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
    with_errors,
)
from dyngen.models.optimisers import Optimiser


class VideoDiffusion(CubeModule):
    """Denoising diffusion of n frames given the k before them (Ho et al. 2022, arXiv 2204.03458).

    With n = 1 it is the autoregressive conditional model, what a guided image model is measured
    against; with more the frames of a block are denoised together, all at one noise level. It is
    trained, averaged, sampled and evaluated as the other models are.

    Args:
        network: A network `(scaled blocks, noise label, history) -> output` with `history_length`
            and `block_length`, such as `VideoUNet`.
        parameterisation: What the network predicts: edm, eps, v or x0.
        noise: Distribution of the noise levels trained on; it must cover the sampling range.
        sigma_data: Standard deviation of the normalised frames.
        history_noise: Largest standard deviation of the noise on past frames in training, which
            keeps rollouts stable (see `with_errors`).
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
        history_noise: float = 0.0,
        learning_rate: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        area_weighted: bool = False,
        optimiser: Optimiser = "adamw",
    ) -> None:
        super().__init__(learning_rate, warmup_steps, weight_decay, area_weighted, optimiser)
        if history_noise < 0:
            raise ValueError(f"history_noise is {history_noise}; it must not be negative.")
        self.save_hyperparameters(ignore=unless_given("network", "noise"))
        self.denoiser = Denoiser(network, parameterisation, sigma_data)
        self.noise = noise or LogNormalNoise(-0.5, 1.4)
        self.history_noise = history_noise

    @property
    def history_length(self) -> int:
        """Number of past frames k that the network is given."""
        return int(self.denoiser.network.history_length)  # type: ignore[arg-type]

    @property
    def block_length(self) -> int:
        """Number of frames n that are denoised together."""
        return int(self.denoiser.network.block_length)  # type: ignore[arg-type]

    @property
    def context_channels(self) -> int:
        """Channels of static fields and forcing that the network takes."""
        return int(getattr(self.denoiser.network, "context_channels", 0))

    def denoise(
        self, noisy: Tensor, sigma: Tensor, history: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """The estimate of clean frames, like `noisy`.

        Args:
            noisy: Blocks (B, n, C, H, W) at sigma, or frames (B, C, H, W) where n is 1.
            sigma: 0-d or (B,), one noise level for all frames of a block.
            history: Clean past frames (B, k, C, H, W), oldest first.
            context: Static fields and forcing (B, n, C_context, H, W), where the network takes any.

        Raises:
            ValueError: If there are not n frames or not k past ones.
        """
        known = as_context(context)
        denoised: Tensor = self.denoiser(noisy, sigma, history=history, **known)
        return denoised

    def forward(
        self, x: Tensor, sigma: Tensor, history: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """The same as `denoise`."""
        return self.denoise(x, sigma, history, context)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted denoising error of the batch's blocks, each at its own noise level."""
        history, clean = self._split(batch)
        sigma = self.noise.sample(len(clean), clean.device)
        noisy = clean + align(sigma, clean) * torch.randn_like(clean)
        history = with_errors(history, self.history_noise)
        error = self.mean_square(self.denoise(noisy, sigma, history, self._context(batch)) - clean)
        loss = (self.denoiser.loss_weight(sigma) * error).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the denoising error at fixed noise levels, with the same noise each time."""
        history, clean = self._split(batch)
        noise = fixed_noise(clean, seed=batch_idx)
        total = torch.zeros((), device=clean.device)
        for level in VALIDATION_SIGMAS:
            sigma = clean.new_full((len(clean),), level)
            denoised = self.denoise(clean + level * noise, sigma, history, self._context(batch))
            error = self.mean_square(denoised - clean).mean()
            total = total + error * self.denoiser.loss_weight(sigma).mean()
            self.log(f"denoising_error/sigma_{level:g}", error)
        self.log("validate/loss", total / len(VALIDATION_SIGMAS), prog_bar=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The same figures as in validation, on the test split."""
        self.validation_step(batch, batch_idx)

    def _context(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Static fields and forcing of each frame of the blocks (B, n, C_context, H, W)."""
        context = frame_context(self.denoiser.network, batch)
        return None if context is None else context[:, self.history_length :]

    def _split(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Past frames (B, k, C, H, W) and the block (B, n, C, H, W) of each window."""
        frames, past = batch["frames"], self.history_length
        if frames.shape[1] != past + self.block_length:
            raise ValueError(
                f"The video model sees {past} past frames and a block of {self.block_length}, but "
                f"windows have {frames.shape[1]} frames; set data.init_args.window_length to "
                f"{past + self.block_length}."
            )
        return frames[:, :past], frames[:, past:]
