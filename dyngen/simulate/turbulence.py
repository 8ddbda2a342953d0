"""Forced two-dimensional Navier-Stokes turbulence on a doubly periodic box.

The vorticity equation, in non-dimensional units,

    dw/dt + u . grad w = -nu (-laplacian)^p w - mu w + F,    w = dv/dx - du/dy,

is solved pseudo-spectrally: derivatives in Fourier space, products on the grid, the 2/3 rule
(Orszag 1971) against aliasing, and ETDRK4 in time (Cox & Matthews 2002, with the contour integrals
of Kassam & Trefethen 2005), which treats viscosity, drag and a steady force exactly. All
trajectories of a batch advance together, on any device.

Two forces, which add up: a steady Kolmogorov force `A sin(k_n y)` on u, and white-in-time noise on
a ring of wavenumbers with a known energy injection rate. Both off is decaying turbulence.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

COURANT_LIMIT = 1.2
"""Largest `dt * max(|u| + |v|) / dx` accepted; RK4 with the 2/3 rule is stable below 1.35."""


@dataclass(frozen=True)
class Turbulence:
    """The physical and numerical parameters of a run, all non-dimensional.

    With the defaults the frames hold every wavenumber that the solver has, so that a frame
    determines the next one, and consecutive frames have a correlation of 0.96.

    Args:
        resolution: Grid points per axis of the solver; even. Wavenumbers below `resolution / 3`
            are kept.
        output_resolution: Grid points per axis of the frames handed out; even, at most
            `resolution`. A coarser grid is filled by dropping wavenumbers, without interpolation.
        box: Side length of the square periodic box.
        viscosity: nu, the coefficient of `-(-laplacian)^viscosity_order`; 0 is inviscid.
        viscosity_order: p; 1 is Newtonian viscosity, 2 and above hyperviscosity.
        drag: mu, the rate of linear (Ekman) friction at every scale.
        kolmogorov_amplitude: A of the steady force `A sin(2 pi n y / box)` along x; 0 turns it off.
        kolmogorov_wavenumber: n, the waves of the Kolmogorov force in the box.
        injection_rate: Mean energy per unit area and time that white-in-time noise puts in;
            0 turns it off.
        injection_wavenumber: Waves in the box at the centre of the forced ring of wavenumbers.
        injection_width: Full width of the forced ring, in waves in the box.
        initial_vorticity: Standard deviation of the random vorticity that a trajectory starts from.
        dt: Time step; must divide `output_interval`, and is refused when the flow outruns it.
        output_interval: Time between frames.
        spin_up: Time run before the first frame; a multiple of `output_interval`.
        precision: Floating point type of the solver.

    Raises:
        ValueError: A parameter is out of its range; the sentence names it.
    """

    resolution: int = 48
    output_resolution: int = 32
    box: float = 2 * math.pi
    viscosity: float = 3e-3
    viscosity_order: int = 1
    drag: float = 0.02
    kolmogorov_amplitude: float = 0.15
    kolmogorov_wavenumber: int = 5
    injection_rate: float = 0.0
    injection_wavenumber: float = 4.0
    injection_width: float = 1.0
    initial_vorticity: float = 1.45
    dt: float = 0.05
    output_interval: float = 0.4
    spin_up: float = 28.0
    precision: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        for name in ("resolution", "output_resolution"):
            value = getattr(self, name)
            if value < 4 or value % 2:
                raise ValueError(f"{name} must be even and at least 4, not {value}.")
        if self.output_resolution > self.resolution:
            raise ValueError(
                f"output_resolution {self.output_resolution} exceeds resolution "
                f"{self.resolution}; lower it, or raise resolution."
            )
        for name in ("box", "dt", "output_interval"):
            if not (0 < getattr(self, name) < math.inf):
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}.")
        for name in ("viscosity", "drag", "injection_rate", "initial_vorticity", "spin_up"):
            if not (0 <= getattr(self, name) < math.inf):
                raise ValueError(
                    f"{name} must be zero or positive, and finite, not {getattr(self, name)}."
                )
        if not math.isfinite(self.kolmogorov_amplitude):
            raise ValueError(
                f"kolmogorov_amplitude must be finite, not {self.kolmogorov_amplitude}."
            )
        if self.viscosity_order < 1:
            raise ValueError(f"viscosity_order must be at least 1, not {self.viscosity_order}.")
        if self.precision not in ("float32", "float64"):
            raise ValueError(f"precision must be float32 or float64, not {self.precision!r}.")
        if self.kolmogorov_amplitude and not 1 <= self.kolmogorov_wavenumber <= self.cutoff:
            raise ValueError(
                f"kolmogorov_wavenumber must be between 1 and {self.cutoff}, the highest that "
                f"resolution {self.resolution} keeps, not {self.kolmogorov_wavenumber}."
            )
        if self.injection_rate and not _ring(self):
            raise ValueError(
                f"no wavenumber lies within injection_width / 2 = {self.injection_width / 2:g} of "
                f"injection_wavenumber = {self.injection_wavenumber:g} and at most {self.cutoff}, "
                f"the highest that resolution {self.resolution} keeps; change either."
            )
        if not _divides(self.dt, self.output_interval):
            raise ValueError(
                f"dt {self.dt:g} does not divide output_interval {self.output_interval:g}; "
                f"use {self.output_interval / math.ceil(self.output_interval / self.dt):.8g}."
            )
        if not _divides(self.output_interval, self.spin_up):
            raise ValueError(
                f"spin_up {self.spin_up:g} is not a multiple of output_interval "
                f"{self.output_interval:g}."
            )

    @property
    def cutoff(self) -> int:
        """The highest wavenumber (waves in the box, per axis) that the 2/3 rule keeps."""
        return (self.resolution - 1) // 3

    @property
    def steps_per_frame(self) -> int:
        """Time steps between two frames."""
        return round(self.output_interval / self.dt)

    @property
    def dtype(self) -> torch.dtype:
        """The torch type that `precision` names."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def complex_dtype(self) -> torch.dtype:
        """The torch type of Fourier amplitudes."""
        return torch.complex128 if self.precision == "float64" else torch.complex64


def simulate(
    parameters: Turbulence,
    trajectories: int | Sequence[int],
    frames: int,
    *,
    seed: int = 0,
    initial: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Vorticity of some trajectories as one tensor; see `evolve` for a stream of frames.

    Args:
        parameters: What to simulate.
        trajectories: How many, or the numbers of the wanted ones.
        frames: Frames per trajectory, the first at the end of the spin-up.
        seed: Names the randomness, with the number of the trajectory.
        initial: Vorticity to start from, as in `evolve`.
        device: Where to compute.

    Returns:
        Vorticity (trajectory, time, y, x) on the output grid, on `device`.
    """
    stream = evolve(parameters, trajectories, seed=seed, initial=initial, device=device)
    return torch.stack([frame for _, frame in zip(range(frames), stream, strict=False)], dim=1)


def evolve(
    parameters: Turbulence,
    trajectories: int | Sequence[int],
    *,
    seed: int = 0,
    initial: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Run the spin-up, then yield a frame every `output_interval`, without end.

    A trajectory depends on (seed, its number) alone, not on the others that are computed with it:
    bit for bit on a CPU with one thread. Elsewhere the rounding of the Fourier transforms may
    depend on how many there are, and turbulence amplifies it.

    Args:
        parameters: What to simulate.
        trajectories: How many, or the numbers of the wanted ones.
        seed: Names the randomness, with the number of the trajectory.
        initial: Vorticity (trajectory, y, x) to start from, on the solver's grid; its mean and its
            wavenumbers above the cutoff are dropped. Without it, random.
        device: Where to compute.

    Yields:
        Vorticity (trajectory, y, x) on the output grid, on `device`.

    Raises:
        ValueError: `dt` violates the CFL condition at the start or later on, or the state is no
            longer finite; the sentence says which dt would do.
    """
    numbers = list(range(trajectories)) if isinstance(trajectories, int) else list(trajectories)
    if not numbers:
        raise ValueError("trajectories must be at least 1.")
    generators = [trajectory_generator(seed, number) for number in numbers]
    step = _stepper(parameters, device)
    noise = _ring_noise(parameters, generators, device)
    if initial is None:
        initial = _random_vorticity(parameters, generators)
    state = _initial_state(parameters, initial, len(numbers), device)
    _refuse_unstable(parameters, _speed(parameters, state), 0.0)

    for frame in _frame_numbers(parameters):
        if frame >= 0:
            # A lone transform is rounded otherwise than one of several.
            pair = state if len(numbers) > 1 else state.expand(2, -1, -1)
            yield to_grid(pair, parameters.output_resolution)[: len(numbers)]
        fastest = torch.zeros((), device=device, dtype=parameters.dtype)
        for kick in noise():
            state, speed = step(state)
            state = state if kick is None else state + kick
            fastest = torch.maximum(fastest, speed)  # also carries a NaN on
        time = parameters.spin_up + (frame + 1) * parameters.output_interval
        _refuse_unstable(parameters, torch.maximum(fastest, _speed(parameters, state)), time)


def trajectory_generator(seed: int, trajectory: int) -> torch.Generator:
    """A CPU generator whose stream depends on (seed, trajectory) alone."""
    digest = hashlib.blake2b(f"turbulence {seed} {trajectory}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def to_spectrum(field: Tensor) -> Tensor:
    """Fourier amplitudes (..., n, n/2 + 1) of a field (..., n, n): the mean is element 0, 0."""
    return torch.fft.rfft2(field, norm="forward")


def to_grid(spectrum: Tensor, resolution: int) -> Tensor:
    """Field (..., resolution, resolution) of Fourier amplitudes; wavenumbers beyond it dropped."""
    half = resolution // 2
    if spectrum.shape[-2] > resolution:
        rows = torch.cat([spectrum[..., :half, : half + 1], spectrum[..., -half:, : half + 1]], -2)
        rows[..., half, :] = 0  # the lone wavenumber -n/2 has no partner +n/2
        rows[..., half] = 0
        spectrum = rows
    return torch.fft.irfft2(spectrum, s=(resolution, resolution), norm="forward")


class Wavenumbers(NamedTuple):
    """Grid of wavenumbers of an rfft2 spectrum, each broadcastable to (n, n/2 + 1)."""

    x: Tensor  # (1, n/2 + 1), times 2 pi / box
    y: Tensor  # (n, 1), times 2 pi / box
    square: Tensor  # (n, n/2 + 1)
    kept: Tensor  # (n, n/2 + 1) bool: what the 2/3 rule keeps, without the mean


def wavenumbers(parameters: Turbulence) -> Wavenumbers:
    """The solver's wavenumbers, in float64 on the CPU."""
    n = parameters.resolution
    x = torch.arange(n // 2 + 1, dtype=torch.float64)[None, :]
    y = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)[:, None]
    kept = (x <= parameters.cutoff) & (y.abs() <= parameters.cutoff) & ((x != 0) | (y != 0))
    unit = 2 * math.pi / parameters.box
    return Wavenumbers(unit * x, unit * y, unit**2 * (x**2 + y**2), kept)


def decay_rate(parameters: Turbulence) -> Tensor:
    """Linear decay rate `nu k^2p + mu` by wavenumber, (n, n/2 + 1) in float64."""
    square = wavenumbers(parameters).square
    return parameters.viscosity * square**parameters.viscosity_order + parameters.drag


def _stepper(
    parameters: Turbulence, device: torch.device | str
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """One ETDRK4 step of the deterministic equation: state -> (next state, speed at the start)."""
    velocity, tendency = _velocity(parameters, device), _tendency(parameters, device)
    half, full, q, f1, f2, f3 = (
        coefficient.to(device, parameters.dtype) for coefficient in _etdrk4(parameters)
    )

    def step(state: Tensor) -> tuple[Tensor, Tensor]:
        u, v = velocity(state)
        n0 = tendency(u, v)
        decayed = half * state
        a = torch.addcmul(decayed, q, n0)
        na = tendency(*velocity(a))
        nb = tendency(*velocity(torch.addcmul(decayed, q, na)))
        nc = tendency(*velocity(half * a + q * (2 * nb - n0)))
        return full * state + f1 * n0 + f2 * (na + nb) + f3 * nc, _fastest(u, v)

    return step


def _velocity(
    parameters: Turbulence, device: torch.device | str
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """From the vorticity in Fourier space to u and v on the grid, each (trajectory, n, n)."""
    k = wavenumbers(parameters)
    n = parameters.resolution
    inverse = torch.where(k.kept, 1 / k.square.clamp_min(1e-300), 0.0)
    factors = torch.stack([1j * k.y * inverse, -1j * k.x * inverse])[:, None]
    factors = factors.to(device, parameters.complex_dtype)

    def velocity(state: Tensor) -> tuple[Tensor, Tensor]:
        u, v = torch.fft.irfft2(factors * state, s=(n, n), norm="forward")
        return u, v

    return velocity


def steady_force_curl(parameters: Turbulence, points: int) -> Tensor:
    """Curl of the steady force `A sin(k y)` along x, which is `-A k cos(k y)`.

    Args:
        parameters: The world.
        points: Grid points along each axis, the first at the origin.

    Returns:
        (points, points) in float64, zeros where there is no such force.
    """
    k = 2 * math.pi / parameters.box * parameters.kolmogorov_wavenumber
    y = torch.arange(points, dtype=torch.float64) * (parameters.box / points)
    curl = -parameters.kolmogorov_amplitude * k * torch.cos(k * y)
    return curl[:, None].expand(points, points)


def _tendency(
    parameters: Turbulence, device: torch.device | str
) -> Callable[[Tensor, Tensor], Tensor]:
    """From u and v on the grid to `-u . grad w + steady force` in Fourier space.

    The advection is taken in the form of Basdevant (1983), `u . grad w = (dxx - dyy)(u v) +
    dxy (v^2 - u^2)`: with the two transforms of the velocity it needs four, instead of five.
    """
    k = wavenumbers(parameters)
    n = parameters.resolution
    shear = ((k.x**2 - k.y**2) * k.kept).to(device, parameters.complex_dtype)
    strain = (k.x * k.y * k.kept).to(device, parameters.complex_dtype)
    grid = steady_force_curl(parameters, n)
    force = torch.fft.rfft2(grid, norm="forward") * k.kept
    force = force.to(device, parameters.complex_dtype)

    def tendency(u: Tensor, v: Tensor) -> Tensor:
        products = torch.fft.rfft2(torch.stack([u * v, v * v - u * u]), norm="forward")
        return torch.addcmul(force, shear, products[0]).addcmul_(strain, products[1])

    return tendency


def _fastest(u: Tensor, v: Tensor) -> Tensor:
    """The largest |u| + |v|, which bounds the rate at which any wave is carried along."""
    return (u.abs() + v.abs()).amax()


def _etdrk4(parameters: Turbulence) -> tuple[Tensor, ...]:
    """Coefficients of ETDRK4, each (n, n/2 + 1) in float64: E(dt/2), E(dt), Q, f1, 2 f2, f3.

    The functions below lose all digits near z = 0, so they are averaged over a circle about z
    (Kassam & Trefethen 2005, section 2).
    """
    dt = parameters.dt
    z = -dt * decay_rate(parameters)
    angles = torch.exp(1j * math.pi * (torch.arange(32, dtype=torch.float64) + 0.5) / 32)
    r = z[..., None] + angles

    def mean(values: Tensor) -> Tensor:
        return dt * values.mean(-1).real

    e = torch.exp(r)
    return (
        torch.exp(z / 2),
        torch.exp(z),
        mean((torch.exp(r / 2) - 1) / r),
        mean((-4 - r + e * (4 - 3 * r + r**2)) / r**3),
        2 * mean((2 + r + e * (r - 2)) / r**3),
        mean((-4 - 3 * r - r**2 + e * (4 - r)) / r**3),
    )


def _ring(parameters: Turbulence) -> list[tuple[int, int]]:
    """The forced wavenumbers (y, x), one of each pair (k, -k)."""
    cutoff, low, high = (
        parameters.cutoff,
        parameters.injection_wavenumber - parameters.injection_width / 2,
        parameters.injection_wavenumber + parameters.injection_width / 2,
    )
    return [
        (y, x)
        for x in range(cutoff + 1)
        for y in range(-cutoff, cutoff + 1)
        if (x > 0 or y > 0) and low <= math.hypot(x, y) <= high
    ]


def _ring_noise(
    parameters: Turbulence, generators: list[torch.Generator], device: torch.device | str
) -> Callable[[], Iterator[Tensor | None]]:
    """The noise of the steps between two frames, as increments of the state.

    Every forced wavenumber receives the same energy, `injection_rate` in all. The increment is what
    the linear equation makes of the white noise in one step, so it is right for any dt.
    """
    n, steps = parameters.resolution, parameters.steps_per_frame
    modes = _ring(parameters) if parameters.injection_rate else []
    if not modes:
        return lambda: iter([None] * steps)
    rows = torch.tensor([y % n for y, _ in modes])
    columns = torch.tensor([x for _, x in modes])
    # Energy is the sum over all k of |w_k|^2 / (2 k^2), and each pair counts twice.
    square = wavenumbers(parameters).square[rows, columns]
    variance_rate = parameters.injection_rate * square / len(modes)
    twice_decay = 2 * decay_rate(parameters)[rows, columns]
    duration = torch.where(
        twice_decay > 0, -torch.expm1(-twice_decay * parameters.dt) / twice_decay, parameters.dt
    )
    scale = (variance_rate * duration).sqrt()
    on_axis = columns == 0

    def between_frames() -> Iterator[Tensor]:
        draws = torch.stack(
            [
                torch.randn(steps, len(modes), dtype=torch.complex128, generator=generator)
                for generator in generators
            ],
            dim=1,
        )
        kicks = torch.zeros(steps, len(generators), n, n // 2 + 1, dtype=torch.complex128)
        kicks[..., rows, columns] = scale * draws
        # A real field: the column x = 0 of an rfft2 holds both k and -k.
        kicks[..., (n - rows[on_axis]) % n, 0] = (scale * draws)[..., on_axis].conj()
        return iter(kicks.to(device, parameters.complex_dtype))

    return between_frames


def _random_vorticity(parameters: Turbulence, generators: list[torch.Generator]) -> Tensor:
    """Gaussian vorticity (trajectory, y, x) with most energy near four waves in the box."""
    n = parameters.resolution
    k = wavenumbers(parameters)
    waves = k.square.sqrt() * parameters.box / (2 * math.pi)
    envelope = waves**0.5 * torch.exp(-((waves / 6) ** 2)) * k.kept
    fields = []
    for generator in generators:  # one by one, so that the rounding is the same for any number
        white = torch.randn(n, n, dtype=torch.float64, generator=generator)
        field = torch.fft.irfft2(envelope * torch.fft.rfft2(white), s=(n, n))
        fields.append(parameters.initial_vorticity * field / field.std())
    return torch.stack(fields)


def _initial_state(
    parameters: Turbulence, initial: Tensor, trajectories: int, device: torch.device | str
) -> Tensor:
    n = parameters.resolution
    if tuple(initial.shape) != (trajectories, n, n):
        raise ValueError(
            f"initial must have shape (trajectory, y, x) = {(trajectories, n, n)}, not "
            f"{tuple(initial.shape)}."
        )
    if not torch.isfinite(initial).all():
        raise ValueError("initial has values that are not finite; replace them.")
    kept = wavenumbers(parameters).kept
    return to_spectrum(initial.to(device, parameters.dtype)) * kept.to(device)


def _frame_numbers(parameters: Turbulence) -> Iterator[int]:
    frame = -round(parameters.spin_up / parameters.output_interval)
    while True:
        yield frame
        frame += 1


def _speed(parameters: Turbulence, state: Tensor) -> Tensor:
    return _fastest(*_velocity(parameters, state.device)(state))


def _refuse_unstable(parameters: Turbulence, speed: Tensor, time: float) -> None:
    fastest = float(speed)
    if not math.isfinite(fastest):
        raise ValueError(
            f"the vorticity was no longer finite at time {time:g}; use a smaller dt than "
            f"{parameters.dt:g} or a larger viscosity than {parameters.viscosity:g}."
        )
    spacing = parameters.box / parameters.resolution
    courant = parameters.dt * fastest / spacing
    if courant > COURANT_LIMIT:
        # A tenth to spare, as the flow may speed up further.
        steps = math.ceil(parameters.output_interval * fastest / (0.9 * COURANT_LIMIT * spacing))
        raise ValueError(
            f"dt {parameters.dt:g} is too large for the speed {fastest:.3g} reached at time "
            f"{time:g} (Courant number {courant:.2f}, limit {COURANT_LIMIT:g}); use dt "
            f"{parameters.output_interval / steps:.8g} or less."
        )


def _divides(part: float, whole: float) -> bool:
    return math.isclose(whole / part, round(whole / part), rel_tol=1e-6, abs_tol=1e-9)
