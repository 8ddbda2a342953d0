"""One step of a rollout, and whole rollouts, in a world where all is known: AR(1) fields."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dyngen.diffusion.guidance import discriminator_guidance, guide
from dyngen.diffusion.noise import edm_sigmas
from dyngen.diffusion.samplers import heun
from dyngen.rollout.ensemble import rollout
from dyngen.rollout.frame_sampler import ConditionalFrameSampler, GuidedFrameSampler
from dyngen.rollout.randomness import FrameNoise
from dyngen.simulate.autoregressive import AutoregressiveFields, power_law_spectrum

ROWS = [(0, 0), (0, 1), (1, 0)]


def world(coefficient: float = 0.9) -> AutoregressiveFields:
    return AutoregressiveFields(power_law_spectrum(4, 4, slope=1.5), coefficient)


def grid(steps: int) -> Tensor:
    return edm_sigmas(steps, sigma_min=0.02, sigma_max=20.0)


def sampler(fields: AutoregressiveFields, steps: int = 6, **changes: Any) -> GuidedFrameSampler:
    return GuidedFrameSampler(
        fields.denoise, fields.logit, grid(steps), **{"history_length": 2} | changes
    )


def history(fields: AutoregressiveFields) -> Tensor:
    return fields.simulate(len(ROWS), 2, generator=torch.Generator().manual_seed(1))


def noise() -> FrameNoise:
    return FrameNoise(4, ROWS, 3)


@pytest.mark.parametrize(
    ("scale", "interval"), [(1.0, (0.0, math.inf)), (2.5, (0.0, math.inf)), (1.0, (0.3, 5.0))]
)
def test_gradient_guidance_is_the_guided_sampler(
    scale: float, interval: tuple[float, float]
) -> None:
    fields = world()
    before = history(fields)
    frames, figures = sampler(fields, scale=scale, interval=interval)(before, noise())
    assert frames.shape == (3, 1, 1, 4, 4)
    term = discriminator_guidance(partial(fields.logit, history=before), scale, interval)
    guided, draw = guide(fields.denoise, [term]), noise()
    x = 20.0 * draw(before[:, -1])
    if interval[1] > 20:  # guided from the first noise level on: it starts from an estimate
        estimate = guided(before[:, -1] + x, torch.tensor(20.0))
        x = estimate + 20.0 * draw(before[:, -1])
    torch.testing.assert_close(frames[:, 0], heun(guided, x, grid(6)))
    calls = 11 + (interval[1] > 20)  # two a step, one in the last, and one for the estimate
    assert figures["denoiser_evaluations"].tolist() == [calls] * 3
    levels = grid(6)[:-1]
    inside = ((levels >= interval[0]) & (levels <= interval[1])).double()
    # Each level is met twice; the first one once, and once more for the estimate.
    expected = 2 * inside.sum() - inside[0] + (interval[1] > 20)
    assert figures["logit_evaluations"].tolist() == [expected] * 3


def from_forecast(
    fields: AutoregressiveFields, sigmas: Tensor, history_length: int = 2
) -> GuidedFrameSampler:
    """A guided sampler that starts from the exact forecast of the history."""

    def logit(x: Tensor, sigma: Tensor, history: Tensor, forecast: Tensor) -> Tensor:
        return fields.logit(x, sigma, history)

    return GuidedFrameSampler(
        fields.denoise,
        logit,
        sigmas,
        history_length=history_length,
        expectation=lambda history: {"forecast": fields.conditional_mean(history)},
        start="forecast",
    )


def test_a_start_from_the_forecast_spares_the_estimate_and_keeps_the_mean() -> None:
    """The response to the history is linear here, and from its own mean exact: a h."""
    fields = world()
    sigmas = edm_sigmas(64, sigma_min=0.02, sigma_max=2.0)
    drawn = from_forecast(fields, sigmas)
    before = history(fields)
    frames, figures = drawn(before, noise())
    response = frames - drawn(torch.zeros_like(before), noise())[0]
    expected = fields.coefficient * before[:, -1:]
    gap = float((response - expected).square().mean() / expected.square().mean()) ** 0.5
    assert gap < 0.01
    assert figures["denoiser_evaluations"].tolist() == [2 * 64 - 1] * 3
    assert drawn.description()["start"] == "forecast"

    without = GuidedFrameSampler(
        fields.denoise, fields.logit, sigmas, history_length=2, start="forecast"
    )
    with pytest.raises(ValueError, match="needs a discriminator with a forecast"):
        without(before, noise())


@pytest.mark.parametrize("sigma_max", [0.5, 2.0])
def test_the_first_noise_level_bounds_the_spread_of_what_cells_have_in_common(
    sigma_max: float,
) -> None:
    """A mode of spread s keeps s^2 / (1 + s^2 / sigma_max^2) of its variance; all is linear."""
    fields = AutoregressiveFields(power_law_spectrum(8, 8, slope=3.0), 0.9)

    before = fields.simulate(len(ROWS), 1, generator=torch.Generator().manual_seed(1))
    expected = fields.conditional_mean(before)
    sigmas = edm_sigmas(200, sigma_min=0.005, sigma_max=sigma_max)
    drawn = from_forecast(fields, sigmas, history_length=1)
    added = torch.fft.fft2(drawn(before, noise())[0][:, 0] - expected)
    gain = added / torch.fft.fft2(sigma_max * noise()(before[:, -1]))
    variance = (1 - fields.coefficient**2) * fields.spectrum
    assert variance.max() > 1 > 0.5 > variance.mean()
    kept = variance / (1 + variance / sigma_max**2)
    torch.testing.assert_close(
        (gain.abs() * sigma_max).square().double(), kept.expand(3, 1, 8, 8), rtol=0.02, atol=1e-4
    )


@pytest.mark.parametrize("conditional", [False, True])
def test_a_low_first_noise_level_does_not_shrink_the_mean(conditional: bool) -> None:
    """The response to the history is linear here: a h, where noise alone as a start gives less."""
    fields = world()
    sigmas = edm_sigmas(64, sigma_min=0.02, sigma_max=4.0)
    if conditional:
        drawn: Any = ConditionalFrameSampler(fields.denoise_given, sigmas, history_length=2)
    else:
        drawn = GuidedFrameSampler(fields.denoise, fields.logit, sigmas, history_length=2)
    before = history(fields)
    response = drawn(before, noise())[0] - drawn(torch.zeros_like(before), noise())[0]
    expected = fields.coefficient * before[:, -1:]
    gap = float((response - expected).square().mean() / expected.square().mean()) ** 0.5
    spread = math.sqrt(1 - fields.coefficient**2)
    assert gap < spread / 4.0 / 3  # a start from noise alone leaves about spread / sigma_max


@pytest.mark.parametrize("change", [{"scale": 0.0}, {"interval": (30.0, 40.0)}])
def test_without_guidance_the_logit_is_not_evaluated(change: dict[str, Any]) -> None:
    fields = world()
    frames, figures = sampler(fields, **change)(history(fields), noise())
    unguided = GuidedFrameSampler(fields.denoise, None, grid(6), history_length=2)
    torch.testing.assert_close(frames, unguided(history(fields), noise())[0])
    assert figures["logit_evaluations"].tolist() == [0.0] * 3
    x = 20.0 * noise()(history(fields)[:, -1])
    torch.testing.assert_close(frames[:, 0], heun(fields.denoise, x, grid(6)))


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_particles_report_effective_sizes_and_ignore_the_batch(scale: float) -> None:
    fields = world()
    particles = sampler(fields, steps=12, scale=scale, particles=8)
    before = history(fields)
    frames, figures = particles(before, noise())
    assert frames.shape == (3, 1, 1, 4, 4)
    assert set(particles.diagnostic_names) < set(figures)
    smallest = figures["smallest_effective_sample_size"]
    mean = figures["effective_sample_size"]
    assert bool(((smallest >= 1) & (smallest <= mean) & (mean <= 8)).all())
    assert figures["denoiser_evaluations"].tolist() == [12 * 8] * 3
    alone, _ = particles(before[2:], FrameNoise(4, ROWS[2:], 3))
    torch.testing.assert_close(alone, frames[2:])


def test_steering_keeps_more_particles_effective() -> None:
    fields = world()
    sizes = {
        scale: sampler(fields, steps=24, scale=scale, particles=16)(history(fields), noise())[1]
        for scale in (0.0, 1.0)
    }
    weighed, steered = (sizes[s]["effective_sample_size"].mean() for s in (0.0, 1.0))
    assert steered > weighed + 1


class ClosedForm:
    """The fields' logit with its gradient in closed form instead of by autograd."""

    def __init__(self, fields: AutoregressiveFields) -> None:
        self.fields = fields

    def __call__(self, x: Tensor, sigma: Tensor, history: Tensor) -> Tensor:
        raise AssertionError("the closed form is to be asked")

    def value_and_gradient(
        self, x: Tensor, sigma: Tensor, history: Tensor
    ) -> tuple[Tensor, Tensor]:
        fields = self.fields
        return fields.logit(x, sigma, history), fields.logit_gradient(x, sigma, history)


def test_a_logit_may_know_its_own_gradient() -> None:
    fields = world()
    known = GuidedFrameSampler(fields.denoise, ClosedForm(fields), grid(6), history_length=2)
    frames, _ = known(history(fields), noise())
    torch.testing.assert_close(
        frames, sampler(fields)(history(fields), noise())[0], rtol=1e-4, atol=1e-4
    )


def test_conditioning_reaches_denoiser_and_logit_with_a_row_per_particle() -> None:
    fields = world()
    seen: dict[str, list[float]] = {}

    def denoiser(x: Tensor, sigma: Tensor, season: Tensor) -> Tensor:
        seen["denoiser"] = season.tolist()
        return fields.denoise(x, sigma)

    def logit(x: Tensor, sigma: Tensor, history: Tensor, season: Tensor) -> Tensor:
        seen["logit"] = season.tolist()
        return fields.logit(x, sigma, history)

    both = GuidedFrameSampler(denoiser, logit, grid(3), history_length=2, particles=2)
    both(history(fields), noise(), season=torch.tensor([1.0, 2.0, 3.0]))
    assert seen["denoiser"] == seen["logit"] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize("particles", [1, 2])
def test_the_forecast_is_made_once_and_handed_to_the_logit(particles: int) -> None:
    fields = world()
    calls: list[tuple[float, ...]] = []
    seen: set[tuple[float, ...]] = set()

    def expectation(history: Tensor, season: Tensor) -> dict[str, Tensor]:
        calls.append(tuple(season.tolist()))
        return {"forecast": season[:, None, None, None].expand_as(history[:, -1])}

    def logit(
        x: Tensor, sigma: Tensor, history: Tensor, season: Tensor, forecast: Tensor
    ) -> Tensor:
        assert torch.equal(forecast[:, 0, 0, 0], season)
        seen.add(tuple(season.tolist()))
        return fields.logit(x, sigma, history)

    def denoiser(x: Tensor, sigma: Tensor, season: Tensor) -> Tensor:
        return fields.denoise(x, sigma)

    guided = GuidedFrameSampler(
        denoiser, logit, grid(3), history_length=2, particles=particles, expectation=expectation
    )
    guided(history(fields), noise(), season=torch.tensor([1.0, 2.0, 3.0]))
    assert calls == [(1.0, 2.0, 3.0)]
    assert seen == {(1.0, 2.0, 3.0) if particles == 1 else (1.0, 1.0, 2.0, 2.0, 3.0, 3.0)}


def test_lower_precision_gives_nearby_frames() -> None:
    fields = world()
    low = sampler(fields, autocast=torch.bfloat16)
    frames, _ = low(history(fields), noise())
    assert frames.dtype == torch.float32
    torch.testing.assert_close(
        frames, sampler(fields)(history(fields), noise())[0], atol=0.1, rtol=0.1
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sampler": "euler"}, "Unknown sampler 'euler'; choose one of heun"),
        ({"particles": 4, "sampler": "heun"}, "Particles need a random sampler"),
        ({"particles": 4, "options": {"eta": 0.0}}, "Particles need a random sampler"),
        ({"particles": 0}, "must be at least 1"),
        ({"history_length": 0}, "must be at least 1"),
    ],
)
def test_what_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sampler(world(), **change)


def test_particles_need_a_logit() -> None:
    with pytest.raises(ValueError, match="particles = 4 are weighed by a discriminator"):
        GuidedFrameSampler(world().denoise, None, grid(3), history_length=1, particles=4)


def test_a_history_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"this sampler takes \(B, 2, C, H, W\)"):
        sampler(world())(history(world())[:, :1], noise())


# Whole rollouts. Frames are drawn with a finite number of noise levels, which leaves a bias, of
# second order for heun and of first for the random samplers, and passed on from frame to frame.
# `bias` is what was seen with ten times as many trajectories, rounded up.
@pytest.mark.parametrize(
    ("coefficient", "trajectories", "frames", "steps", "settings", "bias"),
    [
        pytest.param(0.9, 400, 6, 32, {}, 0.03, id="gradient, heun"),
        pytest.param(
            0.9,
            300,
            3,
            128,
            {"sampler": "ddim", "options": {"eta": 1.0}},
            0.06,
            id="gradient, ddim",
        ),
        pytest.param(0.6, 150, 2, 128, {"scale": 0.0, "particles": 32}, 0.09, id="particles"),
        pytest.param(0.6, 150, 2, 128, {"particles": 8}, 0.06, id="both"),
        pytest.param(0.9, 400, 3, 32, {"conditional": True}, 0.03, id="conditional"),
        pytest.param(0.0, 400, 3, 32, {"scale": 0.0}, 0.02, id="none"),
    ],
)
def test_rollouts_have_the_variance_and_autocorrelation_of_the_process(
    coefficient: float,
    trajectories: int,
    frames: int,
    steps: int,
    settings: dict[str, Any],
    bias: float,
) -> None:
    """Within 4 standard errors and the bias; without guidance frames are independent."""
    fields = world(coefficient)
    start = fields.simulate(trajectories, 1, generator=torch.Generator().manual_seed(11))
    if settings.get("conditional"):
        drawn: Any = ConditionalFrameSampler(fields.denoise_given, grid(steps), history_length=1)
    else:
        drawn = sampler(fields, steps, history_length=1, **settings)
    ensemble = rollout(drawn, start, members=1, steps=frames, seed=3, batch_size=512)
    series = torch.cat([start, ensemble.frames[:, 0]], dim=1).double()
    modes = torch.fft.fft2(series, norm="ortho") / fields.spectrum.sqrt()  # of variance 1
    for lag in range(1, frames + 1):
        products = (modes[:, 0].conj() * modes[:, lag]).real.mean((-3, -2, -1))
        squares = modes[:, lag].abs().square().mean((-3, -2, -1))
        for values, expected in ((products, fields.autocorrelation(lag)), (squares, 1.0)):
            error = values.std().item() / math.sqrt(trajectories)
            assert error < 0.04
            assert abs(values.mean().item() - expected) < 4 * error + bias


@pytest.mark.parametrize("conditional", [False, True])
def test_a_bound_holds_a_model_that_feeds_on_its_own_excursions(conditional: bool) -> None:
    """A guided estimate of three times the last frame grows without end, unless it is bounded."""

    def runaway(x: Tensor, sigma: Tensor, history: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x) if history is None else 3 * history[:, -1]

    def logit(x: Tensor, sigma: Tensor, history: Tensor) -> Tensor:
        return (x * 3 * history[:, -1]).flatten(1).sum(1) / sigma**2  # sigma^2 grad l = 3 h

    def largest(clip: float | None) -> float:
        system: Any = (
            ConditionalFrameSampler(runaway, grid(4), history_length=1, clip=clip)
            if conditional
            else GuidedFrameSampler(runaway, logit, grid(4), history_length=1, clip=clip)
        )
        found = rollout(system, torch.ones(1, 1, 1, 4, 4), members=2, steps=12, seed=0)
        return found.frames.abs().max().item()

    assert largest(None) == pytest.approx(3**12, rel=1e-3)
    assert largest(6.0) <= 6.0 + 1e-4
