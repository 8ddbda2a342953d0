"""Modes against oscillations whose frequency, damping and shape are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dyngen.motion.modes import (
    ModalState,
    Modes,
    displacement_of,
    energy,
    hold,
    modal_analysis,
    modes_of_terms,
    project_force,
    rest,
    shapes_at,
    step,
    substeps,
)
from dyngen.motion.spectral_volume import displacement_frames, spectral_volume

FPS = 30.0


def shapes(count: int, height: int = 4, width: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = (count, 2, height, width)
    return torch.randn(size, generator=generator, dtype=torch.complex128)


def modes(frequencies: list[float], damping: list[float]) -> Modes:
    return Modes(
        shapes(len(frequencies)),
        torch.tensor(frequencies, dtype=torch.float64),
        torch.tensor(damping, dtype=torch.float64),
    )


def closed_form(modes: Modes, start: ModalState, time: float) -> Tensor:
    """The free damped oscillator: its position after ``time`` seconds."""
    w = modes.angular
    decay = modes.damping * w
    damped = w * (1 - modes.damping**2).sqrt()
    cosine, sine = (damped * time).cos(), (damped * time).sin()
    sway = start.position * cosine + (start.velocity + decay * start.position) / damped * sine
    return torch.exp(-decay * time) * sway


def walk(modes: Modes, state: ModalState, duration: float, count: int) -> list[ModalState]:
    states = [state]
    for _ in range(count):
        states.append(step(modes, states[-1], duration))
    return states


@pytest.mark.parametrize("damping", [0.0, 0.05, 0.4])
def test_it_agrees_with_the_closed_form_to_first_order(damping: float) -> None:
    m = modes([0.5, 1.7, 3.1], [damping] * 3)
    start = ModalState(
        torch.tensor([1.0 + 0.5j, -0.3j, 2.0], dtype=torch.complex128),
        torch.tensor([0.0, 2.0 - 1.0j, 5.0j], dtype=torch.complex128),
    )
    time = 2.0
    exact = closed_form(m, start, time)
    errors = []
    for count in (2000, 4000):
        last = walk(m, start, time / count, count)[-1]
        errors.append((last.position - exact).abs().max().item())
    assert errors[0] < 0.02
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.05)


def test_its_period_is_right_at_the_frame_rate() -> None:
    """Over ten periods at 30 frames per second the phase is off by less than a tenth of a turn."""
    m = modes([0.4, 1.1, 2.9], [0.0, 0.0, 0.0])
    for i in range(3):
        periods = 10
        frames = round(periods * FPS / m.frequencies[i].item())
        start = ModalState(torch.ones(3).to(m.shapes.dtype), torch.zeros(3).to(m.shapes.dtype))
        ours = walk(m, start, 1 / FPS, frames)[-1].position[i]
        exact = closed_form(m, start, frames / FPS)[i]
        assert (ours - exact).abs() < 2 * math.pi * 0.1


@settings(max_examples=30, deadline=None)
@given(
    frequency=st.floats(0.05, 20.0),
    damping=st.floats(0.0, 0.99),
    duration=st.floats(1e-3, 0.5),
    seed=st.integers(0, 1000),
)
def test_energy_never_grows_without_a_push(
    frequency: float, damping: float, duration: float, seed: int
) -> None:
    m = modes([frequency, 2.0], [damping, 0.05])
    generator = torch.Generator().manual_seed(seed)
    start = ModalState(
        *(torch.randn(2, generator=generator, dtype=torch.complex128) * s for s in (1.0, 10.0))
    )
    states = walk(m, start, duration, 40)
    energies = torch.stack([energy(m, state, duration) for state in states])
    assert (energies >= 0).all()
    assert (energies[1:] <= energies[:-1] * (1 + 1e-12)).all()


def test_energy_falls_as_the_damping_says() -> None:
    """Over whole periods it falls by ``exp(-2 xi w t)``; undamped it stays, bit for bit almost."""
    m = modes([1.0, 1.0], [0.03, 0.0])
    start = ModalState(torch.ones(2).to(m.shapes.dtype), torch.zeros(2).to(m.shapes.dtype))
    duration = 1 / 400
    states = walk(m, start, duration, 1200)
    first, last = (energy(m, s, duration) for s in (states[0], states[-1]))
    ratio = last / first
    assert ratio[0].item() == pytest.approx(math.exp(-2 * 0.03 * 2 * math.pi * 3), rel=0.01)
    assert ratio[1].item() == pytest.approx(1, abs=1e-10)
    assert first[0].item() == pytest.approx((2 * math.pi) ** 2 / 2)  # |q| = 1 at rest


def test_a_constant_force_ends_in_its_equilibrium() -> None:
    m = modes([1.0, 2.0], [0.3, 0.3])
    force = torch.tensor([2.0 - 1.0j, 0.5j], dtype=torch.complex128)
    state = rest(m)
    for _ in range(400):
        state = step(m, state, 0.05, force, mass=2.0)
    torch.testing.assert_close(state.position, force / 2.0 / m.angular**2)


def test_a_push_moves_the_point_its_own_way() -> None:
    m = modes([0.7, 1.3], [0.05, 0.05])
    force = project_force(m, (2.5, 1.25), (0.0, -3.0))
    state = step(m, rest(m), 0.01, force)
    moved = displacement_of(m, state.position)
    # Bilinear between the four pixels around, as the force was.
    at = (moved[:, 1, 2] + moved[:, 1, 3]) / 2 * 0.75 + (moved[:, 2, 2] + moved[:, 2, 3]) / 2 * 0.25
    assert at[1] < 0
    # The work of a force at a point is the work on the modes: Re sum_m q_m^* f_m = F(p) . d.
    work = (state.position.conj() * force).real.sum()
    torch.testing.assert_close(work, at @ torch.tensor([0.0, -3.0], dtype=torch.float64))


def test_what_is_held_is_where_it_is_held_with_least_energy() -> None:
    m = modes([0.7, 1.3, 2.2], [0.05] * 3)
    position = hold(m, (3.0, 2.0), (4.0, -1.5))
    moved = displacement_of(m, position)[:, 2, 3]
    torch.testing.assert_close(moved, torch.tensor([4.0, -1.5], dtype=torch.float64))
    at_rest = (m.angular**2 * position.abs().square()).sum()
    generator = torch.Generator().manual_seed(0)
    s = shapes_at(m, (3.0, 2.0))
    for _ in range(20):
        other = torch.randn(3, generator=generator, dtype=torch.complex128) * 0.3
        off = hold(m, (3.0, 2.0), tuple((s.T @ other).real.tolist()))  # type: ignore[arg-type]
        same_place = position + other - off
        torch.testing.assert_close(displacement_of(m, same_place)[:, 2, 3], moved)
        assert (m.angular**2 * same_place.abs().square()).sum() >= at_rest


def test_what_no_mode_moves_cannot_be_pulled() -> None:
    m = modes([0.7], [0.05])
    m.shapes[:, :, 0, 0] = 0
    m.shapes[:, 1, 1, 1] = 0
    assert hold(m, (0, 0), (5.0, 5.0)).abs().max() == 0
    only_x = displacement_of(m, hold(m, (1, 1), (5.0, 5.0)))[:, 1, 1]
    torch.testing.assert_close(only_x, torch.tensor([5.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("frequency", [0.9, 1.43, 2.2])
@pytest.mark.parametrize("damping", [0.01, 0.05, 0.1])
def test_analysis_finds_a_damped_oscillation(frequency: float, damping: float) -> None:
    """Let go and left to sway for 149 frames: its frequency, damping and shape."""
    m = modes([frequency], [damping])
    s = m.shapes.real.to(m.shapes.dtype)  # swings as a whole, as a real mode does
    m = Modes(s, m.frequencies, m.damping)
    t = torch.arange(1, 150, dtype=torch.float64) / FPS
    rate = torch.complex(-m.damping * m.angular, m.angular * (1 - m.damping**2).sqrt())
    motion = displacement_of(m, torch.exp(rate * t[:, None]))[None]
    found = modal_analysis(spectral_volume(motion, 24), 149, FPS, count=1)
    assert found.frequencies.item() == pytest.approx(frequency, rel=0.01)
    assert found.damping.item() == pytest.approx(damping, rel=0.1, abs=0.002)
    overlap = (found.shapes.conj() * s).sum().abs() / (found.shapes.norm() * s.norm())
    assert overlap.item() == pytest.approx(1, abs=1e-6)


def test_analysis_tells_modes_apart_and_puts_the_strongest_first() -> None:
    m = modes([1.21, 2.83], [0.02, 0.03])
    t = torch.arange(1, 150, dtype=torch.float64) / FPS
    rate = torch.complex(-m.damping * m.angular, m.angular)
    q = torch.exp(rate * t[:, None]) * torch.tensor([0.5, 2.0])
    found = modal_analysis(spectral_volume(displacement_of(m, q)[None], 24), 149, FPS, count=2)
    assert found.frequencies.tolist() == pytest.approx([2.83, 1.21], rel=0.01)
    assert found.damping.tolist() == pytest.approx([0.03, 0.02], rel=0.2)


def test_a_steady_sway_is_hardly_damped() -> None:
    volume = torch.zeros(1, 8, 4, 2, 2, dtype=torch.float64)
    volume[0, 4, 0] = 2.0
    found = modal_analysis(volume, 60, FPS)
    assert found.frequencies.tolist() == pytest.approx([2.0])
    assert found.damping.item() <= 1e-3
    assert found.shapes.shape == (1, 2, 2, 2)


def test_terms_as_modes_play_the_volume_back() -> None:
    """``q_m = exp(i w_m t)`` is the motion itself, the mean aside."""
    generator = torch.Generator().manual_seed(4)
    volume = torch.randn(1, 5, 4, 3, 3, generator=generator, dtype=torch.float64)
    volume[:, 0] = 0
    m = modes_of_terms(volume, 20, FPS, damping=0.1)
    assert m.damping.tolist() == [0.1] * 4
    t = torch.arange(1, 21, dtype=torch.float64) / FPS
    q = torch.exp(1j * m.angular * t[:, None])
    torch.testing.assert_close(displacement_of(m, q)[None], displacement_frames(volume, 20))


def test_many_states_are_stepped_at_once() -> None:
    m = modes([0.5, 1.7], [0.1, 0.2])
    states = rest(m, 3)
    force = torch.randn(3, 2, dtype=torch.complex128)
    together = step(m, states, 0.1, force)
    for i in range(3):
        alone = step(m, rest(m), 0.1, force[i])
        assert torch.equal(together.position[i], alone.position)
    assert displacement_of(m, together.position).shape == (3, 2, 4, 5)


def test_steps_are_as_short_as_the_fastest_mode_needs() -> None:
    m = modes([0.5, 3.0], [0.1, 0.1])
    assert substeps(m, 1 / FPS) == math.ceil(2 * math.pi * 3 / 30 / 0.25)
    assert substeps(m, 1e-3) == 1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="point \\(5, 1\\) is outside the image"):
        project_force(modes([1.0], [0.1]), (5, 1), (1, 0))
    with pytest.raises(ValueError, match="shapes must be complex"):
        Modes(torch.zeros(1, 2, 3, 3), torch.ones(1), torch.zeros(1))
    with pytest.raises(ValueError, match=r"must have shape \(2,\)"):
        Modes(shapes(2), torch.ones(1), torch.zeros(2))
    with pytest.raises(ValueError, match="Every frequency must be positive"):
        modes([0.0], [0.1])
    with pytest.raises(ValueError, match="Every damping ratio"):
        modes([1.0], [1.0])
    with pytest.raises(ValueError, match="duration"):
        step(modes([1.0], [0.1]), rest(modes([1.0], [0.1])), 0.0)
    with pytest.raises(ValueError, match="no motion but the mean"):
        modal_analysis(torch.zeros(1, 5, 4, 2, 2))
    with pytest.raises(ValueError, match="one motion of three terms or more"):
        modal_analysis(torch.zeros(2, 5, 4, 2, 2))
