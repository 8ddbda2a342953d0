"""Scores by scale against Parseval's theorem, laws that are known, and brute force."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from dyngen.metrics.calibration import spread_skill
from dyngen.metrics.scales import (
    Fractions,
    fractions_skill,
    spread_and_error_spectra,
    spread_skill_by_scale,
)
from dyngen.simulate.autoregressive import AutoregressiveFields, power_law_spectrum


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_scales_add_up_to_the_whole() -> None:
    ensemble, observation = draw(3, 5, 8, 12), draw(3, 8, 12, seed=1)
    found = spread_skill_by_scale(ensemble, observation, member_dim=1)
    whole = spread_skill(ensemble, observation, member_dim=1)
    assert math.isclose(found.spread.square().sum(), whole.spread**2, rel_tol=1e-10)
    assert math.isclose(found.skill.square().sum(), whole.skill**2, rel_tol=1e-10)


def test_an_ensemble_that_is_too_narrow_at_small_scales_is_found_there() -> None:
    world = AutoregressiveFields(power_law_spectrum(16, 16, slope=2.0), 0.5)
    generator = torch.Generator().manual_seed(0)
    fields = world.simulate(7 * 300, 1, generator=generator)[:, 0, 0].reshape(7, 300, 16, 16)
    ensemble, observation = fields[:6], fields[6]
    calibrated = spread_skill_by_scale(ensemble, observation, member_dim=0)
    torch.testing.assert_close(
        calibrated.ratio, torch.ones_like(calibrated.ratio), rtol=0, atol=0.12
    )
    modes = torch.fft.rfft2(ensemble)
    k = torch.fft.fftfreq(16, d=1 / 16)[:, None].square() + torch.arange(9).square()
    modes[..., k >= 4.5**2] *= 0.5  # members differ half as much there
    narrow = torch.fft.irfft2(modes, s=(16, 16))
    ratio = spread_skill_by_scale(narrow, observation, member_dim=0).ratio
    torch.testing.assert_close(ratio[:5], calibrated.ratio[:5], rtol=0.02, atol=0)
    # Spread is halved; the error of the mean loses most of the members' own noise.
    expected = math.sqrt(7 / 6) * 0.5 / math.sqrt(1 + 0.25 / 6)
    torch.testing.assert_close(ratio[5:9], torch.full((4,), expected).double(), rtol=0.1, atol=0)


def test_a_calibrated_ensemble_is_calibrated_at_every_scale_of_what_is_seen() -> None:
    world = AutoregressiveFields(power_law_spectrum(16, 16, slope=2.0), 0.5)
    generator = torch.Generator().manual_seed(0)
    fields = world.simulate(5 * 400, 1, generator=generator)[:, 0, 0].reshape(5, 400, 16, 16)
    ensemble, observation = fields[:4], fields[4]
    there = torch.ones(16, 16, dtype=torch.bool)
    there[3:9, 2:12] = False
    ensemble = torch.where(there, ensemble, math.nan)
    variance, error = spread_and_error_spectra(ensemble, observation, member_dim=0, there=there)
    ratio = (5 / 4 * variance.mean(0) / error.mean(0)).sqrt()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=0.12)
    blank = torch.where(there, 1.0, 0.0)
    whole = spread_and_error_spectra(ensemble.nan_to_num(0.0), observation * blank, member_dim=0)
    torch.testing.assert_close(whole, (variance, error))


def test_one_member_has_no_spread_by_scale() -> None:
    found = spread_skill_by_scale(draw(1, 8, 8), draw(8, 8, seed=1), member_dim=0)
    assert bool(found.ratio.isnan().all())
    assert float(found.skill.sum()) > 0


@pytest.mark.parametrize("periodic", [True, False])
def test_fractions_are_those_of_a_uniform_filter(periodic: bool) -> None:
    ensemble, observation = draw(4, 2, 9, 12), draw(2, 9, 12, seed=1)
    wraps = (periodic, periodic)
    found = fractions_skill(ensemble, observation, 0.5, [1, 3, 7], member_dim=0, periodic=wraps)
    forecast = (ensemble > 0.5).double().mean(0).numpy()
    observed = (observation > 0.5).double().numpy()
    for i, side in enumerate((1, 3, 7)):

        def box(values: np.ndarray, side: int = side) -> np.ndarray:
            mode = "wrap" if periodic else "constant"
            whole = ndimage.uniform_filter(values, (0, side, side), mode=mode)
            part = ndimage.uniform_filter(np.ones_like(values), (0, side, side), mode=mode)
            return whole / part

        ours, theirs = box(forecast), box(observed)
        error = ((ours - theirs) ** 2).sum()
        assert math.isclose(found.error[i], error, rel_tol=1e-9)
        assert math.isclose(found.reference[i], (ours**2 + theirs**2).sum(), rel_tol=1e-9)


def test_a_displaced_event_has_no_skill_up_to_its_displacement() -> None:
    """One wet column, forecast d cells beside: 1 - d / n with squares n > d (Roberts & Lean)."""
    observation, forecast = torch.zeros(33, 33), torch.zeros(1, 33, 33)
    observation[:, 10] = 1
    forecast[0, :, 14] = 1
    widths = [1, 3, 5, 9, 17]
    score = fractions_skill(forecast, observation, 0.5, widths, member_dim=0).score
    expected = torch.tensor([max(0.0, 1 - 4 / n) for n in widths], dtype=torch.float64)
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-9)
    perfect = fractions_skill(observation[None], observation, 0.5, widths, member_dim=0).score
    torch.testing.assert_close(perfect, torch.ones_like(perfect))


def test_missing_points_area_and_batches() -> None:
    ensemble, observation = draw(3, 4, 7, 8), draw(4, 7, 8, seed=1)
    observation[1, 2, 3] = math.nan
    ensemble[0, 3, 0, 0] = math.nan
    area = torch.rand(7, 1, dtype=torch.float64) + 0.1
    whole = fractions_skill(ensemble, observation, 0.2, [3], member_dim=0, weights=area)
    parts = [
        fractions_skill(ensemble[:, i], observation[i], 0.2, [3], member_dim=0, weights=area)
        for i in range(4)
    ]
    total = Fractions(sum(p.error for p in parts), sum(p.reference for p in parts))  # type: ignore[arg-type]
    torch.testing.assert_close(total.score, whole.score)
    apart = fractions_skill(ensemble, observation, 0.2, [3], member_dim=0, weights=area, dim=(1, 2))
    assert apart.error.shape == (4, 1)
    torch.testing.assert_close(apart.error[:, 0], torch.cat([p.error for p in parts]))
    torch.testing.assert_close(apart.reference.sum(0), whole.reference)
    single = fractions_skill(ensemble[:1, :1] * 0 - 9, observation[:1], 0.2, [1], member_dim=0)
    assert float(single.score) == 0  # nothing forecast, something observed
    order = torch.tensor([2, 0, 1])
    again = fractions_skill(ensemble[order], observation, 0.2, [3], member_dim=0, weights=area)
    torch.testing.assert_close(again.score, whole.score)


@pytest.mark.parametrize("width", [0, 2, 9])
def test_widths_that_do_not_fit_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"a neighbourhood of {width} cells does not fit"):
        fractions_skill(draw(1, 8, 8), draw(8, 8), 0.0, [width], member_dim=0)
