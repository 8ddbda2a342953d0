"""Particles: the target is the same with and without the gradient, and it is the right one."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor

from dyngen.diffusion.denoiser import Denoiser, Parameterisation
from dyngen.diffusion.guidance import discriminator_guidance, guide
from dyngen.diffusion.noise import edm_sigmas
from dyngen.diffusion.particles import (
    draw,
    effective_sample_size,
    sample_with_particles,
    systematic_resampling,
)
from dyngen.diffusion.samplers import ddim, ddpm
from dyngen.simulate.autoregressive import AutoregressiveFields, power_law_spectrum

Source = Callable[[int], Callable[[Tensor], Tensor]]
STEPS, MEMBERS = 150, 400


@pytest.fixture(scope="module")
def faint() -> AutoregressiveFields:
    """A world whose past says little, so that few particles suffice without a gradient."""
    return AutoregressiveFields(power_law_spectrum(2, 2, slope=2.0), coefficient=0.5)


def uniforms(seed: int) -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda n: torch.rand(n, generator=generator, dtype=torch.float64)


def particle_samples(
    world: AutoregressiveFields, noise: Callable[[Tensor], Tensor], members: int, **options: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples ``(N, C, H, W)``, effective sample sizes ``(steps, N)`` and histories."""
    generator = torch.Generator().manual_seed(11)
    history = world.simulate(members, 1, generator=generator, dtype=torch.float64)
    particles = int(options.pop("particles"))
    steps = int(options.pop("steps", STEPS))
    sigmas = edm_sigmas(steps, 0.02, 80.0)
    repeated = history.repeat_interleave(particles, 0)
    samples, sizes = sample_with_particles(
        world.denoise,
        lambda x, sigma: world.logit(x, sigma, repeated),
        sigmas[0] * noise(repeated[:, 0]),
        sigmas,
        particles=particles,
        noise=noise,
        uniform=uniforms(5),
        **options,
    )
    return samples, sizes, history


@pytest.mark.parametrize(
    "options",
    [
        {"particles": 40},
        {"particles": 40, "threshold": 1.0},
        {"particles": 8, "scale": 1.0},
        {"particles": 20, "scale": 0.6},
        {"particles": 20, "scale": 1.0, "interval": (0.1, 3.0)},
        {"particles": 20, "scale": 1.7, "threshold": 0.9},
        {"particles": 40, "eta": 0.7},
    ],
    ids=str,
)
def test_particles_give_the_law_of_the_next_frame(
    options: dict[str, float],
    faint: AutoregressiveFields,
    agreement: Callable[..., float],
    three_sigma: float,
    standard_normal: Source,
) -> None:
    """Whatever the proposal: without a gradient, with it, and with a scale that is wrong."""
    samples, sizes, history = particle_samples(faint, standard_normal(1), MEMBERS, **options)
    assert agreement(faint, samples, history) > three_sigma
    assert sizes.shape == (STEPS, MEMBERS)
    assert bool(((sizes >= 1 - 1e-9) & (sizes <= options["particles"] + 1e-9)).all())


def test_one_particle_has_nothing_to_choose_from(
    faint: AutoregressiveFields,
    agreement: Callable[..., float],
    three_sigma: float,
    standard_normal: Source,
) -> None:
    samples, sizes, history = particle_samples(faint, standard_normal(1), MEMBERS, particles=1)
    assert agreement(faint, samples, history) < three_sigma
    torch.testing.assert_close(sizes, torch.ones_like(sizes))


def test_without_resampling_or_a_wrong_scale_the_gradient_alone_is_biased(
    faint: AutoregressiveFields,
    agreement: Callable[..., float],
    three_sigma: float,
    standard_normal: Source,
) -> None:
    """What the particles of the test above correct: scale 1.7 for one particle is wrong."""
    samples, _, history = particle_samples(
        faint, standard_normal(1), MEMBERS, particles=1, scale=1.7, threshold=0.9
    )
    assert agreement(faint, samples, history) < three_sigma


def test_one_particle_with_the_gradient_is_the_guided_sampler(
    faint: AutoregressiveFields, standard_normal: Source
) -> None:
    history = faint.simulate(5, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def logit(x: Tensor, sigma: Tensor) -> Tensor:
        return faint.logit(x, sigma, history)

    sigmas = edm_sigmas(9)
    start = sigmas[0] * standard_normal(0)(history[:, 0])
    for eta in (1.0, 0.6):
        samples, _ = sample_with_particles(
            faint.denoise,
            logit,
            start,
            sigmas,
            particles=1,
            scale=1.3,
            eta=eta,
            interval=(0.01, 20.0),
            noise=standard_normal(3),
        )
        guided = guide(faint.denoise, [discriminator_guidance(logit, 1.3, (0.01, 20.0))])
        expected = ddim(guided, start, sigmas, noise=standard_normal(3), eta=eta)
        torch.testing.assert_close(samples, expected, rtol=1e-10, atol=1e-10)


def test_a_constant_logit_leaves_the_unguided_sampler(
    faint: AutoregressiveFields, standard_normal: Source
) -> None:
    sigmas = edm_sigmas(7)
    start = sigmas[0] * standard_normal(0)(torch.empty(6, 1, 2, 2, dtype=torch.float64))
    samples, sizes = sample_with_particles(
        faint.denoise,
        lambda x, sigma: x.new_full((len(x),), 3.0),
        start,
        sigmas,
        particles=3,
        noise=standard_normal(3),
        uniform=lambda n: torch.tensor([0.1, 0.9], dtype=torch.float64),
    )
    chains = ddpm(faint.denoise, start, sigmas, noise=standard_normal(3))
    torch.testing.assert_close(samples, chains[[0, 5]])  # the first of three, the last of three
    torch.testing.assert_close(sizes, torch.full((7, 2), 3.0, dtype=sizes.dtype))


def test_the_gradient_keeps_more_particles_alive(
    faint: AutoregressiveFields, standard_normal: Source
) -> None:
    options = {"particles": 16, "steps": 60, "threshold": 0.0}
    _, without, _ = particle_samples(faint, standard_normal(1), 50, **options)
    _, with_gradient, _ = particle_samples(faint, standard_normal(1), 50, scale=1.0, **options)
    assert with_gradient[-1].mean() > 1.3 * without[-1].mean()


def test_a_member_does_not_depend_on_the_others(
    faint: AutoregressiveFields, standard_normal: Source
) -> None:
    particles, sigmas = 4, edm_sigmas(10, 0.02, 80.0)
    history = faint.simulate(3, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    tape = torch.randn(11, 12, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    chances = torch.rand(11, 3, generator=torch.Generator().manual_seed(1)).double()

    def run(members: slice) -> Tensor:
        rows = slice(members.start * particles, members.stop * particles)
        draws, uniform = iter(tape[:, rows]), iter(chances[:, members])
        repeated = history[members].repeat_interleave(particles, 0)
        samples, _ = sample_with_particles(
            faint.denoise,
            lambda x, sigma: faint.logit(x, sigma, repeated),
            sigmas[0] * next(draws),
            sigmas,
            particles=particles,
            noise=lambda x: next(draws),
            uniform=lambda n: next(uniform),
            threshold=0.9,
        )
        return samples

    together = run(slice(0, 3))
    alone = torch.cat([run(slice(i, i + 1)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


def test_nothing_is_drawn_behind_the_callers_back(
    faint: AutoregressiveFields, standard_normal: Source
) -> None:
    state = torch.get_rng_state()
    particle_samples(faint, standard_normal(0), 2, particles=2, steps=5, scale=1.0)
    assert torch.equal(torch.get_rng_state(), state)


# Resampling


def test_effective_sample_size_is_that_of_the_weights() -> None:
    weights = torch.tensor([[0.7, 0.2, 0.1], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    expected = [1 / (0.49 + 0.04 + 0.01), 3.0, 1.0]
    sizes = effective_sample_size(weights.log() + 5)
    assert sizes.tolist() == pytest.approx(expected, rel=1e-5)


def test_systematic_resampling_takes_the_floor_or_the_ceiling() -> None:
    generator = torch.Generator().manual_seed(0)
    log_weights = 2 * torch.randn(200, 7, generator=generator, dtype=torch.float64)
    chosen = systematic_resampling(log_weights, torch.rand(200, generator=generator).double())
    counts = torch.nn.functional.one_hot(chosen, 7).sum(1)
    expected = 7 * log_weights.softmax(-1)
    assert bool((counts >= expected.floor()).all())
    assert bool((counts <= expected.ceil()).all())
    assert bool((chosen.diff(dim=1) >= 0).all())


def test_systematic_resampling_is_unbiased() -> None:
    """Over evenly spaced uniforms the mean count is the weight, to the spacing."""
    log_weights = torch.tensor([[0.1, 2.0, -1.0, 0.4]], dtype=torch.float64)
    fine = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    chosen = systematic_resampling(log_weights.expand(1000, 4), fine)
    mean = torch.nn.functional.one_hot(chosen, 4).double().sum(1).mean(0)
    torch.testing.assert_close(mean, 4 * log_weights[0].softmax(-1), rtol=0, atol=2e-3)


def test_draw_inverts_the_cumulative_weights() -> None:
    log_weights = torch.tensor([0.25, 0.5, 0.25]).log().double()
    points = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 0.9999]).double()
    drawn = draw(log_weights.expand(6, 3), points)
    assert drawn.tolist() == [0, 0, 1, 1, 2, 2]


def test_particles_of_no_weight_are_never_taken() -> None:
    log_weights = torch.tensor([[-math.inf, 0.0, -math.inf]], dtype=torch.float64)
    for point in (0.0, 0.5, 1 - 1e-16):
        uniform = torch.tensor([point], dtype=torch.float64)
        assert systematic_resampling(log_weights, uniform).tolist() == [[1, 1, 1]]
        assert draw(log_weights, uniform).tolist() == [1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"particles": 4}, "A batch of 6 cannot be shared out to 4 particles"),
        ({"particles": 0}, "cannot be shared out to 0"),
        *[({"particles": 2, "eta": eta}, f"eta is {eta}") for eta in (0.0, 1.2)],
    ],
)
def test_mistakes_get_a_sentence(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sample_with_particles(
            lambda x, sigma: x,
            lambda x, sigma: x.flatten(1).sum(1),
            torch.zeros(6, 1, 2, 2),
            edm_sigmas(3),
            **options,  # type: ignore[arg-type]
        )


def test_weights_are_products_of_potentials_and_kernel_ratios(
    standard_normal: Source,
) -> None:
    """Two steps on a single number, with every density written out."""
    from torch.distributions import Normal

    sigmas = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    scale, particles = 0.8, 5

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return 0.3 * x / (1 + sigma)

    def logit(x: Tensor, sigma: Tensor) -> Tensor:
        return (-((x - 0.7) ** 2) / (1 + sigma)).flatten(1).sum(1)

    start = 3 * standard_normal(0)(torch.empty(particles, 1, 1, 1, dtype=torch.float64))
    _, sizes = sample_with_particles(
        denoiser, logit, start, sigmas, particles=particles, threshold=0.0, scale=scale,
        noise=standard_normal(1), uniform=uniforms(0),
    )  # fmt: skip
    high, low = sigmas[:2]
    guided = denoiser(start, high) + scale * high**2 * (-2 * (start - 0.7) / (1 + high))
    up = low * (high**2 - low**2).sqrt() / high
    means = [d + (low / high) ** 2 * (start - d) for d in (denoiser(start, high), guided)]
    # The correction moves the estimate D, and with it the direction towards it.
    x = means[1] + up * standard_normal(1)(start)
    kernel, proposal = (Normal(mean, up).log_prob(x).flatten() for mean in means)
    weights = logit(start, high) + logit(x, low) - logit(start, high) + kernel - proposal
    expected = [effective_sample_size(w) for w in (logit(start, high), weights)]
    torch.testing.assert_close(sizes[:, 0], torch.stack(expected))


def test_every_choice_of_options_runs_in_single_precision(faint: AutoregressiveFields) -> None:
    history = torch.zeros(4, 1, 1, 2, 2)
    for scale, threshold in product((0.0, 1.0), (0.0, 1.0)):
        samples, sizes = sample_with_particles(
            faint.denoise,
            lambda x, sigma: faint.logit(x, sigma, history),
            80 * torch.ones(4, 1, 2, 2),
            edm_sigmas(4),
            particles=2,
            scale=scale,
            threshold=threshold,
        )
        assert samples.dtype == torch.float32
        assert samples.shape == (2, 1, 2, 2)
        assert bool(samples.isfinite().all())
        assert sizes.shape == (4, 2)


@pytest.mark.parametrize("parameterisation", get_args(Parameterisation))
def test_particles_cannot_tell_the_parameterisations_apart(
    parameterisation: Parameterisation,
    faint: AutoregressiveFields,
    exact_denoiser: Callable[..., Denoiser],
    standard_normal: Source,
) -> None:
    history = faint.simulate(2, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    repeated = history.repeat_interleave(6, 0)
    sigmas = edm_sigmas(12)
    through_network, exact = (
        sample_with_particles(
            denoiser,
            lambda x, sigma: faint.logit(x, sigma, repeated),
            sigmas[0] * standard_normal(0)(repeated[:, 0]),
            sigmas,
            particles=6,
            scale=0.5,
            threshold=0.8,
            noise=standard_normal(3),
            uniform=uniforms(1),
        )
        for denoiser in (exact_denoiser(faint, parameterisation), faint.denoise)
    )
    for ours, expected in zip(through_network, exact, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)
