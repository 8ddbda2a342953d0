"""Latent diffusion of spectral volumes: how what is in a picture may move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dyngen.diffusion.denoiser import Denoiser, DenoiserFunction, Parameterisation, align
from dyngen.diffusion.guidance import Term, classifier_free_guidance, guide
from dyngen.diffusion.noise import LogNormalNoise, LogUniformNoise, edm_sigmas
from dyngen.diffusion.samplers import SAMPLERS, Noise
from dyngen.models.checkpoints import build, load_model, read_checkpoint
from dyngen.models.cube_module import CUBE_KEY, VALIDATION_SIGMAS, fixed_noise, unless_given
from dyngen.models.motion_autoencoder import MotionAutoencoder, some_terms
from dyngen.models.motion_module import MotionModule, check_clips
from dyngen.models.optimisers import Optimiser
from dyngen.motion.loops import loop_guidance
from dyngen.networks.spectral_unet import SpectralUNet

GUIDANCE_SCALE = 1.75
# Ten times the paper's: motions of 128 x 80, whose latents have another scale and size, close no
# better with 200. Far smaller ones may need less.
LOOP_SCALE = 2000.0
SAMPLER, STEPS = "dpm_solver_pp_2m", 50  # of second order: DDIM needs far more
FILES = ("autoencoder", "base")


class SpectralLDM(MotionModule):
    """Denoising diffusion of spectral volumes in latents, given the start image.

    (Li et al. 2024, arXiv 2309.07906, section 4.2.) It is trained in two stages. First a network
    whose terms are independent learns to denoise one term at a time. Then its checkpoint is the
    `base` of another model, which keeps it as it is, adds attention across frequencies, and trains
    that alone. A network of another coordination (see `SpectralUNet`) is trained from scratch.

    Args:
        network: The denoising network; none where there is a base, whose network is taken.
        autoencoder: Checkpoint of a `MotionAutoencoder`; none where there is a base, whose own is
            taken. It is copied into this model's checkpoints.
        base: Checkpoint of the first stage; it is copied likewise.
        heads: Heads of the attention across frequencies that a base is given.
        parameterisation: What the network predicts: edm, eps, v or x0; that of the base if any.
        noise: Distribution of the noise levels trained on; it must cover the sampling range.
        image_dropout: How often the start image is hidden in training, for classifier-free
            guidance.
        slices: Terms of each clip that a step of the first stage sees, each at a noise level of
            its own; where terms know of each other all are seen, at one level.
        learning_rate: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Weight decay.
        optimiser: `adamw`, or `muon` for the kernels between hidden layers (see `MuonAdamW`).

    Raises:
        ValueError: For options out of range, both a network and a base, or a file that holds
            another kind of model or does not fit the network.
    """

    def __init__(
        self,
        network: SpectralUNet | None = None,
        autoencoder: str | None = None,
        base: str | None = None,
        heads: int = 4,
        parameterisation: Parameterisation = "edm",
        noise: LogNormalNoise | LogUniformNoise | None = None,
        image_dropout: float = 0.1,
        slices: int = 4,
        learning_rate: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        optimiser: Optimiser = "adamw",
    ) -> None:
        terms = 1 if network is None else network.terms  # those of the base, once it is there
        super().__init__(terms, learning_rate, warmup_steps, weight_decay, optimiser)
        if not 0 <= image_dropout < 1:
            raise ValueError(f"image_dropout is {image_dropout}; it must lie in [0, 1).")
        if slices < 1:
            raise ValueError(f"slices is {slices}; a step sees at least 1 term of each clip.")
        if base is not None and (network is not None or autoencoder is not None):
            raise ValueError(
                "A base brings its own network and autoencoder; give a base, or these two."
            )
        self.save_hyperparameters(ignore=unless_given("network", "noise"))
        self.noise = noise or LogNormalNoise(-0.2, 1.6)
        self.image_dropout, self.slices, self.heads = image_dropout, slices, heads
        self.denoiser: Denoiser | None = None
        self.autoencoder: MotionAutoencoder | None = None
        self.sources: dict[str, Any] = {}
        if network is not None:
            self.denoiser = Denoiser(network, parameterisation)
        self._files = {"autoencoder": autoencoder, "base": base}
        for name, file in self._files.items():
            if file is not None and Path(file).exists():  # else in the checkpoint to be loaded
                self._open(name, file)

    # What it is made of

    @property
    def network(self) -> SpectralUNet:
        """The denoising network.

        Raises:
            ValueError: If there is none.
        """
        if self.denoiser is None:
            raise ValueError(
                "The latent diffusion has no network; set model.init_args.network, or "
                "model.init_args.base to the checkpoint of the first stage."
            )
        network = self.denoiser.network
        assert isinstance(network, SpectralUNet)
        return network

    @property
    def latents(self) -> MotionAutoencoder:
        """The autoencoder in whose latents motion is diffused.

        Raises:
            ValueError: If there is none.
        """
        if self.autoencoder is None:
            raise ValueError(
                "The latent diffusion has no autoencoder; set model.init_args.autoencoder to a "
                "checkpoint of MotionAutoencoder."
            )
        return self.autoencoder

    def _open(self, name: str, file: str) -> None:
        """Take the autoencoder or the base in a file."""
        model = load_model(file)
        kind = MotionAutoencoder if name == "autoencoder" else SpectralLDM
        if not isinstance(model, kind):
            raise ValueError(
                f"{file} holds a {type(model).__name__}; as the {name} of latent diffusion give a "
                f"checkpoint of {kind.__name__}."
            )
        source = {
            "hyper_parameters": read_checkpoint(file)["hyper_parameters"],
            CUBE_KEY: model.cube,
        }
        if isinstance(model, MotionAutoencoder):
            self._take_autoencoder(model, source)
        else:
            self._take_base(model, source)
            self._take_autoencoder(model.latents, model.sources["autoencoder"])

    def _take_base(self, base: SpectralLDM, source: dict[str, Any]) -> None:
        base.requires_grad_(False)
        base.network.coordinate(self.heads)
        self.denoiser, self.terms = base.denoiser, base.terms
        self.sources["base"] = source

    def _take_autoencoder(self, autoencoder: MotionAutoencoder, source: dict[str, Any]) -> None:
        if autoencoder.latent_channels != self.network.channels:
            raise ValueError(
                f"The network has {self.network.channels} channels and the autoencoder's latents "
                f"{autoencoder.latent_channels}; set the network's `channels` to those."
            )
        autoencoder.keep_terms(self.terms)
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.sources["autoencoder"] = source

    def train(self, mode: bool = True) -> SpectralLDM:
        """Set training mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.autoencoder is not None:
            self.autoencoder.eval()
        if self.denoiser is not None and "base" in self.sources:
            self.denoiser.eval()
        return self

    def setup(self, stage: str) -> None:
        """Check that network and autoencoder are here, or in the checkpoint to be restored.

        Raises:
            ValueError: If they are not.
        """
        if self._trainer is not None and self.trainer.ckpt_path is None:
            for name, file in self._files.items():
                if file is not None and name not in self.sources:
                    self._open(name, file)
            _ = self.network, self.latents

    def meet_cube(self) -> None:
        """Check besides that the autoencoder was trained on the same kind of clips."""
        super().meet_cube()
        if self.cube is not None and self.latents.cube is not None:
            check_clips(self.latents.cube, self.cube)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down how to rebuild autoencoder and base, whose weights are in the state.

        Their files are not: a checkpoint needs no other.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["embedded"] = self.sources
        settings = checkpoint.get("hyper_parameters", {})
        checkpoint["hyper_parameters"] = {k: v for k, v in settings.items() if k not in FILES}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild autoencoder and base as the checkpoint describes them, if they are not there."""
        sources = checkpoint.get("embedded", {})
        if "base" in sources and self.denoiser is None:
            base = build(sources["base"]["hyper_parameters"], "the embedded base")
            assert isinstance(base, SpectralLDM)
            self._take_base(base, sources["base"])
        if "autoencoder" in sources and self.autoencoder is None:
            source = sources["autoencoder"]
            autoencoder = build(source["hyper_parameters"], "the embedded autoencoder")
            assert isinstance(autoencoder, MotionAutoencoder)
            autoencoder.cube = source[CUBE_KEY]
            self._take_autoencoder(autoencoder, source)
        super().on_load_checkpoint(checkpoint)

    # Training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted denoising error of some terms of each clip, or of all terms together."""
        assert self.denoiser is not None
        clean, image, term = self._some(batch) if self._one_by_one else self._all(batch)
        sigma = self.noise.sample(len(clean), clean.device)
        noisy = clean + align(sigma, clean) * torch.randn_like(clean)
        dropped = torch.rand(len(image), device=clean.device) < self.image_dropout
        context = self.network.encode_image(image, (clean.shape[-2], clean.shape[-1]))
        each = len(clean) // len(image)
        denoised = self.denoiser(
            noisy,
            sigma,
            context=context.repeat_interleave(each, 0),
            dropped=dropped.repeat_interleave(each, 0),
            term=term,
        )
        error = (denoised - clean).square().mean(dim=(1, 2, 3, 4))
        loss = (self.denoiser.loss_weight(sigma) * error).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @property
    def _one_by_one(self) -> bool:
        return self.network.coordination == "independent"

    @torch.no_grad()
    def _all(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, None]:
        """Latents (B, K, C, h, w) of all terms and images (B, 3, H, W)."""
        return self.latents.encode(self.volume(batch["displacement"])), batch["image"], None

    @torch.no_grad()
    def _some(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B n, 1, C, h, w) of n terms of each clip, images, and which terms (B n, 1)."""
        chosen, term = some_terms(self.volume(batch["displacement"]), self.slices)
        latents = self.latents.encode_slices(self.latents.normalise(chosen, term))
        return latents.flatten(0, 1)[:, None], batch["image"], term.flatten()[:, None]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the denoising error at fixed noise levels, with the same noise each time."""
        assert self.denoiser is not None
        clean, image, _ = self._all(batch)
        denoiser, noise = self.conditional(image), fixed_noise(clean, seed=batch_idx)
        total = torch.zeros((), device=clean.device)
        for level in VALIDATION_SIGMAS:
            sigma = clean.new_full((len(clean),), level)
            error = (denoiser(clean + level * noise, sigma) - clean).square().mean()
            total = total + error * self.denoiser.loss_weight(sigma).mean()
            self.log(f"denoising_error/sigma_{level:g}", error)
        self.log("validate/loss", total / len(VALIDATION_SIGMAS), prog_bar=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The figures of validation on the test split, and the error of reconstructed volumes."""
        self.validation_step(batch, batch_idx)
        errors = self.reconstruction_errors(batch, seed=batch_idx)
        for level, error in zip(VALIDATION_SIGMAS, errors, strict=True):
            self.log(f"reconstruction_error/sigma_{level:g}", error)
        self.log("reconstruction_error", errors.mean())

    @torch.no_grad()
    def reconstruction_errors(
        self,
        batch: dict[str, Tensor],
        seed: int = 0,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """How far off denoised and decoded volumes are, at each of `VALIDATION_SIGMAS`.

        It is the mean absolute error of normalised coefficients after a volume has been encoded,
        noised, denoised once given its start image, and decoded: what the autoencoder loses, and
        what the network cannot tell of the rest.

        Args:
            batch: Displacements and images.
            seed: Of the noise.
            normalise: Of volumes in pixels, to be compared; by default the autoencoder's own.

        Returns:
            (noise levels,).
        """
        normalise = normalise or self.latents.normalise
        volume = self.volume(batch["displacement"])
        clean, wanted = self.latents.encode(volume), normalise(volume)
        denoiser, noise = self.conditional(batch["image"]), fixed_noise(clean, seed)
        errors = []
        for level in VALIDATION_SIGMAS:
            denoised = denoiser(clean + level * noise, clean.new_full((len(clean),), level))
            errors.append((normalise(self.latents.decode(denoised)) - wanted).abs().mean())
        return torch.stack(errors)

    # Sampling

    def forward(self, x: Tensor, sigma: Tensor, image: Tensor | None = None) -> Tensor:
        """The estimate of clean latents (B, K, C, h, w) from noisy ones at sigma (B,).

        Args:
            x: Noisy latents.
            sigma: 0-d or (B,).
            image: Start images (B, 3, H, W) in -1..1; None for none.
        """
        return self.conditional(image)(x, sigma)

    def conditional(self, image: Tensor | None) -> DenoiserFunction:
        """The denoiser `(x, sigma)` of latents given start images (B, 3, H, W), or none."""
        assert self.denoiser is not None
        if image is None:
            return self.denoiser
        context = self.network.encode_image(image, self._latent_size(image))
        return partial(self.denoiser, context=context)

    def decode(self, latents: Tensor) -> Tensor:
        """Spectral volumes (B, K, 4, H, W) in pixels of latents (B, K, C, h, w)."""
        return self.latents.decode(latents)

    def loop_term(
        self,
        image: Tensor,
        scale: float = LOOP_SCALE,
        interval: tuple[float, float] = (0.0, float("inf")),
    ) -> Term:
        """A term of guidance towards motions of these images (B, 3, H, W) that close.

        (Li et al. 2024, section 5.) Use it with the sampler `self_recurrent_ddim`, 500 steps of two
        recurrences in the paper.

        Args:
            image: The same images as are sampled from.
            scale: u.
            interval: Noise levels at which it acts.
        """
        return loop_guidance(
            self.decode,
            self.conditional(image),
            scale=scale,
            frames=self.frames,
            interval=interval,
        )

    @torch.no_grad()
    def sample(
        self,
        image: Tensor,
        noise: Noise | int = 0,
        steps: int = STEPS,
        guidance_scale: float = GUIDANCE_SCALE,
        terms: Sequence[Term] = (),
        sampler: str = SAMPLER,
        sigma_min: float = 0.02,
        sigma_max: float = 80.0,
        **options: Any,
    ) -> Tensor:
        """Sample how each image may move.

        Args:
            image: Start images (B, 3, H, W) in -1..1.
            noise: A seed, with which the sample of an image depends on that and its place in the
                batch alone; or what gives standard normal numbers like a tensor.
            steps: Of the sampler.
            guidance_scale: w of classifier-free guidance, `(1 + w) D(image) - w D(none)`.
            terms: Further guidance on the latents, such as `loop_term`.
            sampler: Name of a sampler in `SAMPLERS`.
            sigma_min: Lowest noise level before 0.
            sigma_max: Highest noise level.
            options: Of the sampler, such as `recurrences`.

        Returns:
            Spectral volumes (B, K, 4, H, W) in pixels.

        Raises:
            ValueError: For an unknown sampler, or images that do not fit the autoencoder.
        """
        if sampler not in SAMPLERS:
            raise ValueError(f"Unknown sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
        height, width = self._latent_size(image)
        source = seeded_noise(noise, len(image)) if isinstance(noise, int) else noise
        sigmas = edm_sigmas(steps, sigma_min, sigma_max)
        shape = (len(image), self.terms, self.network.channels, height, width)
        start = float(sigmas[0]) * source(image.new_empty(shape))
        guidance = list(terms)
        if guidance_scale:
            assert self.denoiser is not None
            unconditional = {"context": None}
            guidance.append(
                classifier_free_guidance(self.denoiser, guidance_scale, unconditional=unconditional)
            )
        guided = guide(self.conditional(image), guidance)
        return self.decode(SAMPLERS[sampler](guided, start, sigmas, noise=source, **options))

    def _latent_size(self, image: Tensor) -> tuple[int, int]:
        height, width, factor = *image.shape[-2:], self.latents.factor
        if height % factor or width % factor:
            raise ValueError(
                f"Images of {height} x {width} pixels are no multiple of {factor}, which the "
                "autoencoder shrinks them by; crop them to one."
            )
        return height // factor, width // factor


def seeded_noise(seed: int, count: int, first: int = 0) -> Noise:
    """A source of standard normal numbers for a batch, each sample with a stream of its own.

    The numbers are drawn on the CPU, so that they are the same on every device.

    Args:
        seed: Of all streams.
        count: B.
        first: Number of the batch's first sample; the same one has the same stream in any batch.
    """
    streams = [
        torch.Generator().manual_seed(
            int(np.random.SeedSequence(seed, spawn_key=(first + i,)).generate_state(1)[0])
        )
        for i in range(count)
    ]

    def noise(like: Tensor) -> Tensor:
        drawn = [torch.randn(like.shape[1:], generator=stream) for stream in streams]
        return torch.stack(drawn).to(like)

    return noise
