"""The time-consistency discriminator, trained beside a frozen image diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_modules.climate_cube import check_compatible
from dyngen.diffusion.cycle_spinning import check_shifts, described, spun
from dyngen.diffusion.denoiser import Denoiser, align
from dyngen.diffusion.guidance import log_density_ratio
from dyngen.diffusion.noise import LogNormalNoise, LogUniformNoise
from dyngen.models.checkpoints import build, load_model, read_checkpoint, training_cost
from dyngen.models.cube_module import (
    CUBE_KEY,
    VALIDATION_SIGMAS,
    CubeModule,
    as_context,
    fixed_noise,
    frame_context,
    unless_given,
    with_errors,
)
from dyngen.models.image_ddpm import ImageDDPM
from dyngen.models.imported import (
    denoiser_from_config,
    denoiser_from_folder,
    denoiser_from_state_dict,
)
from dyngen.models.optimisers import Optimiser
from dyngen.networks.discriminators import ForecastEnergy, UNetEnergy

# Small beside the other losses, whose share of a clipped gradient it must not take.
LIKELIHOOD_WEIGHT = 0.1


class TimeConsistencyDiscriminator(CubeModule):
    """A logit `l ~ log p(h | x_sigma) - log p(h)` that guides an image model at sampling time.

    Positives are `(x_0 + sigma eps, h)` from one window; negatives pair the same noisy frame with
    the history of another window of the batch (Hess et al. 2025, arXiv 2505.09089). To balanced
    binary cross-entropy, denoising likelihood score matching (Chao et al. 2022, arXiv 2203.14206)
    adds the guided denoising error `|| D + sigma^2 grad l - x_0 ||^2`, with the image model D
    frozen: cross-entropy alone saturates, and its gradient then guides nothing. Score matching
    determines the logit's gradient and leaves an offset `b(h, sigma)` open; a discriminator with a
    method `offset(sigma, history)` has just that trained by cross-entropy, so that the two losses
    share the logit instead of pulling it two ways. One with a method `forecast(history, context)`
    has the square error of that forecast besides, by which alone the forecast is trained; and with
    `learned` spread, a method `forecast_spread(forecast, history, context)` is trained to tell the
    size of that error at each value, by the likelihood of a Gaussian.

    Since `l = log p(x | h) - log p(x)` up to a constant, a logit with a forecast m may begin from
    what is known of both densities already, and the discriminator learn no more than the rest:
    `log N(x; m, sigma^2 + s^2)` minus the image model's own `log p(x) - log p(m)` (see
    `log_density_ratio`). The image model's frozen gradient is then cancelled where the history
    knows better, which a small network learns badly at high noise.

    Args:
        discriminator: A network `(x, sigma, history) -> logit (B,)` with `history_length`, such as
            `ForecastEnergy`, `UNetEnergy` or `EncoderDiscriminator`. One with `context_channels` is
            given the static fields and the forcing of the frame too, and so is an image model that
            has any; one with `feature_channels` is given the image model's features at the frame.
        image_model: The frozen image model: a checkpoint of `ImageDDPM`, the folder of a
            `diffusers` unconditional U-Net, or a state_dict with the JSON file of its network's
            arguments beside it. It is copied into this model's own checkpoints.
        cross_entropy_weight: Weight of the balanced binary cross-entropy. With 0 a discriminator's
            `offset` stays as it begins: guidance and particles do not see it, but the sign of the
            logit then classifies nothing.
        score_matching_weight: Weight of denoising likelihood score matching; 0 is the plain
            classifier of the paper.
        contrastive_weight: Weight of InfoNCE over the frames of the batch (van den Oord et al.
            2018, arXiv 1807.03748, equation 4).
        forecast_weight: Weight of the forecast's square error.
        forecast_spread: s, the standard deviation of the forecast's error, or one for each channel,
            of a logit that begins from the ratio of densities; `learned` takes what the
            discriminator's `forecast_spread` tells of each value; None begins from 0. Without
            `learned`, a network for the spread (`spread_widths`) is left out: nothing trains it.
        ratio_level: Noise level below which the image model alone is the better start, since the
            forecast's errors are smooth and the Gaussian takes them for white: the ratio is
            multiplied by `sigma^2 / (sigma^2 + ratio_level^2)`.
        score_matching_windows: How many windows of a batch have score matching and cross-entropy;
            None is all. The forecast, much the cheaper, is trained on every one.
        noise: Distribution of the noise levels trained on; it must cover the sampling range.
        history_noise: Largest standard deviation of the noise on past frames in training, which
            keeps rollouts stable (see `with_errors`).
        history_change: Likewise the largest share of other windows' change from frame to frame.
        history_offset: Likewise the largest standard deviation of a constant.
        history_forecast: Share of windows in training whose last past frame is the discriminator's
            own forecast from those before it, without a gradient: errors such as a rollout has,
            which the model learns to make up for (Brandstetter et al. 2022, arXiv 2202.03376,
            section 3.1). Windows then have one frame more, in front.
        forecast_shifts: Cells along y and x, such as `[[0, 0], [1, 1]]`, over which a forecast is
            averaged (see `spun`), in sampling and in what energy and spread are trained with; the
            forecast itself is trained in place. The spread is then learned of as many windows as
            the energy.
        reference: Checkpoint of a conditional model whose denoising error is logged beside.
        learning_rate: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Weight decay.
        area_weighted: Whether denoising errors count by the area of their cells.
        optimiser: `adamw`, or `muon` for the kernels between hidden layers (see `MuonAdamW`).
    """

    def __init__(
        self,
        discriminator: nn.Module,
        image_model: str | None = None,
        cross_entropy_weight: float = 1.0,
        score_matching_weight: float = 1.0,
        contrastive_weight: float = 0.0,
        forecast_weight: float = 3.0,
        forecast_spread: float | list[float] | Literal["learned"] | None = None,
        ratio_level: float = 0.0,
        score_matching_windows: int | None = None,
        noise: LogNormalNoise | LogUniformNoise | None = None,
        history_noise: float = 0.0,
        history_change: float = 0.0,
        history_offset: float = 0.0,
        history_forecast: float = 0.0,
        forecast_shifts: list[list[int]] | None = None,
        reference: str | None = None,
        learning_rate: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        area_weighted: bool = False,
        optimiser: Optimiser = "adamw",
    ) -> None:
        super().__init__(learning_rate, warmup_steps, weight_decay, area_weighted, optimiser)
        if min(history_noise, history_change, history_offset) < 0:
            raise ValueError(
                f"history_noise is {history_noise}, history_change {history_change} and "
                f"history_offset {history_offset}; they must not be negative."
            )
        if not 0 <= history_forecast <= 1:
            raise ValueError(f"history_forecast is {history_forecast}; it is a share, of 0 to 1.")
        weights = (cross_entropy_weight, score_matching_weight, contrastive_weight)
        if min(*weights, forecast_weight) < 0:
            raise ValueError(
                "cross_entropy_weight, score_matching_weight, contrastive_weight and "
                "forecast_weight must not be negative."
            )
        if not any(weights):
            raise ValueError(
                "cross_entropy_weight, score_matching_weight and contrastive_weight are all 0; "
                "give one of them a positive weight, or there is nothing to train."
            )
        if forecast_spread == "learned":
            if getattr(discriminator, "spreader", None) is None:
                raise ValueError(
                    "forecast_spread is learned, but the discriminator has no network for it; give "
                    "ForecastEnergy spread_widths, or a number here."
                )
        elif forecast_spread is not None:
            spreads = forecast_spread if isinstance(forecast_spread, list) else [forecast_spread]
            if not min(spreads) > 0:
                raise ValueError(f"forecast_spread is {forecast_spread}; it must be positive.")
            if not hasattr(discriminator, "forecast"):
                raise ValueError(
                    f"forecast_spread is {forecast_spread}, but {type(discriminator).__name__} has "
                    "no forecast; leave it out, or use ForecastEnergy."
                )
        if forecast_spread != "learned" and isinstance(discriminator, ForecastEnergy):
            discriminator.spreader = None
        if not (cross_entropy_weight or contrastive_weight) and isinstance(
            discriminator, UNetEnergy
        ):
            discriminator.history_features.requires_grad_(False)
            discriminator.offset_of.requires_grad_(False)
        for name, value in (
            ("forecast_shifts", forecast_shifts),
            ("history_forecast", history_forecast or None),
        ):
            if value is not None and not hasattr(discriminator, "forecast"):
                raise ValueError(
                    f"{name} is {value}, but {type(discriminator).__name__} has no forecast; leave "
                    "it out, or use ForecastEnergy."
                )
        if ratio_level < 0:
            raise ValueError(f"ratio_level is {ratio_level}; it must not be negative.")
        if score_matching_windows is not None and score_matching_windows < 2:
            raise ValueError(
                f"score_matching_windows is {score_matching_windows}; it must be 2 or more, for a "
                "window's negative is another one's history."
            )
        self.save_hyperparameters(ignore=unless_given("discriminator", "noise"))
        self.discriminator = discriminator
        self.cross_entropy_weight = cross_entropy_weight
        self.score_matching_weight = score_matching_weight
        self.contrastive_weight = contrastive_weight
        self.forecast_weight = forecast_weight
        self.forecast_spread = forecast_spread
        self.ratio_level = ratio_level
        self.score_matching_windows = score_matching_windows
        self.noise = noise or LogNormalNoise(-0.5, 1.4)
        self.forecast_shifts = check_shifts(forecast_shifts or [[0, 0]], discriminator)
        self.history_errors = (history_noise, history_change, history_offset)
        self.history_forecast = history_forecast
        self.denoiser: Denoiser | None = None
        self.image_source: dict[str, Any] = {}
        self._image_model = image_model
        if image_model is not None and Path(image_model).exists():  # else in the checkpoint
            self._adopt(*open_image_model(image_model))
        # In a list, so that the reference's weights are not in this model's checkpoints.
        self._reference: list[Any] = [] if reference is None else [load_model(reference)]

    @property
    def history_length(self) -> int:
        """Number of past frames that the discriminator sees."""
        return int(self.discriminator.history_length)  # type: ignore[arg-type]

    @property
    def context_channels(self) -> int:
        """Channels of static fields and forcing that the discriminator takes."""
        return int(getattr(self.discriminator, "context_channels", 0))

    def _adopt(self, denoiser: Denoiser, source: dict[str, Any]) -> None:
        wanted = getattr(self.discriminator, "feature_channels", 0)
        if wanted:
            given = getattr(denoiser.network, "feature_channels", None)
            if given is None:
                raise ValueError(
                    f"The discriminator takes the image model's features, but its network, a "
                    f"{type(denoiser.network).__name__}, has none; set feature_channels to 0."
                )
            if given != wanted:
                raise ValueError(
                    f"The discriminator takes {wanted} channels of the image model's features, "
                    f"which has {given}; set feature_channels to {given}."
                )
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.image_source = source

    def train(self, mode: bool = True) -> TimeConsistencyDiscriminator:
        """Set training mode; the frozen image model stays in evaluation mode."""
        super().train(mode)
        if self.denoiser is not None:
            self.denoiser.eval()
        return self

    def setup(self, stage: str) -> None:
        """Check that there is an image model, here or in the checkpoint to be restored.

        Raises:
            ValueError: If there is none.
        """
        if self.denoiser is None and self._trainer is not None and self.trainer.ckpt_path is None:
            if self._image_model is not None:
                self._adopt(*open_image_model(self._image_model))
                return
            raise ValueError(
                "The discriminator has no image model; set model.init_args.image_model to a "
                "checkpoint of ImageDDPM or the folder of a diffusers U-Net."
            )

    def meet_cube(self) -> None:
        """Check besides that the image model was trained on the same cube.

        Raises:
            ValueError: If its frames were normalised otherwise.
            DataError: If it was trained on other variables or another grid.
        """
        super().meet_cube()
        cube = self.image_source.get(CUBE_KEY)
        if cube is not None and self.cube is not None:
            check_compatible(cube, self.cube)
            check_normalisation(cube, self.cube)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down how to rebuild the image model, whose weights are in the state."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["image_model"] = self.image_source

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild the image model as the checkpoint describes it, if none is there yet."""
        super().on_load_checkpoint(checkpoint)
        if self.denoiser is None:
            self._adopt(*rebuild_image_model(checkpoint["image_model"]))

    def logit(
        self,
        x: Tensor,
        sigma: Tensor,
        history: Tensor,
        context: Tensor | None = None,
        forecast: Tensor | None = None,
        spread: Tensor | None = None,
        denoised: Tensor | None = None,
    ) -> Tensor:
        """Logits (B,) of frames (B, C, H, W) at sigma (B,) after histories (B, k, C, H, W).

        Args:
            context: Static fields and forcing of the frames (B, C_context, H, W), which only
                networks with `context_channels` see.
            forecast: What `forecast` gives for the histories, to spare its computation.
            spread: Likewise the spread of the forecast's error that `expectation` gives.
            denoised: Likewise the image model's estimate at x.
        """
        forecast, spread = self._expected(history, context, forecast, spread)
        logits = self._learned(x, sigma, history, context, forecast, spread)
        if spread is None:
            return logits
        assert forecast is not None
        return logits + self._known(x, sigma, forecast, spread, context, denoised)

    def _learned(
        self,
        x: Tensor,
        sigma: Tensor,
        history: Tensor,
        context: Tensor | None,
        forecast: Tensor | None,
        spread: Tensor | None,
    ) -> Tensor:
        """The discriminator's part of the logits (B,)."""
        beside = as_context(context if self.context_channels else None)
        if getattr(self.discriminator, "feature_channels", 0):
            assert self.denoiser is not None
            beside["features"] = self.denoiser.features(x, sigma, **self._of_image_model(context))
        if forecast is not None:
            beside["forecast"] = forecast
        if self.forecast_spread == "learned":
            assert spread is not None
            beside["spread"] = spread
        logits: Tensor = self.discriminator(x, sigma, history, **beside)
        return logits

    def _spread(
        self, forecast: Tensor | None, history: Tensor, context: Tensor | None
    ) -> Tensor | None:
        """s, to be broadcast with frames (B, C, H, W), or None where the logit begins from 0."""
        if self.forecast_spread is None:
            return None
        assert forecast is not None
        if self.forecast_spread == "learned":
            known = as_context(context if self.context_channels else None)
            network: Any = self.discriminator
            spread: Tensor = network.forecast_spread(forecast, history, **known)
            return spread
        return forecast.new_tensor(self.forecast_spread).view(-1, 1, 1).expand_as(forecast)

    def _expected(
        self,
        history: Tensor,
        context: Tensor | None,
        forecast: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The forecast and its spread, each computed where it is not given."""
        if forecast is None:
            forecast = self.forecast(history, context)
        if spread is None:
            spread = self._spread(forecast, history, context)
        return forecast, spread

    def _known(
        self,
        x: Tensor,
        sigma: Tensor,
        forecast: Tensor,
        spread: Tensor,
        context: Tensor | None,
        denoised: Tensor | None = None,
    ) -> Tensor:
        """The part (B,) known before training: a Gaussian about the forecast over the images'."""
        assert self.denoiser is not None
        forecast = forecast.detach().to(x.dtype)
        level = sigma.to(x.dtype).expand(len(x))
        variance = align(level**2, x) + spread.detach().to(x.dtype) ** 2
        of_forecast = -((x - forecast).square() / (2 * variance)).flatten(1).sum(1)
        of_images = log_density_ratio(
            self.denoiser, x, level, forecast, denoised, **self._of_image_model(context)
        )
        return (of_forecast - of_images) * self._share(level)

    def _known_gradient(
        self, x: Tensor, sigma: Tensor, forecast: Tensor, spread: Tensor, denoised: Tensor
    ) -> Tensor:
        """The gradient of what `_known` approximates, like x: that of the images is their score."""
        level = sigma.to(x.dtype).expand(len(x))
        noise = align(level**2, x)
        variance = noise + spread.detach().to(x.dtype) ** 2
        of_forecast = (forecast.detach().to(x.dtype) - x) / variance
        return (of_forecast - (denoised - x) / noise) * align(self._share(level), x)

    def _share(self, level: Tensor) -> Tensor:
        """How much of the ratio of densities counts at a noise level (B,)."""
        return level**2 / (level**2 + self.ratio_level**2)

    def forecast(self, history: Tensor, context: Tensor | None = None) -> Tensor | None:
        """The frames (B, C, H, W) that the discriminator expects after histories (B, k, C, H, W).

        None where it has no such forecast. The context is that of `logit`.
        """
        expected: Tensor | None = spun(self._forecast, self.forecast_shifts)(history, context)
        return expected

    def _forecast(self, history: Tensor, context: Tensor | None) -> Tensor | None:
        """The same with frames where they are, not averaged over shifts."""
        if not hasattr(self.discriminator, "forecast"):
            return None
        known = as_context(context if self.context_channels else None)
        expected: Tensor = self.discriminator.forecast(history, **known)  # type: ignore[operator]
        return expected

    def expectation(self, history: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """What is the same at all noise levels of a frame, by the names of `logit`'s arguments."""
        forecast, spread = self._expected(history, context)
        found = {"forecast": forecast, "spread": spread}
        return {name: value for name, value in found.items() if value is not None}

    def guided(
        self,
        noisy: Tensor,
        sigma: Tensor,
        history: Tensor,
        denoised: Tensor,
        context: Tensor | None = None,
        forecast: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (B,) and the guided estimate `D + sigma^2 grad l`, differentiable in training."""
        forecast, spread = self._expected(history, context, forecast, spread)
        logits, guided = self._guided(noisy, sigma, history, denoised, context, forecast, spread)
        if spread is not None:
            assert forecast is not None
            with torch.no_grad():  # nothing in it is trained
                known = self._known(noisy, sigma, forecast, spread, context, denoised)
            logits = logits + known
        return logits, guided

    def _guided(
        self,
        noisy: Tensor,
        sigma: Tensor,
        history: Tensor,
        denoised: Tensor,
        context: Tensor | None,
        forecast: Tensor | None,
        spread: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """What is learned of the logits (B,), and the guided estimate, which needs no more."""
        with torch.enable_grad():
            learned, gradient = self._with_gradient(
                noisy, sigma, history, denoised, context, forecast, spread
            )
        return learned, denoised + align(sigma**2, noisy) * gradient

    def logit_gradient(
        self,
        x: Tensor,
        sigma: Tensor,
        denoised: Tensor,
        history: Tensor,
        context: Tensor | None = None,
        forecast: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> Tensor:
        """The gradient of `logit` in x (B, C, H, W), for less than its value costs.

        What the images contribute to it is their score, `(D - x) / sigma^2`, and so known from the
        image model's estimate; `logit` takes their log-density from the same scores by a rule that
        is exact for a Gaussian.

        Args:
            x: (B, C, H, W).
            sigma: Noise level, (B,) or a scalar.
            denoised: The image model's estimate D, like x.
            history: Past frames (B, k, C, H, W).
            context: As in `logit`.
            forecast: Likewise.
            spread: Likewise.
        """
        forecast, spread = self._expected(history, context, forecast, spread)
        with torch.inference_mode(False):
            x, level = x.clone(), torch.as_tensor(sigma).detach().clone()
            gradient = self.learned_gradient(x, level, history, context, forecast, spread)
            if spread is None:
                return gradient
            assert forecast is not None
            return gradient + self._known_gradient(x, level, forecast, spread, denoised.clone())

    def learned_gradient(
        self,
        x: Tensor,
        sigma: Tensor,
        history: Tensor,
        context: Tensor | None,
        forecast: Tensor | None,
        spread: Tensor | None,
    ) -> Tensor:
        """The gradient in x, like x, of the discriminator's own part of the logit.

        A function from tensors to a tensor, without a graph of autograd on either side, so that
        torch.compile makes one graph of both passes.
        """

        def total(frames: Tensor) -> Tensor:
            return self._learned(frames, sigma, history, context, forecast, spread).sum()

        gradient: Tensor = torch.func.grad(total)(x)
        return gradient

    def _with_gradient(
        self,
        x: Tensor,
        sigma: Tensor,
        history: Tensor,
        denoised: Tensor,
        context: Tensor | None,
        forecast: Tensor | None,
        spread: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """What is learned of the logits (B,), and the gradient of the whole, like x."""
        leaf = x.detach().requires_grad_()
        learned = self._learned(leaf, sigma, history, context, forecast, spread)
        (gradient,) = torch.autograd.grad(learned.sum(), leaf, create_graph=self.training)
        if spread is None:
            return learned, gradient
        assert forecast is not None
        known = self._known_gradient(x.detach(), sigma, forecast, spread, denoised.detach())
        return learned, gradient + known

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Balanced cross-entropy plus score matching, on one noise level for each window."""
        history, clean = self._split(batch)
        context = self._context(batch)
        count = self.score_matching_windows
        sigma = self.noise.sample(len(clean[:count]), clean.device)
        noisy = clean[:count] + align(sigma, clean) * torch.randn_like(clean[:count])
        history = with_errors(self._forecast_history(batch, history), *self.history_errors)
        loss, forecast, spread = self._forecast_loss(history, clean, context)
        clean, history = clean[:count], history[:count]
        context = None if context is None else context[:count]
        with torch.no_grad():
            denoised = self._denoise(noisy, sigma, context)
        if self.score_matching_weight:
            # The logit's value costs two evaluations of the image model: for cross-entropy only.
            guide = self.guided if self.cross_entropy_weight else self._guided
            positive, guided = guide(noisy, sigma, history, denoised, context, forecast, spread)
            weight = self._weight(sigma)
            error = (weight * self.mean_square(guided - clean)).mean()
            alone = (weight * self.mean_square(denoised - clean)).mean()
            loss = loss + self.score_matching_weight * error
            self.log("train/denoising_error", error, prog_bar=True)
            self.log("train/denoising_error_image_model", alone)
        elif self.cross_entropy_weight:
            positive = self.logit(noisy, sigma, history, context, forecast, spread, denoised)
        # Beside score matching per value, whose share of a clipped gradient they must not take.
        values = clean[0].numel() if self.score_matching_weight else 1
        if self.cross_entropy_weight:
            cross_entropy = self._cross_entropy(
                positive, noisy, sigma, history, context, forecast, spread, denoised
            )
            loss = loss + self.cross_entropy_weight / values * cross_entropy
            self.log("train/cross_entropy", cross_entropy, prog_bar=True)
        if self.contrastive_weight:
            contrastive = self._contrastive(clean, sigma, history, context, forecast, spread)
            loss = loss + self.contrastive_weight / values * contrastive
            self.log("train/contrastive", contrastive)
        self.log("train/loss", loss)
        return loss

    def _forecast_history(self, batch: dict[str, Tensor], history: Tensor) -> Tensor:
        """Histories (B, k, C, H, W), of which some end with a forecast from the frames before."""
        if not self.history_forecast:
            return history
        own = torch.rand(len(history), device=history.device) < self.history_forecast
        with torch.no_grad():
            last = self.forecast(batch["frames"][:, :-2], self._context(batch, -2))
        assert last is not None
        last = torch.where(align(own, last), last, history[:, -1])
        return torch.cat([history[:, :-1], last[:, None]], dim=1)

    def _forecast_loss(
        self, history: Tensor, clean: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The losses of the forecast and its spread, and both for the windows of score matching."""
        loss, count = torch.zeros((), device=self.device), self.score_matching_windows
        forecast = self._forecast(history, context)
        if forecast is None:
            return loss, None, None
        error = self.mean_square(forecast - clean).mean()
        self.log("train/forecast_error", error)
        loss = loss + self.forecast_weight * error
        forecast = forecast.detach()
        if described(self.forecast_shifts):  # which for all windows would cost too much
            history, clean = history[:count], clean[:count]
            context = None if context is None else context[:count]
            with torch.no_grad():
                forecast = self.forecast(history, context)
        assert forecast is not None
        spread = self._spread(forecast, history, context)
        if self.forecast_spread == "learned":
            assert spread is not None
            likelihood = (spread.log() + ((forecast - clean) / spread).square() / 2).mean()
            self.log("train/spread_likelihood", likelihood)
            loss = loss + LIKELIHOOD_WEIGHT * likelihood
        return loss, forecast[:count], None if spread is None else spread[:count].detach()

    def _cross_entropy(
        self,
        positive: Tensor,
        noisy: Tensor,
        sigma: Tensor,
        history: Tensor,
        context: Tensor | None = None,
        forecast: Tensor | None = None,
        spread: Tensor | None = None,
        denoised: Tensor | None = None,
    ) -> Tensor:
        """Balanced binary cross-entropy of logits (B,) and of those with another's history.

        A history's forecast and its spread go with it, and the context stays with its frame: the
        logit is then `log p(h | x_sigma, context) - log p(h)` and its gradient in x_sigma what
        guidance needs.

        Beside score matching it trains no more than the offset of a logit that has one: the rest
        of the logit has the right gradient already, and cross-entropy would only disturb it.
        """
        others = other_histories(history)
        other = (None if known is None else other_histories(known) for known in (forecast, spread))
        expected = (*other, denoised)
        offset = getattr(self.discriminator, "offset", None)
        if offset is None or not self.score_matching_weight:
            negative = self.logit(noisy, sigma, others, context, *expected)
        else:
            with torch.no_grad():
                known = positive - offset(sigma, history)
                apart = self.logit(noisy, sigma, others, context, *expected)
                known_negative = apart - offset(sigma, others)
            positive = known + offset(sigma, history)
            negative = known_negative + offset(sigma, others)
        return (F.softplus(-positive) + F.softplus(negative)).mean() / 2

    def _contrastive(
        self,
        clean: Tensor,
        sigma: Tensor,
        history: Tensor,
        context: Tensor | None = None,
        forecast: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> Tensor:
        """InfoNCE: which of the frames of a batch, all at its noise level, follows each history.

        The candidates are frames and not histories, so that what stays open, an offset
        `b(h, sigma)`, has no gradient in the frame; frames of other contexts count among them.
        """
        count = len(clean)

        def each(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.repeat_interleave(count, 0)

        levels = sigma.repeat_interleave(count)
        candidates = clean.repeat(count, 1, 1, 1)
        noisy = candidates + align(levels, candidates) * torch.randn_like(candidates)
        seen = history.repeat_interleave(count, 0)
        logits = self.logit(noisy, levels, seen, each(context), each(forecast), each(spread))
        return F.cross_entropy(logits.view(count, count), torch.arange(count, device=clean.device))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log, by noise level, the denoising error with and without guidance, and accuracy."""
        # Lightning validates in inference mode, whose tensors take no part in a gradient.
        with torch.inference_mode(False), torch.no_grad():
            self._validate({name: value.clone() for name, value in batch.items()}, batch_idx)

    def _validate(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        history, clean = self._split(batch)
        context = self._context(batch)
        forecast, spread = self._expected(history, context)
        noise = fixed_noise(clean, seed=batch_idx)
        total = torch.zeros((), device=self.device)
        for level in VALIDATION_SIGMAS:
            sigma = clean.new_full((len(clean),), level)
            noisy = clean + level * noise
            denoised = self._denoise(noisy, sigma, context)
            name = f"sigma_{level:g}"
            known = (forecast, spread)
            if self.cross_entropy_weight:  # else an offset is open, and 0 tells nothing apart
                positive, guided = self.guided(noisy, sigma, history, denoised, context, *known)
                negative = self.logit(noisy, sigma, other_histories(history), context)
                accuracy = ((positive > 0).float().mean() + (negative <= 0).float().mean()) / 2
                self.log(f"accuracy/{name}", accuracy)
            else:
                _, guided = self._guided(noisy, sigma, history, denoised, context, *known)
            error = self.mean_square(guided - clean).mean()
            self.log(f"denoising_error/{name}", error)
            alone = self.mean_square(denoised - clean).mean()
            self.log(f"denoising_error_image_model/{name}", alone)
            for reference in self._reference:
                network = getattr(getattr(reference, "denoiser", None), "network", None)
                beside = frame_context(network, batch)
                given = as_context(None if beside is None else beside[:, -1:])
                conditional = reference.to(self.device).denoise(noisy, sigma, history, **given)
                of_reference = self.mean_square(conditional - clean).mean()
                self.log(f"denoising_error_reference/{name}", of_reference)
            total = total + error * self._weight(sigma).mean()
        self.log("validate/loss", total / len(VALIDATION_SIGMAS), prog_bar=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The same figures as in validation, on the test split."""
        self.validation_step(batch, batch_idx)

    def _split(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        frames = batch["frames"]
        wanted = self.history_length + 1 + bool(self.history_forecast)
        if frames.shape[1] != wanted:
            more = ", one more before for history_forecast" if self.history_forecast else ""
            raise ValueError(
                f"The discriminator sees {self.history_length} past frames and the present one"
                f"{more}, but windows have {frames.shape[1]} frames; set "
                f"data.init_args.window_length to {wanted}."
            )
        return frames[:, -1 - self.history_length : -1], frames[:, -1]

    def _context(self, batch: dict[str, Tensor], frame: int = -1) -> Tensor | None:
        """Static fields and forcing of one frame of each window (B, C_context, H, W), or None."""
        networks = (self.discriminator, getattr(self.denoiser, "network", None))
        found = [
            c for c in (frame_context(network, batch) for network in networks) if c is not None
        ]
        return found[0][:, frame] if found else None

    def _of_image_model(self, context: Tensor | None) -> dict[str, Tensor]:
        """What the image model takes of static fields and forcing."""
        network = getattr(self.denoiser, "network", None)
        return as_context(context if getattr(network, "context_channels", 0) else None)

    def _denoise(self, noisy: Tensor, sigma: Tensor, context: Tensor | None) -> Tensor:
        """The image model's estimate."""
        assert self.denoiser is not None
        return self.denoiser(noisy, sigma, **self._of_image_model(context))

    def _weight(self, sigma: Tensor) -> Tensor:
        # 1 / c_out^2 of Karras et al. 2022 for data of unit variance, whatever the image model is.
        return 1 + sigma**-2


def other_histories(history: Tensor) -> Tensor:
    """The history of another window for each window of a batch (B, ...).

    A cyclic shift has no fixed point and keeps the marginals of both slots.

    Raises:
        ValueError: If the batch has one window only.
    """
    if len(history) < 2:
        raise ValueError(
            "A batch of one window has no other history to be a negative; use a batch_size of at "
            "least 2, and for training 16 or more."
        )
    return history.roll(1, dims=0)


def open_image_model(path: str) -> tuple[Denoiser, dict[str, Any]]:
    """An image model's denoiser, and what is needed to rebuild it without its file.

    Args:
        path: A checkpoint of `ImageDDPM`, the folder of a `diffusers` U-Net, or the state_dict of
            any network with a JSON file of its arguments beside it (see `dyngen.models.imported`).

    Raises:
        ValueError: If there is no image model there.
    """
    file = Path(path)
    if file.is_dir():
        return denoiser_from_folder(file)
    if file.suffix == ".safetensors" or file.with_suffix(".json").is_file():
        return denoiser_from_state_dict(file)
    model = load_model(path)
    if not isinstance(model, ImageDDPM):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, not an image model; give a checkpoint of "
            "ImageDDPM, the folder of a diffusers U-Net, or a state_dict with its JSON file."
        )
    checkpoint = read_checkpoint(path)
    return model.denoiser, {
        "hyper_parameters": checkpoint["hyper_parameters"],
        CUBE_KEY: model.cube,
        "training": training_cost(checkpoint),
    }


def check_normalisation(image: dict[str, Any], cube: dict[str, Any]) -> None:
    """Refuse frames that are not scaled as those the image model was trained on.

    Args:
        image: Description of the cube that the image model was trained on.
        cube: Description of the cube at hand, of the same variables.

    Raises:
        ValueError: If a mean is off by more than 5% of the standard deviation, or a standard
            deviation by more than 5%.
    """
    theirs, ours = image["normalisation"], cube["normalisation"]
    fields = [
        {key: of[key].shape for key in ("cycle", "pixel_std", "variance") if key in of}
        for of in (theirs, ours)
    ]  # a cycle's first dimension is the harmonics
    if fields[0] != fields[1] or theirs.get("transforms") != ours.get("transforms"):
        raise ValueError(
            "The image model was trained on frames that were normalised in another way; give the "
            "data the transforms, seasonal and standardise that it was trained with, or train it "
            "again."
        )
    for channel, name in enumerate(cube["variables"]):
        mean, std = theirs["mean"][channel], theirs["std"][channel]
        other_mean, other_std = ours["mean"][channel], ours["std"][channel]
        if abs(other_mean - mean) > 0.05 * std or abs(other_std - std) > 0.05 * std:
            raise ValueError(
                f"The image model was trained on '{name}' with mean {mean:.4g} and standard "
                f"deviation {std:.4g}, but this training split has {other_mean:.4g} and "
                f"{other_std:.4g}; use the splits that it was trained with, or train it again."
            )


def rebuild_image_model(source: dict[str, Any]) -> tuple[Denoiser, dict[str, Any]]:
    """The untrained denoiser that `open_image_model` described."""
    if "hyper_parameters" in source:
        model = build(source["hyper_parameters"], "the embedded image model")
        assert isinstance(model, ImageDDPM)
        return model.denoiser, source
    return denoiser_from_config(source), source
