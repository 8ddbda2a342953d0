"""The autoencoder of spectral volumes, in whose latents motion is diffused."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from torch import Tensor

from dyngen.models.cube_module import unless_given
from dyngen.models.motion_module import MotionModule
from dyngen.models.optimisers import Optimiser
from dyngen.motion.spectral_volume import (
    TERMS,
    FrequencyAdaptive,
    ImageSize,
    StreamingQuantiles,
)
from dyngen.networks.autoencoder import ImageAutoencoder

log = logging.getLogger(__name__)

QUANTILE = 0.95  # of |S_k| over the training set, the scale of a term
LEAST_SCALE = 1e-6  # pixels; less is what rounding makes of displacements that do not change
SCALES = 4  # of the gradients that are to be consistent


class MotionAutoencoder(MotionModule):
    """A variational autoencoder of the slices of spectral volumes (Li et al. 2024, section 4.2).

    Each term, four channels, is an image of its own for one network that all terms share. The loss
    is `L1 + 0.2 gradient consistency + 1e-6 KL` of normalised volumes (arXiv 2309.07906, section 6
    of its supplement), the KL divergence summed over a latent and divided, as the others are, by
    the number of elements of a slice (as in Rombach et al. 2022, arXiv 2112.10752).

    Latents as others see them have zero mean and unit variance in each channel, by moments that
    are averaged over training. Volumes are in pixels, and the scales they are normalised by are
    measured when training begins and kept in the checkpoint.

    Args:
        network: Encoder and decoder of images of four channels.
        terms: K, the lowest terms of the spectral volume.
        normalisation: `frequency` scales each term by its 0.95 quantile and takes the root,
            `image_size` divides by the size of the image, as the ablation does.
        slices: Terms drawn from each clip at a step, or all where there are fewer.
        gradient_weight: Weight of the gradient consistency.
        divergence_weight: Weight of the KL divergence.
        statistics_batches: Batches of training data that scales are measured on; None takes all.
        learning_rate: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Weight decay.
        optimiser: `adamw`, or `muon` for the kernels between hidden layers (see `MuonAdamW`).

    Raises:
        ValueError: For a normalisation that does not exist, negative weights, or no slices.
    """

    latent_moments: Tensor  # (2, C_latent), mean and mean square

    def __init__(
        self,
        network: ImageAutoencoder | None = None,
        terms: int = TERMS,
        normalisation: Literal["frequency", "image_size"] = "frequency",
        slices: int = 4,
        gradient_weight: float = 0.2,
        divergence_weight: float = 1e-6,
        statistics_batches: int | None = None,
        learning_rate: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        optimiser: Optimiser = "adamw",
    ) -> None:
        super().__init__(terms, learning_rate, warmup_steps, weight_decay, optimiser)
        if normalisation not in ("frequency", "image_size"):
            raise ValueError(
                f"normalisation is '{normalisation}'; choose 'frequency' or 'image_size'."
            )
        if min(gradient_weight, divergence_weight) < 0:
            raise ValueError("gradient_weight and divergence_weight must not be negative.")
        if slices < 1:
            raise ValueError(f"slices is {slices}; a step sees at least 1 term of each clip.")
        self.save_hyperparameters(ignore=unless_given("network"))
        self.network = network or ImageAutoencoder()
        self.normalisation: FrequencyAdaptive | ImageSize = (
            FrequencyAdaptive(terms) if normalisation == "frequency" else ImageSize()
        )
        self.slices = slices
        self.gradient_weight, self.divergence_weight = gradient_weight, divergence_weight
        self.statistics_batches = statistics_batches
        moments = torch.stack([torch.zeros(self.latent_channels), torch.ones(self.latent_channels)])
        self.register_buffer("latent_moments", moments)

    @property
    def factor(self) -> int:
        """How many times smaller a latent is than the image, along each side."""
        return self.network.factor

    @property
    def latent_channels(self) -> int:
        """Channels of the latent of one term."""
        return self.network.latent_channels

    def keep_terms(self, terms: int) -> None:
        """Forget all but the lowest terms, for models of fewer.

        Raises:
            ValueError: If there are not as many.
        """
        if not 1 <= terms <= self.terms:
            raise ValueError(
                f"The autoencoder knows {self.terms} terms, not {terms}; train it with "
                "--model.init_args.terms of at least as many."
            )
        self.terms = terms
        if isinstance(self.normalisation, FrequencyAdaptive):
            self.normalisation = FrequencyAdaptive(self.normalisation.scales[:terms])

    def encode(self, volume: Tensor) -> Tensor:
        """Volumes (B, K, 4, H, W) in pixels to latents (B, K, C, H / factor, W / factor).

        Raises:
            ValueError: If there are not K terms, or H or W is not a multiple of the factor.
        """
        return self.encode_slices(self.normalisation.normalise(volume))

    def encode_slices(self, slices: Tensor) -> Tensor:
        """Normalised slices (B, n, 4, H, W) of any terms to latents (B, n, C, h, w)."""
        mean, _ = self.network.encode(slices.flatten(0, 1))
        shift, scale = self._latent_scale(mean)
        return ((mean - shift) / scale).unflatten(0, slices.shape[:2])

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, K, C, h, w) to volumes (B, K, 4, H, W) in pixels.

        Raises:
            ValueError: If there are not K terms.
        """
        return self.denormalise(self.decode_slices(latents))

    def decode_slices(self, latents: Tensor) -> Tensor:
        """Latents (B, n, C, h, w) of any terms to normalised slices (B, n, 4, H, W)."""
        flat = latents.flatten(0, 1)
        shift, scale = self._latent_scale(flat)
        return self.network.decode(flat * scale + shift).unflatten(0, latents.shape[:2])

    def normalise(self, volume: Tensor, term: Tensor | None = None) -> Tensor:
        """Volumes (B, K, 4, H, W) in pixels to what the network sees, of the same shape.

        Args:
            term: (B, n), where the volumes are of these terms alone: (B, n, 4, H, W).
        """
        return self.normalisation.normalise(volume, term)

    def denormalise(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalise`; the mean, which has no phase, is real."""
        volume = self.normalisation.denormalise(normalised)
        real = volume.new_tensor([1.0, 0.0, 1.0, 0.0])[:, None, None]
        return torch.cat([volume[:, :1] * real, volume[:, 1:]], 1)

    def on_fit_start(self) -> None:
        """Meet the clips; when they are the first, measure the scale of each term."""
        known = self.cube is not None
        super().on_fit_start()
        if not known and isinstance(self.normalisation, FrequencyAdaptive):
            self.normalisation.scales.copy_(self._measure_scales())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of some slices of each clip."""
        x = self.normalise(*some_terms(self.volume(batch["displacement"]), self.slices))
        x = x.flatten(0, 1)
        mean, log_variance = self.network.encode(x)
        self._follow(mean.detach())
        latents = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        reconstructed = self.network.decode(latents)
        error = (reconstructed - x).abs().mean()
        consistency = gradient_consistency(reconstructed, x)
        divergence = kl_divergence(mean, log_variance).sum() / x.numel()
        loss = error + self.gradient_weight * consistency + self.divergence_weight * divergence
        self.log("train/reconstruction_error", error, prog_bar=True)
        self.log("train/gradient_error", consistency)
        self.log("train/divergence", divergence)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the error of reconstructed volumes, normalised and in pixels."""
        volume = self.volume(batch["displacement"])
        normalised = self.normalise(volume)
        reconstructed = self.decode_slices(self.encode_slices(normalised))
        error = (reconstructed - normalised).abs()
        loss = error.mean() + self.gradient_weight * gradient_consistency(
            reconstructed.flatten(0, 1), normalised.flatten(0, 1)
        )
        self.log("validate/loss", loss, prog_bar=True)
        self.log("reconstruction_error", error.mean())
        for term, value in enumerate(error.mean(dim=(0, 2, 3, 4))):
            self.log(f"reconstruction_error/term_{term}", value)
        lost = (self.denormalise(reconstructed) - volume).square().sum()
        self.log("energy_lost", lost / volume.square().sum().clamp(min=1e-12))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The same figures as in validation, on the test split."""
        self.validation_step(batch, batch_idx)

    def forward(self, volume: Tensor) -> Tensor:
        """Volumes (B, K, 4, H, W) in pixels, encoded and decoded."""
        return self.decode(self.encode(volume))

    def _measure_scales(self) -> Tensor:
        """The quantile of each term over the training set, (K,) in pixels.

        Raises:
            ValueError: If there is a term that no clip has.
        """
        quantiles = StreamingQuantiles(self.terms).to(self.device)
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for number, batch in enumerate(datamodule.train_dataloader()):
                if number == self.statistics_batches:
                    break
                quantiles.update(self.volume(batch["displacement"].to(self.device)))
        quantiles.counts = self.trainer.strategy.reduce(quantiles.counts, reduce_op="sum")
        scales = quantiles.quantile(QUANTILE)
        for term, scale in enumerate(scales.tolist()):
            if scale < LEAST_SCALE:
                raise ValueError(
                    f"Term {term} has no motion in any clip, but {scale:.1g} pixels of rounding "
                    "errors; use fewer terms, or clips in which something moves."
                )
        sizes = ", ".join(f"{scale:.3g}" for scale in scales.tolist())
        log.info("0.95 quantile of the amplitude of each term, in pixels: %s", sizes)
        return scales

    @torch.no_grad()
    def _follow(self, latents: Tensor) -> None:
        """Average the moments of latents (N, C, h, w) over about the last twenty steps."""
        latents = latents.float()
        moments = torch.stack([latents.mean((0, 2, 3)), latents.square().mean((0, 2, 3))])
        self.latent_moments.lerp_(moments, max(1 / (self.global_step + 1), 0.05))

    def _latent_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of latents, (C, 1, 1)."""
        mean, square = self.latent_moments[:, :, None, None].to(like.dtype)
        return mean, (square - mean.square()).clamp(min=1e-12).sqrt()


def some_terms(volume: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As many terms of each volume (B, K, ...), drawn without repetition.

    Returns:
        The terms (B, n, ...), and which they are (B, n), n being K if that is less than the count.
    """
    term = torch.rand(volume.shape[:2], device=volume.device).argsort(1)[:, :count]
    clip = torch.arange(len(volume), device=volume.device)[:, None]
    return volume[clip, term], term


def gradient_consistency(predicted: Tensor, target: Tensor) -> Tensor:
    """How much the error of images changes from pixel to pixel, at four scales.

    `sum_s mean |d_x R_s| + mean |d_y R_s|` of the residual `R = predicted - target`, of which at
    scale s every 2^s-th pixel is taken (Li & Snavely 2018, arXiv 1804.00607, equation 4); scales at
    which no two pixels are left are passed over.

    Args:
        predicted: (N, C, H, W).
        target: Likewise.

    Returns:
        A number.
    """
    residual = predicted - target
    total = residual.new_zeros(())
    for scale in range(SCALES):
        part = residual[..., :: 2**scale, :: 2**scale]
        for axis in (-1, -2):
            if part.shape[axis] > 1:
                total = total + part.diff(dim=axis).abs().mean()
    return total


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """`KL(N(mean, variance) || N(0, 1))` of each element, like `mean`."""
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2
