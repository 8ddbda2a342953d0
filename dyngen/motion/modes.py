"""Interactive dynamics: the modes of a motion, and oscillators that answer when one is pulled.

The spectrum of a small motion at a resonant frequency is a mode shape as it looks in the image
(Davis et al. 2015, doi 10.1145/2816795.2818095; Li et al. 2024, arXiv 2309.07906, section 6). So

    F_t(p) = Re sum_m S_m(p) q_m(t),       q'' + 2 xi w q' + w^2 q = force / mass,

with a complex modal coordinate q for each complex shape S; a force d at the point p, in pixels and
seconds, pushes the mode m with ``S_m(p)^* . d``.

The oscillators are stepped by a semi-implicit Euler method with the damping at the middle of the
step: ``v' = v - h (w^2 q + 2 xi w (v + v') / 2 - force / mass)``, ``q' = q + h v'``. It is the
leapfrog, for which without a force

    E = |v'|^2 / 2 + w^2 Re(q^* q') / 2,       E' - E = -2 xi w h |(v + v') / 2|^2 <= 0,

and E, which is positive as long as ``w h < 2``, never grows.

What is not joined sways by itself, though a spectrum shows everything at once: two stems may share
a frequency, and a pull at one must not move the other. :func:`moving_parts` tells the things in the
image apart, and :func:`modes_of_parts` gives each modes of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dyngen.motion.spectral_volume import FRAMES, as_complex

LARGEST_PHASE = 0.25  # radians of the fastest mode in one step: its period is right to 0.3 percent
STIFFEST, LOOSEST = 0.5, 1e-4  # damping ratios a spectrum can be believed to show
HAND, HAND_DAMPING = 3.0, 0.9  # hertz and ratio of the spring by which a hand holds on
COHERENT = 0.5  # neighbours whose motions differ by less of the larger one belong together


@dataclass(frozen=True)
class Modes:
    """The modes of one motion.

    Attributes:
        shapes: S, ``(M, 2, H, W)`` complex, in pixels, x before y.
        frequencies: ``w / 2 pi``, undamped, ``(M,)`` in hertz.
        damping: the ratios xi, ``(M,)``, 0 to less than 1.

    Raises: ValueError if lengths differ, or frequencies or damping are out of range.
    """

    shapes: Tensor
    frequencies: Tensor
    damping: Tensor

    def __post_init__(self) -> None:
        count = len(self.shapes)
        if self.shapes.ndim != 4 or self.shapes.shape[1] != 2 or not self.shapes.is_complex():
            raise ValueError(
                f"shapes must be complex and (M, 2, H, W), not {self.shapes.dtype} of shape "
                f"{tuple(self.shapes.shape)}."
            )
        if self.frequencies.shape != (count,) or self.damping.shape != (count,):
            raise ValueError(
                f"There are {count} shapes; frequencies and damping must have shape ({count},), "
                f"not {tuple(self.frequencies.shape)} and {tuple(self.damping.shape)}."
            )
        if not bool((self.frequencies > 0).all()):
            raise ValueError("Every frequency must be positive; leave out the mean.")
        if not bool(((self.damping >= 0) & (self.damping < 1)).all()):
            raise ValueError("Every damping ratio must be at least 0 and less than 1.")

    @property
    def angular(self) -> Tensor:
        """w, ``(M,)`` in radians per second."""
        return 2 * math.pi * self.frequencies


class ModalState(NamedTuple):
    """Modal coordinates and their velocities, both ``(..., M)`` complex."""

    position: Tensor
    velocity: Tensor


class PartModes(NamedTuple):
    """Modes each of which moves one part of the image alone.

    Attributes:
        modes: M of them, zero outside their part.
        part: ``(M,)`` int64, the label of each mode's part.
    """

    modes: Modes
    part: Tensor


def modal_analysis(
    volume: Tensor, period: int = FRAMES, frames_per_second: float = 30.0, count: int | None = None
) -> Modes:
    """Modes at the peaks of the spectrum of one motion, the strongest first.

    Frequency and damping come from the terms about a peak k. A free oscillation ``z^t`` has, over T
    frames, the transform ``S_j e_j = z (S_j + constant)``, with ``e_j = exp(2 pi i j / T)``, up to
    what other modes and negative frequencies add to S_j, which is nearly constant there. With
    weights w_j over k - 1, k, k + 1 that cancel what is linear in ``e_j``, there remains
    ``sum w_j e_j S_j = z sum w_j S_j`` for every pixel, and least squares over all pixels give z:
    ``ln z`` is ``-xi w + i w_d`` per frame.

    Args:
        volume: ``(1, K, 4, H, W)`` or ``(K, 4, H, W)``.
        period: T.
        frames_per_second: of the video that the motion is of.
        count: at most so many modes; None takes every peak.

    Raises: ValueError if there are fewer than 3 terms, more than one motion, or no motion at all.
    """
    volume = volume if volume.ndim == 5 else volume[None]
    if len(volume) != 1 or volume.shape[1] < 3:
        raise ValueError(
            f"Modes are found in one motion of three terms or more, not in a volume of shape "
            f"{tuple(volume.shape)}."
        )
    spectrum = as_complex(volume.double())[0]  # (K, 2, H, W)
    power = spectrum.abs().square().sum((1, 2, 3))
    peaks = _peaks(power)
    if not peaks:
        raise ValueError("The volume holds no motion but the mean; there are no modes to find.")
    peaks = sorted(peaks, key=lambda k: -power[k].item())[:count]
    poles = torch.stack([_pole(spectrum, k, period) for k in peaks])
    rate = torch.log(poles) * frames_per_second  # -xi w + i w_d
    angular = rate.abs()
    real = volume.dtype if volume.dtype == torch.float64 else torch.float32
    return Modes(
        shapes=as_complex(volume)[0, peaks],
        frequencies=(angular / (2 * math.pi)).to(real),
        damping=(-rate.real / angular).clamp(LOOSEST, STIFFEST).to(real),
    )


def modes_of_terms(
    volume: Tensor,
    period: int = FRAMES,
    frames_per_second: float = 30.0,
    damping: float = 0.05,
) -> Modes:
    """Every term of one motion but the mean taken for a mode, ``M = K - 1``, the lowest first.

    It is what a sampled volume is for, whose terms are meant as modes and whose phases say nothing
    of damping.

    Args:
        volume: ``(1, K, 4, H, W)`` or ``(K, 4, H, W)``.
    """
    spectrum = as_complex(volume if volume.ndim == 5 else volume[None])[0, 1:]
    numbers = torch.arange(1, len(spectrum) + 1, device=volume.device, dtype=volume.dtype)
    return Modes(
        spectrum,
        numbers * (frames_per_second / period),
        torch.full_like(numbers, damping),
    )


def moving_parts(volume: Tensor, least: float = 0.1, pixels: int = 16, count: int = 15) -> Tensor:
    """Labels ``(H, W)`` int64 of the things that move: 1, 2, ... from the strongest, 0 the rest.

    Neighbours belong together if they move alike at all frequencies. The strength of a part is its
    mean square displacement summed over its pixels.

    Args:
        volume: ``(1, K, 4, H, W)`` or ``(K, 4, H, W)``, K of at least 2.
        least: pixels of amplitude below which nothing moves.
        pixels: parts of fewer go with the rest.
        count: the most parts besides the rest.
    """
    motion = (volume if volume.ndim == 4 else volume[0])[1:].flatten(0, 1)  # (4 (K - 1), H, W)
    power = motion.square().sum(0)
    moves = power > least**2
    across = _alike(motion[:, :, 1:], motion[:, :, :-1]) & moves[:, 1:] & moves[:, :-1]
    down = _alike(motion[:, 1:], motion[:, :-1]) & moves[1:] & moves[:-1]
    label = _components(across, down)
    _, label, sizes = torch.unique(label, return_inverse=True, return_counts=True)
    strength = torch.zeros(len(sizes), dtype=torch.float64, device=volume.device)
    strength.index_add_(0, label.flatten(), (power * moves).double().flatten())
    strength[sizes < pixels] = 0
    order = strength.argsort(descending=True, stable=True)[:count]
    order = order[strength[order] > 0]
    number = torch.zeros_like(sizes)
    number[order] = torch.arange(1, len(order) + 1, device=volume.device)
    return number[label]


def modes_of_parts(
    volume: Tensor,
    parts: Tensor,
    period: int = FRAMES,
    frames_per_second: float = 30.0,
    count: int = 16,
    damping: float | None = None,
) -> PartModes:
    """The strongest modes of a motion whose parts sway by themselves.

    Every part that moves gets its strongest mode as long as they last, then the strongest of all
    are taken. They are sorted by part, then by frequency.

    Args:
        volume: ``(1, K, 4, H, W)`` or ``(K, 4, H, W)``.
        parts: labels ``(H, W)`` of integers, as from :func:`moving_parts`.
        period: T.
        frames_per_second: of the video.
        count: the most modes.
        damping: None for :func:`modal_analysis` of each part; a ratio for
            :func:`modes_of_terms`, which is meant for sampled volumes.

    Raises: ValueError if nothing moves, or if shapes do not fit.
    """
    volume = volume if volume.ndim == 4 else volume[0]
    if parts.shape != volume.shape[-2:]:
        raise ValueError(
            f"parts has shape {tuple(parts.shape)}; it must be that of the image, "
            f"{tuple(volume.shape[-2:])}."
        )
    found: list[tuple[int, float, int, Modes]] = []  # rank in the part, strength, part, mode
    for label in parts.unique().tolist():
        own = volume[:, :, parts == label][:, :, None]  # (K, 4, 1, pixels)
        if not bool(own[1:].any()):
            continue
        if damping is None:
            modes = modal_analysis(own, period, frames_per_second, count)
        else:
            modes = modes_of_terms(own, period, frames_per_second, damping)
        strengths = modes.shapes.abs().square().sum((1, 2, 3)).tolist()
        ranked = sorted(range(len(strengths)), key=lambda m: -strengths[m])
        found += [
            (rank, strengths[m], label, _one(modes, m))
            for rank, m in enumerate(ranked)
            if strengths[m] > 0
        ]
    if not found:
        raise ValueError("The volume holds no motion but the mean; there are no modes to find.")
    found.sort(key=lambda one: (one[0] > 0, -one[1]))
    chosen = sorted(found[:count], key=lambda one: (one[2], one[3].frequencies.item()))
    shapes = chosen[0][3].shapes.new_zeros(len(chosen), 2, *parts.shape)
    for shape, (_, _, label, mode) in zip(shapes, chosen, strict=True):
        shape[:, parts == label] = mode.shapes[0, :, 0]
    return PartModes(
        Modes(
            shapes,
            torch.cat([mode.frequencies for *_, mode in chosen]),
            torch.cat([mode.damping for *_, mode in chosen]),
        ),
        torch.tensor([label for _, _, label, _ in chosen], device=volume.device),
    )


def rest(modes: Modes, *batch: int) -> ModalState:
    """The state in which nothing moves: ``(*batch, M)``."""
    zero = modes.shapes.new_zeros(*batch, len(modes.shapes))
    return ModalState(zero, zero.clone())


def step(
    modes: Modes, state: ModalState, duration: float, force: Tensor | None = None, mass: float = 1.0
) -> ModalState:
    """The state ``duration`` seconds later, under a force that is constant meanwhile.

    Long durations are split, so that no mode turns by more than a quarter of a radian in a step.

    Args:
        state: ``(..., M)``.
        force: ``(..., M)`` complex, as from :func:`project_force`.
        mass: of every mode.

    Raises: ValueError if duration or mass is not positive.
    """
    if not (duration > 0 and mass > 0):
        raise ValueError(f"duration ({duration}) and mass ({mass}) must be positive.")
    count = substeps(modes, duration)
    h = duration / count
    w = modes.angular
    loss = modes.damping * w * h
    push = 0.0 if force is None else force / mass
    position, velocity = state
    for _ in range(count):
        velocity = ((1 - loss) * velocity + h * (push - w**2 * position)) / (1 + loss)
        position = position + h * velocity
    return ModalState(position, velocity)


def pull(
    modes: Modes, state: ModalState, duration: float, target: Tensor, held: Tensor | None = None
) -> ModalState:
    """The state ``duration`` seconds later while a hand draws modes to where it wants them.

    The hand is a spring that is stiffer than the modes and nearly critically damped, so that what
    is held follows it at once and is let go without a jerk. The other modes sway freely.

    Args:
        state: ``(..., M)``.
        target: ``(..., M)`` complex coordinates, as from :func:`hold`.
        held: which modes are in the hand, ``(M,)`` bool; None is all of them.
    """
    frequency = torch.full_like(modes.frequencies, HAND)
    hand = Modes(modes.shapes, frequency, torch.full_like(modes.damping, HAND_DAMPING))
    drawn = step(hand, state, duration, hand.angular**2 * target)
    if held is None:
        return drawn
    free = step(modes, state, duration)
    return ModalState(*(torch.where(held, a, b) for a, b in zip(drawn, free, strict=True)))


def substeps(modes: Modes, duration: float) -> int:
    """Into how many steps :func:`step` splits a duration in seconds."""
    return max(1, math.ceil(modes.angular.max().item() * duration / LARGEST_PHASE))


def energy(modes: Modes, state: ModalState, duration: float, mass: float = 1.0) -> Tensor:
    """The discrete energy ``(..., M)`` of each mode, which :func:`step` never lets grow unpushed.

    Args:
        state: ``(..., M)``.
        duration: that of the steps, for the energy of a leapfrog lies between its steps; as it
            becomes short, this becomes ``mass (|v|^2 + w^2 |q|^2) / 2``.
    """
    h = duration / substeps(modes, duration)
    position, velocity = state
    before = position - h * velocity
    potential = modes.angular**2 * (before.conj() * position).real
    return mass * (velocity.abs().square() + potential) / 2


def displacement_of(modes: Modes, position: Tensor) -> Tensor:
    """``F = Re sum_m S_m q_m``: coordinates ``(..., M)`` to ``(..., 2, H, W)`` in pixels."""
    flat = modes.shapes.flatten(1)
    q = position.to(flat.dtype)
    field = q.real @ flat.real - q.imag @ flat.imag
    return field.reshape(*position.shape[:-1], *modes.shapes.shape[1:])


def project_force(modes: Modes, point: tuple[float, float], force: tuple[float, float]) -> Tensor:
    """``S_m(p)^* . d``: how a force (x, y) at a point (x, y) in pixels pushes each mode, ``(M,)``.

    Raises: ValueError if the point is outside the image.
    """
    direction = torch.tensor(force, dtype=modes.shapes.dtype, device=modes.shapes.device)
    return shapes_at(modes, point).conj() @ direction


def hold(
    modes: Modes,
    point: tuple[float, float],
    offset: tuple[float, float],
    reach: float = math.inf,
) -> Tensor:
    """Coordinates ``(M,)`` in which the point (x, y) is held ``offset`` (x, y) pixels away.

    It is the equilibrium under a constant force at that point: of all coordinates that bring it
    there, those of least energy. Where the modes do not move the point in some direction, it stays.

    Args:
        reach: pixels that nothing may move beyond. Pulling at the foot of a stem would throw its
            tip far; with r the bound ``sum_m |q_m| max_p |S_m(p)|``, all coordinates are divided by
            ``sqrt(1 + (r / reach)^2)``.

    Raises: ValueError if the point is outside the image.
    """
    compliant = shapes_at(modes, point).conj() / modes.angular[:, None] ** 2  # (M, 2)
    response = (shapes_at(modes, point).T @ compliant).real  # (2, 2): offset by force
    wanted = torch.tensor(offset, dtype=response.dtype, device=response.device)
    force = torch.linalg.pinv(response, rtol=1e-3, hermitian=True) @ wanted
    position = compliant @ force.to(compliant.dtype)
    farthest = modes.shapes.abs().square().sum(1).amax((1, 2)).sqrt()
    bound = (position.abs() * farthest).sum()
    return position / (1 + (bound / reach).square()).sqrt()


def shapes_at(modes: Modes, point: tuple[float, float]) -> Tensor:
    """Mode shapes at a point (x, y) in pixels, between pixels bilinear: ``(M, 2)`` complex.

    Raises: ValueError if the point is outside the image.
    """
    height, width = modes.shapes.shape[-2:]
    x, y = point
    if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
        raise ValueError(
            f"The point ({x:g}, {y:g}) is outside the image, whose pixels go from (0, 0) to "
            f"({width - 1}, {height - 1})."
        )
    left, top = min(int(x), max(width - 2, 0)), min(int(y), max(height - 2, 0))
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    fx, fy = x - left, y - top
    s = modes.shapes
    upper = (1 - fx) * s[:, :, top, left] + fx * s[:, :, top, right]
    lower = (1 - fx) * s[:, :, bottom, left] + fx * s[:, :, bottom, right]
    return (1 - fy) * upper + fy * lower


def _one(modes: Modes, m: int) -> Modes:
    own = slice(m, m + 1)
    return Modes(modes.shapes[own], modes.frequencies[own], modes.damping[own])


def _alike(motion: Tensor, other: Tensor) -> Tensor:
    """Whether two motions ``(C, H, W)`` differ by little, pixel by pixel: ``(H, W)``."""
    larger = torch.maximum(motion.square().sum(0), other.square().sum(0))
    return (motion - other).square().sum(0) <= COHERENT**2 * larger


def _components(across: Tensor, down: Tensor) -> Tensor:
    """Labels ``(H, W)`` of the pixels joined by links to the right ``(H, W - 1)`` and down.

    Each pixel takes the least label of those it is joined to, then the label of that label, which
    doubles the distance labels travel, until nothing changes.
    """
    height, width = len(across), down.shape[1]
    label = torch.arange(height * width, device=across.device).view(height, width)
    far = label.numel()
    while True:
        before = label.clone()
        for link, here, there in (
            (across, label[:, :-1], label[:, 1:]),
            (down, label[:-1], label[1:]),
        ):
            least = torch.where(link, torch.minimum(here, there), far)
            here.copy_(torch.minimum(here, least))
            there.copy_(torch.minimum(there, least))
        label = label.flatten()[label]
        if torch.equal(label, before):
            return label


def _peaks(power: Tensor) -> list[int]:
    """Terms stronger than both neighbours, the mean aside; beyond the last there is nothing."""
    values = power.tolist()
    last = len(values) - 1
    return [
        k
        for k in range(1, last + 1)
        if values[k] > 0
        and (k == 1 or values[k] >= values[k - 1])
        and (k == last or values[k] > values[k + 1])
    ]


def _pole(spectrum: Tensor, peak: int, period: int) -> Tensor:
    """z of the free oscillation about a peak of ``(K, 2, H, W)``: a complex number, ``|z| <= 1``.

    It is that of the peak itself, undamped, if the terms about it point elsewhere.
    """
    last = len(spectrum) - 1
    first = max(1, min(peak - 1, last - 2))  # not the mean, which lacks its negative frequency
    numbers = torch.arange(first, min(first + 3, last + 1), device=spectrum.device)
    e = torch.exp(2j * math.pi / period * numbers.double())
    apart = e[:, None] - e[None, :] + torch.eye(len(e), device=e.device)
    weights = 1 / apart.prod(1)  # of a divided difference: cancels polynomials of lower degree
    nearby = spectrum[numbers].flatten(1)
    plain, turned = weights @ nearby, (weights * e) @ nearby
    z = torch.vdot(plain, turned) / plain.abs().square().sum()
    centre = e[peak - first]
    spacing = 2 * math.pi / period
    if not bool((z / centre).angle().abs() <= spacing):
        return centre
    return z / z.abs().clamp(min=1.0)
