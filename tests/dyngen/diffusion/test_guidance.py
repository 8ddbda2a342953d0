"""Guidance: terms add, act where they are told to, and are right whoever computes the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dyngen.diffusion.guidance import (
    classifier_free_guidance,
    discriminator_guidance,
    guide,
    log_density_ratio,
    value_and_gradient,
)
from dyngen.diffusion.noise import edm_sigmas
from dyngen.diffusion.samplers import heun
from dyngen.simulate.autoregressive import AutoregressiveFields

SIGMA = torch.tensor([0.3, 2.0, 7.0], dtype=torch.float64)


def cubic(x: Tensor, sigma: Tensor) -> Tensor:
    """A logit with the gradient ``x^2 / sigma``."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype)
    return (x**3).flatten(1).sum(1) / 3 / sigma


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 2, 4, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture
def history(world: AutoregressiveFields) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return world.simulate(3, 2, generator=generator, dtype=torch.float64)


def shrink(x: Tensor, sigma: Tensor, **conditioning: Any) -> Tensor:
    return conditioning.get("factor", 0.5) * x


def test_terms_add_in_any_order(x: Tensor) -> None:
    first = discriminator_guidance(cubic, 0.7)
    second = classifier_free_guidance(shrink, 1.5, conditional={"factor": 0.9})

    def third(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        return denoised.square()  # each term sees the unguided estimate

    column = SIGMA.view(-1, 1, 1, 1)
    expected = 0.5 * x + 0.7 * column * x**2 + 1.5 * (0.9 - 0.5) * x + 0.25 * x**2
    for terms in ([first, second, third], [third, first, second]):
        torch.testing.assert_close(guide(shrink, terms)(x, SIGMA), expected)
    torch.testing.assert_close(guide(shrink, [])(x, SIGMA), 0.5 * x)


def test_conditioning_reaches_the_denoiser(x: Tensor) -> None:
    torch.testing.assert_close(guide(shrink, [])(x, SIGMA, factor=0.2), 0.2 * x)


@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_the_correction_is_scale_sigma_squared_gradient(x: Tensor, scale: float) -> None:
    with torch.no_grad():
        correction = discriminator_guidance(cubic, scale)(x, SIGMA, x)
    torch.testing.assert_close(correction, scale * SIGMA.view(-1, 1, 1, 1) * x**2)
    assert not correction.requires_grad


def test_the_interval_is_closed_and_by_sample(x: Tensor) -> None:
    whole = discriminator_guidance(cubic)(x, SIGMA, x)
    inside = discriminator_guidance(cubic, interval=(2.0, 7.0))(x, SIGMA, x)
    assert torch.equal(inside[0], torch.zeros_like(x[0]))
    assert torch.equal(inside[1:], whole[1:])


def test_the_logit_is_not_evaluated_where_it_does_not_act(x: Tensor) -> None:
    def never(x: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError("evaluated")

    for term in (
        discriminator_guidance(never, interval=(10.0, math.inf)),
        discriminator_guidance(never, scale=0.0),
    ):
        assert torch.equal(term(x, SIGMA, x), torch.zeros_like(x))
    with pytest.raises(AssertionError, match="evaluated"):
        discriminator_guidance(never)(x, SIGMA, x)


def test_a_guided_sampler_calls_the_logit_only_inside_the_interval(x: Tensor) -> None:
    seen: list[float] = []

    def logit(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma.item())
        return cubic(x, sigma) * 1e-3

    term = discriminator_guidance(logit, interval=(0.1, 5.0))
    heun(guide(shrink, [term]), x, edm_sigmas(12))
    assert seen
    assert min(seen) >= 0.1
    assert max(seen) <= 5.0


def test_guidance_with_exact_parts_is_the_exact_conditional_denoiser(
    world: AutoregressiveFields, history: Tensor
) -> None:
    x = history[:, 0] + 3 * history[:, 1]
    guided = guide(world.denoise, [discriminator_guidance(lambda x, s: world.logit(x, s, history))])
    torch.testing.assert_close(guided(x, SIGMA), world.denoise_given(x, SIGMA, history))


def test_a_logit_that_knows_its_gradient_is_asked(x: Tensor) -> None:
    class Closed:
        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            raise AssertionError("differentiated")

        def value_and_gradient(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1).sum(1), torch.ones_like(x)

    correction = discriminator_guidance(Closed())(x, SIGMA, x)
    torch.testing.assert_close(correction, (SIGMA**2).view(-1, 1, 1, 1).expand_as(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_gradients_whatever_the_grad_mode_of_the_caller(x: Tensor, mode: Callable[[], Any]) -> None:
    with mode():
        value, gradient = value_and_gradient(cubic, x.clone(), SIGMA.clone())
    torch.testing.assert_close(value, cubic(x, SIGMA))
    torch.testing.assert_close(gradient, x**2 / SIGMA.view(-1, 1, 1, 1))
    assert not value.requires_grad
    assert not gradient.requires_grad


def test_classifier_free_guidance_is_that_of_ho_and_salimans(x: Tensor) -> None:
    """``(1 + w) D(x | c) - w D(x)``, from either side."""
    w, conditional, unconditional = 1.75, {"factor": 0.8}, {"factor": 0.3}
    expected = (1 + w) * 0.8 * x - w * 0.3 * x
    above = guide(shrink, [classifier_free_guidance(shrink, w, unconditional=unconditional)])
    torch.testing.assert_close(above(x, SIGMA, **conditional), expected)
    below = guide(shrink, [classifier_free_guidance(shrink, 1 + w, conditional=conditional)])
    torch.testing.assert_close(below(x, SIGMA, **unconditional), expected)
    both = guide(shrink, [classifier_free_guidance(shrink, w, conditional, unconditional)])
    torch.testing.assert_close(both(x, SIGMA, **conditional), expected)
    none = classifier_free_guidance(shrink, 0.0, unconditional=unconditional)
    assert torch.equal(none(x, SIGMA, x), torch.zeros_like(x))


@pytest.mark.parametrize("sigma", [torch.tensor(0.7), torch.tensor([0.1, 0.7, 3.0])])
def test_the_density_ratio_of_a_gaussian_is_exact(sigma: Tensor) -> None:
    mean, std = 0.3, 1.7
    x, reference = torch.randn(
        2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )

    def denoiser(z: Tensor, level: Tensor) -> Tensor:
        level = level.view(-1, 1, 1, 1)
        return (std**2 * z + level**2 * mean) / (std**2 + level**2)

    law = torch.distributions.Normal(mean, (std**2 + sigma.double() ** 2).sqrt().view(-1, 1, 1, 1))
    exact = (law.log_prob(x) - law.log_prob(reference)).sum((1, 2, 3))
    found = log_density_ratio(denoiser, x, sigma.double(), reference)
    torch.testing.assert_close(found, exact)


def test_the_density_ratio_of_a_mixture_is_of_third_order() -> None:
    sigma = torch.tensor(0.5, dtype=torch.float64)
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)),
        torch.distributions.Normal(
            torch.tensor([-1.0, 0.8], dtype=torch.float64), (0.4**2 + sigma**2).sqrt().expand(2)
        ),
    )

    def denoiser(z: Tensor, level: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            (score,) = torch.autograd.grad(law.log_prob(leaf).sum(), leaf)
        return z + sigma**2 * score

    reference = torch.linspace(-1, 1, 64, dtype=torch.float64).view(64, 1)
    errors = []
    for step in (0.2, 0.1):
        x = reference + step
        exact = (law.log_prob(x) - law.log_prob(reference))[:, 0]
        errors.append((log_density_ratio(denoiser, x, sigma, reference) - exact).abs().mean())
    assert 6 < errors[0] / errors[1] < 10


def test_mistakes_get_a_sentence(x: Tensor) -> None:
    with pytest.raises(ValueError, match="Give conditional, unconditional or both"):
        classifier_free_guidance(shrink, 1.0)
    term = discriminator_guidance(lambda x, sigma: x.sum())
    with pytest.raises(ValueError, match=r"The logit has shape \(\); for a batch of 3"):
        term(x, SIGMA, x)
