"""Turbulence against closed forms, conservation laws and brute force."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from dyngen.simulate import turbulence
from dyngen.simulate.turbulence import Turbulence, evolve, simulate, to_grid, to_spectrum

CALM = Turbulence(
    resolution=16,
    output_resolution=16,
    viscosity=0.0,
    drag=0.0,
    kolmogorov_amplitude=0.0,
    dt=0.02,
    output_interval=0.2,
    spin_up=0.0,
    precision="float64",
)
"""No force and no friction: each test turns on what it is about."""


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def grid(parameters: Turbulence) -> tuple[Tensor, Tensor]:
    """Coordinates y (n, 1) and x (1, n)."""
    n = parameters.resolution
    points = torch.arange(n, dtype=torch.float64) * parameters.box / n
    return points[:, None], points[None, :]


def random_field(n: int, cutoff: int, seed: int, *, number: int = 1, rms: float = 1.5) -> Tensor:
    """Vorticity (number, n, n) with every wavenumber up to the cutoff, and no mean."""
    white = torch.randn(
        number, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    x, y = torch.arange(n // 2 + 1)[None, :], torch.fft.fftfreq(n, 1 / n)[:, None].abs()
    kept = (x <= cutoff) & (y <= cutoff) & (x + y > 0)
    field = torch.fft.irfft2(torch.fft.rfft2(white) * kept / (1 + x**2 + y**2) ** 0.5, s=(n, n))
    return rms * field / field.std(dim=(-2, -1), keepdim=True)


class Flow:
    """Velocity and quadratic means of vorticity (..., n, n) by complex FFTs of its own."""

    def __init__(self, vorticity: Tensor, box: float) -> None:
        n = vorticity.shape[-1]
        k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) * (2 * math.pi / box)
        self.kx, self.ky, self.vorticity = k[None, :], k[:, None], vorticity
        self.square = self.kx**2 + self.ky**2
        self.spectrum = torch.fft.fft2(vorticity, norm="forward")
        inverse = torch.where(self.square > 0, 1 / self.square.clamp_min(1e-30), 0.0)
        stream = self.spectrum * inverse  # laplacian of psi = -w
        self.u, self.v = self.back(1j * self.ky * stream), self.back(-1j * self.kx * stream)
        self.stream = self.back(stream)

    @staticmethod
    def back(spectrum: Tensor) -> Tensor:
        return torch.fft.ifft2(spectrum, norm="forward").real

    @property
    def energy(self) -> Tensor:
        return (self.u**2 + self.v**2).mean((-2, -1)) / 2

    @property
    def enstrophy(self) -> Tensor:
        return (self.vorticity**2).mean((-2, -1)) / 2


@pytest.mark.parametrize("box", [2 * math.pi, 3.0])
@pytest.mark.parametrize("order", [1, 2])
def test_a_taylor_green_vortex_decays_as_the_closed_form_says(box: float, order: int) -> None:
    parameters = replace(CALM, box=box, viscosity=0.02 / order**4, viscosity_order=order, drag=0.05)
    parameters = replace(parameters, dt=0.01)
    y, x = grid(parameters)
    k = 2 * math.pi / box
    start = (torch.cos(2 * k * x) * torch.cos(2 * k * y))[None]
    frames = simulate(parameters, 1, 6, initial=start)[0]
    rate = parameters.viscosity * (8 * k**2) ** order + parameters.drag
    for number, frame in enumerate(frames):
        expected = start[0] * math.exp(-rate * number * parameters.output_interval)
        torch.testing.assert_close(frame, expected, rtol=0, atol=1e-12)


LAMINAR = replace(
    CALM,
    viscosity=0.4,
    drag=0.1,
    kolmogorov_amplitude=0.7,
    kolmogorov_wavenumber=2,
    box=5.0,
    output_interval=1.0,
)


def laminar_state(parameters: Turbulence) -> Tensor:
    """u = A sin(k y) / (nu k^2 + mu), so w = -du/dy."""
    k = 2 * math.pi * parameters.kolmogorov_wavenumber / parameters.box
    speed = parameters.kolmogorov_amplitude / (parameters.viscosity * k**2 + parameters.drag)
    y, x = grid(parameters)
    return -speed * k * torch.cos(k * y) * torch.ones_like(x)


def test_the_laminar_kolmogorov_state_is_held() -> None:
    start = laminar_state(LAMINAR)[None]
    frames = simulate(LAMINAR, 1, 4, initial=start)
    torch.testing.assert_close(frames, start[:, None].expand_as(frames), rtol=0, atol=1e-12)


def test_the_laminar_kolmogorov_state_is_reached_from_noise() -> None:
    parameters = replace(LAMINAR, spin_up=35.0, dt=0.1)
    expected = laminar_state(parameters)[None]
    torch.testing.assert_close(simulate(parameters, 1, 1)[:, 0], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("order", [1, 2])
def test_energy_and_enstrophy_change_by_injection_less_dissipation_less_drag(order: int) -> None:
    parameters = replace(
        CALM,
        resolution=32,
        output_resolution=32,
        viscosity=5e-3 / 20 ** (order - 1),
        viscosity_order=order,
        drag=0.05,
        kolmogorov_amplitude=0.5,
        kolmogorov_wavenumber=3,
        dt=0.005,
        output_interval=0.005,
    )
    start = random_field(32, 10, seed=1, number=2)
    intervals = 100
    frames = simulate(parameters, 2, intervals + 1, initial=start)
    flow = Flow(frames, parameters.box)
    y, _ = grid(parameters)
    k, amplitude = parameters.kolmogorov_wavenumber, parameters.kolmogorov_amplitude
    damped = Flow.back(flow.square**order * flow.spectrum)  # (-laplacian)^p w

    def mean(field: Tensor) -> Tensor:
        return field.mean((-2, -1))

    budgets = {
        "energy": (
            flow.energy,
            mean(amplitude * torch.sin(k * y) * flow.u),
            parameters.viscosity * mean(flow.stream * damped),
            2 * parameters.drag * flow.energy,
        ),
        "enstrophy": (
            flow.enstrophy,
            mean(-amplitude * k * torch.cos(k * y) * frames),
            parameters.viscosity * mean(frames * damped),
            2 * parameters.drag * flow.enstrophy,
        ),
    }
    simpson = torch.full((intervals + 1,), 2.0, dtype=torch.float64)
    simpson[1::2], simpson[0], simpson[-1] = 4.0, 1.0, 1.0
    for content, injection, dissipation, drag in budgets.values():
        terms = [
            (simpson * term).sum(-1) * parameters.dt / 3 for term in (injection, dissipation, drag)
        ]
        assert min(term.abs().min() for term in terms) > 1e-3  # every term takes part
        change = content[:, -1] - content[:, 0]
        torch.testing.assert_close(change, terms[0] - terms[1] - terms[2], rtol=1e-6, atol=1e-8)


def test_energy_and_enstrophy_are_conserved_without_force_and_friction() -> None:
    start = random_field(16, 5, seed=2)
    frames = simulate(CALM, 1, 11, initial=start)
    flow = Flow(frames[0], CALM.box)
    assert (frames[0, -1] - frames[0, 0]).abs().max() > 0.5  # the flow did change
    for content in (flow.energy, flow.enstrophy):
        torch.testing.assert_close(content, content[:1].expand_as(content), rtol=1e-6, atol=0)


def test_advection_is_free_of_aliasing() -> None:
    """Against the plain advective form on a grid four times as fine, truncated afterwards."""
    n, fine = 16, 64
    field = random_field(n, CALM.cutoff, seed=3)
    wide = to_grid(_padded(to_spectrum(field), fine), fine)
    flow = Flow(wide, CALM.box)
    gradient = [Flow.back(1j * k * flow.spectrum) for k in (flow.kx, flow.ky)]
    exact = torch.fft.fft2(-flow.u * gradient[0] - flow.v * gradient[1], norm="forward")

    u, v = turbulence._velocity(CALM, "cpu")(to_spectrum(field))
    ours = turbulence._tendency(CALM, "cpu")(u, v)
    c = CALM.cutoff
    for rows in (slice(0, c + 1), slice(-c, None)):
        torch.testing.assert_close(ours[..., rows, : c + 1], exact[..., rows, : c + 1])
    assert (ours[..., c + 1 : -c, :] == 0).all()
    assert (ours[..., c + 1 :] == 0).all()


def _padded(spectrum: Tensor, n: int) -> Tensor:
    half = spectrum.shape[-2] // 2
    wide = torch.zeros(*spectrum.shape[:-2], n, n // 2 + 1, dtype=spectrum.dtype)
    wide[..., :half, :half] = spectrum[..., :half, :half]
    wide[..., -half + 1 :, :half] = spectrum[..., -half + 1 :, :half]
    return wide


def test_the_time_step_converges_at_fourth_order() -> None:
    base = replace(
        CALM,
        viscosity=0.02,
        drag=0.1,
        kolmogorov_amplitude=0.5,
        kolmogorov_wavenumber=2,
        output_interval=0.8,
    )
    start = random_field(16, 5, seed=4)

    def end(dt: float) -> Tensor:
        return simulate(replace(base, dt=dt), 1, 2, initial=start)[:, 1]

    reference = end(0.8 / 256)
    errors = [float((end(dt) - reference).abs().max()) for dt in (0.1, 0.05, 0.025)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([4, 4], abs=0.35)


def test_a_step_too_large_is_refused_and_the_one_named_instead_works() -> None:
    parameters = replace(CALM, dt=0.4, output_interval=0.8)
    start = random_field(16, 5, seed=5, rms=3.0)
    with pytest.raises(ValueError, match=r"dt 0\.4 is too large .* at time 0 ") as refusal:
        simulate(parameters, 1, 2, initial=start)
    named = re.search(r"use dt ([0-9.]+) or less", str(refusal.value))
    assert named
    simulate(replace(parameters, dt=float(named[1])), 1, 2, initial=start)


def test_a_flow_that_outruns_the_step_later_is_refused_then() -> None:
    parameters = replace(
        CALM, initial_vorticity=0.0, kolmogorov_amplitude=3.0, kolmogorov_wavenumber=1, dt=0.1
    )
    with pytest.raises(ValueError, match=r"dt 0\.1 is too large for the speed [0-9.]+ reached"):
        simulate(parameters, 1, 40)
    moment = CALM.box / 16 * turbulence.COURANT_LIMIT / 0.1 / 3.0  # u = A t until the limit
    assert simulate(parameters, 1, int(moment / 0.2)).isfinite().all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"resolution": 15}, "resolution must be even and at least 4, not 15"),
        ({"output_resolution": 32}, "output_resolution 32 exceeds resolution 16"),
        ({"dt": 0.0}, "dt must be positive"),
        ({"viscosity": -1.0}, "viscosity must be zero or positive"),
        ({"drag": math.nan}, "drag must be zero or positive, and finite"),
        ({"viscosity_order": 0}, "viscosity_order must be at least 1"),
        ({"precision": "float16"}, "precision must be float32 or float64"),
        ({"dt": 0.03}, r"dt 0\.03 does not divide output_interval 0\.2; use 0\.028571429\."),
        ({"spin_up": 0.3}, r"spin_up 0\.3 is not a multiple of output_interval 0\.2"),
        (
            {"kolmogorov_amplitude": 1.0, "kolmogorov_wavenumber": 6},
            "kolmogorov_wavenumber must be between 1 and 5",
        ),
        ({"injection_rate": 1.0, "injection_wavenumber": 20.0}, "no wavenumber lies within"),
    ],
)
def test_parameters_out_of_range_are_named(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(CALM, **change)


def test_a_state_of_another_shape_or_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match=r"initial must have shape .* = \(1, 16, 16\)"):
        simulate(CALM, 1, 1, initial=torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="initial has values that are not finite"):
        simulate(CALM, 1, 1, initial=torch.full((1, 16, 16), math.nan))
    with pytest.raises(ValueError, match="trajectories must be at least 1"):
        simulate(CALM, 0, 1)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("injection_rate", [0.0, 0.05])
@pytest.mark.usefixtures("one_thread")
def test_a_trajectory_depends_on_the_seed_and_its_number_alone(
    precision: Any, injection_rate: float
) -> None:
    parameters = replace(
        CALM,
        precision=precision,
        injection_rate=injection_rate,
        kolmogorov_amplitude=1.0,
        spin_up=0.4,
    )
    together = simulate(parameters, 7, 3, seed=6)
    for numbers in ([3], [6, 2], [1, 2, 3, 4, 5]):
        assert torch.equal(simulate(parameters, numbers, 3, seed=6), together[numbers])
    assert not torch.allclose(together[0], together[1], atol=0.1)
    assert not torch.allclose(simulate(parameters, 1, 1, seed=7)[0], together[0], atol=0.1)


def test_spin_up_only_drops_the_first_frames() -> None:
    frames = simulate(CALM, 2, 5)
    assert torch.equal(simulate(replace(CALM, spin_up=0.6), 2, 2), frames[:, 3:])


@pytest.mark.parametrize("drag", [0.0, 0.3])
def test_noise_injects_energy_at_the_rate_asked_for(drag: float) -> None:
    """From rest, E = rate (1 - exp(-2 mu t)) / (2 mu): the advection conserves energy."""
    rate = 0.05
    parameters = replace(
        CALM,
        initial_vorticity=0.0,
        injection_rate=rate,
        injection_wavenumber=3.0,
        drag=drag,
        box=4.0,
        dt=0.1,
    )
    frames = simulate(parameters, 300, 6)
    energy = Flow(frames, parameters.box).energy
    for number in (1, 5):
        time = number * parameters.output_interval
        expected = rate * time if drag == 0 else rate * -math.expm1(-2 * drag * time) / (2 * drag)
        error = float(energy[:, number].std() / 300**0.5)
        assert error < 0.03 * expected
        assert float(energy[:, number].mean()) == pytest.approx(expected, abs=4 * error)


def test_noise_forces_the_ring_and_nothing_else() -> None:
    parameters = replace(
        CALM, initial_vorticity=0.0, injection_rate=0.1, injection_wavenumber=3.0, injection_width=1
    )
    parameters = replace(parameters, output_interval=parameters.dt)  # no time to spread
    _, frame = (next(stream) for stream in [evolve(parameters, 400)] * 2)
    power = torch.fft.fft2(frame, norm="forward").abs().square().mean(0)
    flow = Flow(frame, parameters.box)
    waves = flow.square.sqrt()
    ring = (waves >= 2.5) & (waves <= 3.5)
    assert power[~ring].max() < 1e-20
    by_energy = power[ring] / flow.square[ring]  # equal energy for every wavenumber
    assert by_energy.min() > 0.7 * by_energy.mean()
    assert by_energy.max() < 1.3 * by_energy.mean()


def test_a_coarser_frame_has_the_low_wavenumbers_unchanged() -> None:
    y, x = grid(replace(CALM, resolution=32))
    low = torch.cos(3 * x + 2 * y) + torch.sin(7 * y)
    high = torch.cos(9 * x) + torch.sin(8 * y - 2 * x) + torch.cos(8 * x)
    torch.testing.assert_close(to_grid(to_spectrum(low + high), 16), low[::2, ::2])


def test_default_frames_are_stationary_and_correlated_as_documented() -> None:
    frames = simulate(Turbulence(), 12, 40).double()
    frames = (frames - frames.mean()) / frames.std()

    def correlation(first: int, last: int) -> float:
        before, after = frames[:, first : last - 1], frames[:, first + 1 : last]
        return float((before * after).mean() / (before.var() * after.var()) ** 0.5)

    assert correlation(0, 40) == pytest.approx(0.96, abs=0.01)
    assert correlation(0, 15) == pytest.approx(correlation(25, 40), abs=0.01)
    assert float(frames[:, 25:].var()) == pytest.approx(float(frames[:, :15].var()), rel=0.2)
