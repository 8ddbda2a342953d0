"""Samplers against exact laws, a closed-form trajectory, and diffusers' and azula's samplers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from dyngen.diffusion.denoiser import Denoiser, Parameterisation
from dyngen.diffusion.guidance import discriminator_guidance, guide
from dyngen.diffusion.noise import cosine_betas, edm_sigmas, linear_betas, training_sigmas
from dyngen.diffusion.samplers import (
    SAMPLERS,
    ddim,
    ddpm,
    dpm_solver_pp_2m,
    heun,
    self_recurrent_ddim,
)
from dyngen.simulate.autoregressive import AutoregressiveFields

Source = Callable[[int], Callable[[Tensor], Tensor]]
PARAMETERISATIONS = get_args(Parameterisation)

# As many steps as each needs for its bias (percents of variance) to hide below the sampling error.
COARSE = edm_sigmas(60, 0.002, 200.0)
MIDDLE = edm_sigmas(200, 0.002, 200.0)
FINE = edm_sigmas(800, 0.02, 80.0)
GUIDED = {
    "heun": (heun, COARSE),
    "heun with churn": (partial(heun, churn=40.0), MIDDLE),
    "heun with churn in between": (partial(heun, churn=40.0, s_min=0.05, s_max=20.0), MIDDLE),
    "ddim": (ddim, FINE),
    "ddim, eta 0.5": (partial(ddim, eta=0.5), FINE),
    "ddpm": (ddpm, FINE),
    "ddpm, beta": (partial(ddpm, variance="beta"), FINE[::2]),
    "dpm_solver_pp_2m": (dpm_solver_pp_2m, COARSE),
}
MEMBERS = 1000


def guided_samples(
    world: AutoregressiveFields,
    denoiser: Callable[..., Tensor],
    sampler: Callable[..., Tensor],
    sigmas: Tensor,
    scale: float,
    noise: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """One sample for each of many histories: samples ``(N, 1, 2, 4)`` and histories."""
    generator = torch.Generator().manual_seed(11)
    history = world.simulate(MEMBERS, 2, generator=generator, dtype=torch.float64)
    guided = guide(
        denoiser,
        [discriminator_guidance(lambda x, sigma: world.logit(x, sigma, history), scale)],
    )
    start = sigmas[0] * noise(history[:, -1])
    return sampler(guided, start, sigmas, noise=noise), history


@pytest.mark.parametrize("name", GUIDED)
def test_exact_guidance_gives_the_law_of_the_next_frame(
    name: str,
    world: AutoregressiveFields,
    agreement: Callable[..., float],
    three_sigma: float,
    standard_normal: Source,
) -> None:
    sampler, sigmas = GUIDED[name]
    samples, history = guided_samples(
        world, world.denoise, sampler, sigmas, 1.0, standard_normal(1)
    )
    assert agreement(world, samples, history) > three_sigma


@pytest.mark.parametrize("scale", [0.0, 0.9, 2.0])
def test_any_other_scale_of_guidance_is_found_out(
    scale: float,
    world: AutoregressiveFields,
    agreement: Callable[..., float],
    three_sigma: float,
    standard_normal: Source,
) -> None:
    samples, history = guided_samples(world, world.denoise, heun, COARSE, scale, standard_normal(1))
    assert agreement(world, samples, history) < three_sigma


@pytest.mark.parametrize("seed", range(3))
def test_the_statistic_accepts_exact_draws(
    seed: int, world: AutoregressiveFields, agreement: Callable[..., float], three_sigma: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    history = world.simulate(MEMBERS, 3, generator=generator, dtype=torch.float64)
    assert agreement(world, history[:, 1], history[:, :1]) > three_sigma
    assert agreement(world, history[:, 2], history[:, :1], lead=2) > three_sigma
    assert agreement(world, history[:, 2], history[:, :1], lead=1) < three_sigma


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_the_law_is_right_for_every_parameterisation(
    parameterisation: Parameterisation,
    world: AutoregressiveFields,
    exact_denoiser: Callable[..., Denoiser],
    agreement: Callable[..., float],
    three_sigma: float,
    standard_normal: Source,
) -> None:
    denoiser = exact_denoiser(world, parameterisation)
    samples, history = guided_samples(
        world, denoiser, dpm_solver_pp_2m, COARSE, 1.0, standard_normal(2)
    )
    assert agreement(world, samples, history) > three_sigma


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_no_sampler_can_tell_the_parameterisations_apart(
    name: str,
    parameterisation: Parameterisation,
    world: AutoregressiveFields,
    exact_denoiser: Callable[..., Denoiser],
    standard_normal: Source,
) -> None:
    sampler, _ = GUIDED[name]
    sigmas = edm_sigmas(12)
    history = world.simulate(4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    term = discriminator_guidance(lambda x, sigma: world.logit(x, sigma, history))
    start = sigmas[0] * standard_normal(0)(history[:, 0])
    denoiser = exact_denoiser(world, parameterisation)
    through_network, exact = (
        sampler(guide(d, [term]), start, sigmas, noise=standard_normal(5))
        for d in (denoiser, world.denoise)
    )
    torch.testing.assert_close(through_network, exact, rtol=1e-8, atol=1e-8)


# Closed forms


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(ddim, 1), (heun, 2), (dpm_solver_pp_2m, 2)],
    ids=["ddim", "heun", "dpm_solver_pp_2m"],
)
def test_order_of_convergence_on_a_gaussian(sampler: Callable[..., Tensor], order: int) -> None:
    """For data of variance c the ODE is solved by ``x(s) = x(S) sqrt((c + s^2) / (c + S^2))``."""
    variance, top, bottom = 0.6, 10.0, 1e-5

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return variance / (variance + sigma**2) * x

    start = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    exact = math.sqrt(variance / (variance + top**2))
    errors = []
    for steps in (100, 200, 400):
        sigmas = edm_sigmas(steps, bottom, top, rho=7.0)
        errors.append(abs(sampler(denoiser, start, sigmas).item() / exact - 1))
    measured = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert measured == pytest.approx([order] * 2, abs=0.15)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_returns_the_denoised_estimate(name: str) -> None:
    answer = torch.full((2, 1, 2, 2), 3.0)
    x = SAMPLERS[name](lambda x, sigma: answer, 9 * torch.ones(2, 1, 2, 2), edm_sigmas(3))
    assert torch.equal(x, answer)


@pytest.mark.parametrize("name", SAMPLERS)
def test_single_precision_is_enough(name: str, world: AutoregressiveFields) -> None:
    """From 80 down to 0.002 rounding stays at the level of rounding."""
    start = 80 * torch.randn(3, 1, 2, 4, generator=torch.Generator().manual_seed(0)).double()
    tape = torch.randn(30, 3, 1, 2, 4, generator=torch.Generator().manual_seed(1)).double()

    def run(dtype: torch.dtype) -> Tensor:
        draws = iter(tape)
        return SAMPLERS[name](
            world.denoise, start.to(dtype), edm_sigmas(30), noise=lambda x: next(draws).to(dtype)
        )

    single = run(torch.float32)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), run(torch.float64), rtol=2e-5, atol=2e-5)


def test_ddim_with_all_its_noise_is_ddpm(
    world: AutoregressiveFields, standard_normal: Source
) -> None:
    sigmas = edm_sigmas(20)
    start = sigmas[0] * standard_normal(0)(torch.empty(3, 1, 2, 4, dtype=torch.float64))
    ancestral = ddpm(world.denoise, start, sigmas, noise=standard_normal(1))
    implicit = ddim(world.denoise, start, sigmas, noise=standard_normal(1), eta=1.0)
    torch.testing.assert_close(implicit, ancestral, rtol=1e-12, atol=1e-12)
    half = ddim(world.denoise, start, sigmas, noise=standard_normal(1), eta=0.5)
    assert not torch.allclose(half, ancestral, atol=0.01)


def test_one_recurrence_is_ddim(world: AutoregressiveFields) -> None:
    sigmas, start = edm_sigmas(6), 80 * torch.randn(3, 1, 2, 4).double()
    once = self_recurrent_ddim(world.denoise, start, sigmas, recurrences=1)
    torch.testing.assert_close(once, ddim(world.denoise, start, sigmas))
    with pytest.raises(ValueError, match="recurrences must be 1 or more"):
        self_recurrent_ddim(world.denoise, start, sigmas, recurrences=0)


def test_a_recurrent_step_is_repeated_from_the_level_it_came_from(standard_normal: Source) -> None:
    """For standard normal data all is linear, and the variance follows from step to step."""
    sigmas, noise = edm_sigmas(10, sigma_max=20.0), standard_normal(7)
    start = sigmas[0] * noise(torch.empty(20_000, 1, dtype=torch.float64))
    variance = start.var().item()
    for sigma, following in pairwise(sigmas.tolist()):
        factor = (1 + sigma * following) / (1 + sigma**2)
        for again in range(3):
            variance = factor**2 * (variance + (sigma**2 - following**2) * (again > 0))
    sample = self_recurrent_ddim(
        lambda x, sigma: x / (1 + sigma**2), start, sigmas, noise=noise, recurrences=3
    )
    assert sample.var().item() == pytest.approx(variance, rel=3 * math.sqrt(2 / 20_000))


def test_ddpms_two_variances_are_exact_at_the_ends_of_what_data_can_be(
    standard_normal: Source,
) -> None:
    """Section 3.2 of Ho et al.: beta is right for unit Gaussian data, beta-tilde for a point."""
    sigmas = torch.tensor([5.0, 1.0, 0.2, 1e-4, 0.0], dtype=torch.float64)
    start = 5 * torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    unit = ddpm(
        lambda x, sigma: x / (1 + sigma**2),
        start * math.sqrt(1 + 1 / 25),
        sigmas,
        noise=standard_normal(1),
        variance="beta",
    )
    assert unit.var().item() == pytest.approx(1, abs=3 * math.sqrt(2 / 20_000))
    levels: list[Tensor] = []

    def point(x: Tensor, sigma: Tensor) -> Tensor:
        levels.append(x.std() / sigma)
        return torch.zeros_like(x)

    ddpm(point, start, sigmas, noise=standard_normal(1))
    assert torch.stack(levels).tolist() == pytest.approx([1.0] * 4, abs=3 / math.sqrt(40_000))


def test_heun_with_churn_is_algorithm_2_of_karras(
    world: AutoregressiveFields, standard_normal: Source
) -> None:
    sigmas, churn, s_min, s_max, s_noise = edm_sigmas(10), 15.0, 0.01, 30.0, 1.003
    noise = standard_normal(4)
    t, n = sigmas.tolist(), 10
    x = start = t[0] * standard_normal(0)(torch.empty(3, 1, 2, 4, dtype=torch.float64))
    for i in range(n):  # line by line as printed in the paper
        gamma = min(churn / n, math.sqrt(2) - 1) if s_min <= t[i] <= s_max else 0.0
        t_hat = t[i] + gamma * t[i]
        if gamma:
            x = x + math.sqrt(t_hat**2 - t[i] ** 2) * (s_noise * noise(x))
        d = (x - world.denoise(x, torch.tensor(t_hat))) / t_hat
        x_next = x + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_prime = (x_next - world.denoise(x_next, torch.tensor(t[i + 1]))) / t[i + 1]
            x_next = x + (t[i + 1] - t_hat) * (0.5 * d + 0.5 * d_prime)
        x = x_next
    ours = heun(
        lambda x, sigma: world.denoise(x, sigma.float()),
        start,
        sigmas,
        noise=standard_normal(4),
        churn=churn,
        s_min=s_min,
        s_max=s_max,
        s_noise=s_noise,
    )
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


def test_samplers_draw_nothing_behind_the_callers_back(world: AutoregressiveFields) -> None:
    state = torch.get_rng_state()
    for sampler, _ in GUIDED.values():
        sampler(world.denoise, torch.ones(1, 1, 2, 4), edm_sigmas(4), noise=torch.zeros_like)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"sigmas": torch.tensor([1.0, 0.1])}, "ends in exactly 0"),
        ({"sigmas": torch.tensor([0.1, 1.0, 0.0])}, "strictly descending"),
        ({"sigmas": torch.tensor([math.inf, 1.0, 0.0])}, "finite"),
        ({"sampler": partial(ddim, eta=1.5)}, "eta is 1.5"),
        ({"sampler": partial(ddpm, variance="learned")}, "Unknown variance 'learned'"),
    ],
)
def test_mistakes_get_a_sentence(call: dict[str, Any], sentence: str) -> None:
    sampler = call.get("sampler", heun)
    sigmas = call.get("sigmas", edm_sigmas(3))
    with pytest.raises(ValueError, match=sentence):
        sampler(lambda x, sigma: x, torch.ones(1, 1, 2, 2), sigmas)


# Published implementations


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="compares samplers with diffusers' schedulers")


def curved(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that no symmetry makes easy: a mixture of two points, at -1 and 0.6 per pixel."""
    distance = ((x - 0.6) ** 2 - (x + 1) ** 2) / (2 * sigma**2)
    return 0.6 * torch.sigmoid(-distance) - torch.sigmoid(distance)


def run_ddpm_scheduler(
    scheduler: Any, betas: Tensor, start: Tensor, seed: int, **step: Any
) -> tuple[Tensor, Tensor]:
    """A variance-preserving scheduler with our denoiser: its sample and the levels it went by.

    Its tables are float32; they are replaced in double precision, so that what is compared is the
    algorithm.
    """
    scheduler.alphas_cumprod = (1 - betas).cumprod(0)
    generator = torch.Generator().manual_seed(seed)
    levels = training_sigmas(betas)[scheduler.timesteps]
    x = start / (1 + levels[0] ** 2).sqrt()
    for timestep, sigma in zip(scheduler.timesteps, levels, strict=True):
        scale = (1 + sigma**2).sqrt()
        eps = (scale * x - curved(scale * x, sigma)) / sigma
        x = scheduler.step(eps, timestep, x, generator=generator, **step).prev_sample
    return x, torch.cat([levels, levels.new_zeros(1)])


@pytest.mark.parametrize("betas", [linear_betas(60, 1e-3, 0.2), cosine_betas(60)])
@pytest.mark.parametrize(("variance", "theirs"), [("posterior", "small"), ("beta", "large")])
def test_ddpm_is_that_of_diffusers(
    diffusers: Any, standard_normal: Source, betas: Tensor, variance: str, theirs: str
) -> None:
    scheduler = diffusers.DDPMScheduler(
        60, trained_betas=betas.tolist(), variance_type=f"fixed_{theirs}", clip_sample=False
    )
    scheduler.betas = betas
    scheduler.set_timesteps(60)
    start = training_sigmas(betas)[-1] * standard_normal(0)(torch.empty(4, 1, 2, 2).double())
    expected, sigmas = run_ddpm_scheduler(scheduler, betas, start, seed=7)
    ours = ddpm(curved, start, sigmas, noise=standard_normal(7), variance=variance)
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_that_of_diffusers(diffusers: Any, standard_normal: Source, eta: float) -> None:
    betas = linear_betas(100, 1e-3, 0.15)
    scheduler = diffusers.DDIMScheduler(
        100, trained_betas=betas.tolist(), clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 99
    start = training_sigmas(betas)[-1] * standard_normal(0)(torch.empty(4, 1, 2, 2).double())
    expected, sigmas = run_ddpm_scheduler(scheduler, betas, start, seed=7, eta=eta)
    ours = ddim(curved, start, sigmas, noise=standard_normal(7), eta=eta)
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)


def test_dpm_solver_is_that_of_diffusers(diffusers: Any, standard_normal: Source) -> None:
    """Its scheduler works in single precision throughout."""
    betas = linear_betas(1000)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=betas.tolist(),
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        prediction_type="sample",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(25)
    sigmas = scheduler.sigmas.double()
    start = sigmas[0] * standard_normal(0)(torch.empty(4, 1, 2, 2).double())
    x = (start / (1 + sigmas[0] ** 2).sqrt()).float()
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        denoised = curved((1 + sigma**2).sqrt() * x.double(), sigma)
        x = scheduler.step(denoised.float(), timestep, x).prev_sample
    ours = dpm_solver_pp_2m(curved, start, sigmas)
    torch.testing.assert_close(ours, x.double(), rtol=2e-5, atol=2e-5)


def test_heun_is_that_of_diffusers(diffusers: Any, standard_normal: Source) -> None:
    scheduler = diffusers.HeunDiscreteScheduler(
        trained_betas=linear_betas(1000).tolist(), prediction_type="sample", use_karras_sigmas=True
    )
    scheduler.set_timesteps(15)
    every = scheduler.sigmas.double()  # each inner level twice
    sigmas = torch.cat([every[:1], every[1:-1:2], every[-1:]])
    scheduler.sigmas = every
    x = start = sigmas[0] * standard_normal(0)(torch.empty(4, 1, 2, 2).double())
    for timestep in scheduler.timesteps:
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        x = scheduler.step(curved(x, every[scheduler.step_index]), timestep, x).prev_sample
    assert scheduler.step_index == 29  # two evaluations a step, one in the last
    torch.testing.assert_close(heun(curved, start, sigmas), x, rtol=1e-10, atol=1e-10)


def test_deterministic_ddim_is_edms_euler_method_in_diffusers(
    diffusers: Any, standard_normal: Source
) -> None:
    scheduler = diffusers.EDMEulerScheduler(sigma_data=1.0)
    scheduler.set_timesteps(18)
    torch.testing.assert_close(scheduler.sigmas.double(), edm_sigmas(18), rtol=1e-5, atol=0)
    sigmas = scheduler.sigmas.double()
    start = sigmas[0] * standard_normal(0)(torch.empty(4, 1, 2, 2).double())
    x = start.float()
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        scheduler.scale_model_input(x, timestep)
        denoised = curved(x.double(), sigma).float()
        x = scheduler.step(denoised, timestep, x, pred_original_sample=denoised).prev_sample
    torch.testing.assert_close(ddim(curved, start, sigmas), x.double(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("schedule", ["VESchedule", "VPSchedule"])
@pytest.mark.parametrize("name", ["HeunSampler", "EulerSampler", "DDIMSampler", "DDPMSampler"])
def test_samplers_are_those_of_azula(schedule: str, name: str) -> None:
    """azula stops at its lowest level; one evaluation there is our step to 0."""
    reason = "compares samplers with azula"
    denoise, noise, sample = (
        pytest.importorskip(f"azula.{module}", reason=reason)
        for module in ("denoise", "noise", "sample")
    )
    levels = getattr(noise, schedule)()

    class Theirs(denoise.Denoiser):  # type: ignore[name-defined,misc]
        schedule = levels

        def forward(self, x_t: Tensor, t: Tensor) -> Any:
            alpha, sigma = levels(t)
            return denoise.DiracPosterior(curved(x_t / alpha, sigma / alpha))

    theirs = getattr(sample, name)(Theirs(), start=0.8, steps=20, silent=True, dtype=torch.float64)
    alphas, spreads = levels(theirs.timesteps)
    sigmas = torch.cat([spreads / alphas, torch.zeros(1, dtype=torch.float64)])
    start = sigmas[0] * torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    ours: dict[str, Callable[..., Tensor]] = {
        "HeunSampler": heun,
        "EulerSampler": ddim,
        "DDIMSampler": ddim,
        "DDPMSampler": ddpm,
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        lowest = theirs(alphas[0] * start) / alphas[-1]
        torch.manual_seed(3)
        expected = curved(lowest, sigmas[-2])
        torch.testing.assert_close(
            ours[name](curved, start, sigmas), expected, rtol=1e-9, atol=1e-9
        )
