"""A garden in the wind: videos of swaying things, whose motion is known exactly.

A scene is a stack of layers: a still background, water, cloth, pendulums, stems with leaves. Every
layer moves by a few modes of known shape, frequency and damping, so that its displacement since the
start frame is

    F_t(p) = sum_m phi_m(p) (q_m(t) - q_m(0)),    q_m(t) = exp(-xi w t) cos(w_d t + phase),

p in the start frame. A frame is drawn by solving ``p + F_t(p) = x`` for every pixel x of every
layer, by iteration, and laying the layers over each other: nothing is warped twice, and the
displacement, what hides what, and the masks are known without estimating anything.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MARGIN = 24  # pixels of texture beyond the image
TOLERANCE = 1e-3  # pixels, of the solution of p + F(p) = x
AT_ONCE = 10  # frames drawn together
MOST_SWAY = 4.0  # by which a scene may be made to sway more than it was drawn

PETALS = (  # colours of blossoms
    ((0.90, 0.30, 0.40), (0.95, 0.75, 0.30), (1.00, 0.95, 0.80)),
    ((0.95, 0.80, 0.20), (1.00, 0.90, 0.45), (0.98, 0.65, 0.15)),
    ((0.55, 0.35, 0.75), (0.75, 0.55, 0.90), (0.92, 0.85, 0.98)),
    ((0.98, 0.96, 0.92), (0.90, 0.88, 0.95), (1.00, 0.85, 0.88)),
    ((0.80, 0.12, 0.15), (0.95, 0.35, 0.30), (0.98, 0.60, 0.50)),
)

Field = Callable[[Tensor], Tensor]  # places (..., 2) in pixels, x before y, to values at them


@dataclass(frozen=True)
class Garden:
    """What a garden is like; a clip of it follows from (seed, clip) alone.

    Args:
        width, height: of the image in pixels.
        frames: T, frames after the start frame.
        frames_per_second: of the video.
        sway: the largest displacement in pixels of what is seen in the start frame of a clip; each
            clip reaches it, unless only water moves.
        lowest, highest: natural frequencies in hertz lie between these.
        stems, pendulums, cloths: how many of each there are.
        water: whether a pond lies at the bottom.
        seed: of the scenes.

    Raises: ValueError if a size, rate or number is out of range.
    """

    width: int = 256
    height: int = 160
    frames: int = 149
    frames_per_second: float = 30.0
    sway: float = 10.0
    lowest: float = 0.4
    highest: float = 2.5
    stems: int = 4
    pendulums: int = 1
    cloths: int = 1
    water: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 32:
            raise ValueError(f"A garden of {self.width}x{self.height} is too small; use 32 pixels.")
        if self.frames < 1 or self.frames_per_second <= 0:
            raise ValueError("frames and frames_per_second must be positive.")
        if not 0 <= self.sway <= min(self.width, self.height) / 8:
            raise ValueError(
                f"sway must lie between 0 and an eighth of the image, not at {self.sway:g}."
            )
        if not 0 < self.lowest <= self.highest < self.frames_per_second / 2:
            raise ValueError(
                f"lowest ({self.lowest:g}) and highest ({self.highest:g}) must be positive, in "
                "order, and below half the frame rate."
            )
        if min(self.stems, self.pendulums, self.cloths) < 0:
            raise ValueError("There cannot be fewer than 0 stems, pendulums or cloths.")


@dataclass(frozen=True)
class Mode:
    """One way in which a layer moves.

    Attributes:
        shape: phi, places ``(..., 2)`` to displacements ``(..., 2)`` in pixels.
        frequency: undamped, in hertz.
        damping: ratio xi, less than 1.
        phase: at the start frame, in radians.
    """

    shape: Field
    frequency: float
    damping: float
    phase: float

    def larger(self, factor: float) -> Mode:
        """The same mode with another size."""
        return replace(self, shape=lambda places: factor * self.shape(places))

    def coordinate(self, seconds: Tensor) -> Tensor:
        """``q(t)``, like ``seconds``."""
        angular = 2 * math.pi * self.frequency
        damped = angular * math.sqrt(1 - self.damping**2)
        return torch.exp(-self.damping * angular * seconds) * torch.cos(
            damped * seconds + self.phase
        )


@dataclass(frozen=True)
class Layer:
    """One thing in the garden, described where it is in the start frame.

    Attributes:
        kind: ``background``, ``water``, ``cloth``, ``pendulum`` or ``stem``.
        colour: places ``(..., 2)`` to red, green and blue ``(..., 3)`` in 0..1.
        opacity: places ``(..., 2)`` to ``(...)`` in 0..1.
        modes: how it moves; a still layer has none.
    """

    kind: str
    colour: Field
    opacity: Field
    modes: tuple[Mode, ...] = ()

    def displacement(self, places: Tensor, seconds: Tensor) -> Tensor:
        """``F_t(p)``: places ``(N or 1, ..., 2)`` and times ``(N,)`` to ``(N, ..., 2)``."""
        column = [-1] + [1] * (places.ndim - 1)
        total = places.new_zeros(torch.broadcast_shapes((len(seconds), *places.shape[1:])))
        for mode in self.modes:
            moved = mode.coordinate(seconds) - mode.coordinate(torch.zeros_like(seconds))
            total = total + moved.view(column) * mode.shape(places)
        return total


class Clip(NamedTuple):
    """A video and the truth about it.

    Attributes:
        video: ``(T + 1, 3, H, W)`` in 0..1, the start frame first.
        displacement: ``(T, 2, H, W)`` in pixels, of what is seen in the start frame.
        hidden: ``(T, H, W)`` bool, where that is covered in a later frame, or has left the image.
        mask: ``(H, W)`` int64, the layer seen in the start frame, 0 the background.
        layers: from back to front.
    """

    video: Tensor
    displacement: Tensor
    hidden: Tensor
    mask: Tensor
    layers: tuple[Layer, ...]


def simulate(garden: Garden, clip: int = 0) -> Clip:
    """Draw one clip of a garden; clips of other numbers are other scenes."""
    layers = scene(garden, clip)
    places = _places(garden)
    opacities = torch.stack([layer.opacity(places) for layer in layers])  # (L, H, W)
    mask = _topmost(opacities)
    reaches = [_reach(garden, opacity) for opacity in opacities]
    numbers = torch.arange(garden.frames + 1)
    parts = [
        _draw(garden, layers, reaches, mask, places, part / garden.frames_per_second)
        for part in numbers.split(AT_ONCE)
    ]
    video, displacement, hidden = (torch.cat(x) for x in zip(*parts, strict=True))
    return Clip(video, displacement[1:].movedim(-1, 1), hidden[1:], mask, layers)


def scene(garden: Garden, clip: int = 0) -> tuple[Layer, ...]:
    """The layers of a clip, from back to front."""
    digest = hashlib.blake2b(f"garden {garden.seed} {clip}".encode(), digest_size=8).digest()
    draw = _Draw(garden, torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1))
    layers = [_background(garden, draw)]
    if garden.water:
        layers.append(_water(garden, draw))
    layers += [_cloth(garden, draw) for _ in range(garden.cloths)]
    layers += [_pendulum(garden, draw) for _ in range(garden.pendulums)]
    layers += [_stem(garden, draw) for _ in range(garden.stems)]
    return _swaying_fully(garden, layers)


def _swaying_fully(garden: Garden, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The same layers, all but water swaying more, until one reaches the sway asked for."""
    places = _places(garden)
    mask = _topmost(torch.stack([layer.opacity(places) for layer in layers]))
    seconds = torch.arange(1, garden.frames + 1) / garden.frames_per_second
    free = [layer.kind != "water" and bool(layer.modes) for layer in layers]
    largest = 0.0
    for number, layer in enumerate(layers):
        seen = places[mask == number]
        if free[number] and len(seen):
            moved = layer.displacement(seen[None], seconds)
            largest = max(largest, moved.norm(dim=-1).max().item())
    factor = min(garden.sway / largest, MOST_SWAY) if largest > 0 else 1.0
    return tuple(
        replace(layer, modes=tuple(mode.larger(factor) for mode in layer.modes)) if some else layer
        for layer, some in zip(layers, free, strict=True)
    )


def _draw(
    garden: Garden,
    layers: Sequence[Layer],
    reaches: Sequence[tuple[slice, slice]],
    mask: Tensor,
    places: Tensor,
    seconds: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Frames ``(N, 3, H, W)``, displacement ``(N, H, W, 2)`` and what is hidden ``(N, H, W)``."""
    size = (len(seconds), garden.height, garden.width)
    image, displacement = torch.zeros(*size, 3), torch.zeros(*size, 2)
    on_top = torch.zeros(size, dtype=torch.int64)
    for number, (layer, (rows, columns)) in enumerate(zip(layers, reaches, strict=True)):
        around = places[None, rows, columns]
        origin = _origin(layer, around, seconds)
        opacity = layer.opacity(origin)
        part = image[:, rows, columns]
        part.copy_(torch.lerp(part, layer.colour(origin), opacity[..., None]))
        on_top[:, rows, columns].masked_fill_(opacity > 0.5, number)
        here = layer.displacement(around, seconds)
        part = displacement[:, rows, columns]
        part.copy_(torch.where((mask[rows, columns] == number)[..., None], here, part))
    there = places + displacement
    nearest = there.round().long()
    x, y = nearest.unbind(-1)
    inside = (x >= 0) & (x < garden.width) & (y >= 0) & (y < garden.height)
    index = y.clamp(0, garden.height - 1) * garden.width + x.clamp(0, garden.width - 1)
    seen = on_top.flatten(1).gather(1, index.flatten(1)).view_as(index)
    return image.movedim(-1, 1).clamp(0, 1), displacement, ~(inside & (seen == mask))


def _origin(layer: Layer, places: Tensor, seconds: Tensor) -> Tensor:
    """The p with ``p + F_t(p) = x`` for places x: ``(1, H, W, 2)`` to ``(N or 1, H, W, 2)``.

    The iteration converges because no mode shears by as much as a pixel per pixel.
    """
    origin = places
    if not layer.modes:
        return origin
    for _ in range(100):
        following = places - layer.displacement(origin, seconds)
        change = (following - origin).abs().max()
        origin = following
        if change < TOLERANCE:
            break
    return origin


def _reach(garden: Garden, opacity: Tensor) -> tuple[slice, slice]:
    """The rows and columns a layer may come to, from its opacity ``(H, W)`` at the start."""
    spare = math.ceil(1.1 * garden.sway) + 2

    def span(anywhere: Tensor) -> slice:
        found = anywhere.nonzero().flatten().tolist() or [0]
        return slice(max(found[0] - spare, 0), found[-1] + 1 + spare)

    return span((opacity > 0).any(1)), span((opacity > 0).any(0))


def _topmost(opacities: Tensor) -> Tensor:
    """``(L, ...)`` to the number ``(...)`` of the foremost layer that is more than half opaque."""
    number = torch.arange(len(opacities)).view(-1, *[1] * (opacities.ndim - 1))
    return torch.where(opacities > 0.5, number, 0).amax(0)


def _places(garden: Garden) -> Tensor:
    """``(H, W, 2)``: x and y of every pixel."""
    y, x = torch.meshgrid(
        torch.arange(garden.height, dtype=torch.float32),
        torch.arange(garden.width, dtype=torch.float32),
        indexing="ij",
    )
    return torch.stack([x, y], -1)


@dataclass(frozen=True)
class _Draw:
    """Random numbers of one scene, in the order in which they are asked for."""

    garden: Garden
    generator: torch.Generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def mode(self, shape: Callable[[Tensor], Tensor], share: float, octave: float = 0.0) -> Mode:
        """A mode of a shape of size 1, whose displacement is at most ``share * sway``.

        Args:
            octave: how many octaves above the lower part of the range its frequency lies.
        """
        g = self.garden
        top = g.lowest * (g.highest / g.lowest) ** 0.5
        frequency = min(self.uniform(g.lowest, top) * 2**octave, g.highest)
        size = share * g.sway / 2 * self.uniform(0.5, 1.0)  # q - q(0) is at most 2
        return Mode(
            lambda p: size * shape(p),
            frequency,
            self.uniform(0.002, 0.03),
            self.uniform(0, 2 * math.pi),
        )

    def texture(self, colours: Sequence[Sequence[float]], grain: float) -> Field:
        """Smooth noise of two octaves between colours; ``grain`` is its size in pixels."""
        height, width = self.garden.height + 2 * MARGIN, self.garden.width + 2 * MARGIN
        noise = torch.zeros(1, 1, height, width)
        for octave, weight in ((1.0, 0.6), (2.5, 0.4)):
            size = [max(4, round(n / grain * octave)) for n in (height, width)]
            coarse = torch.rand(1, 1, *size, generator=self.generator)
            noise += weight * functional.interpolate(coarse, (height, width), mode="bicubic")
        palette = torch.tensor(colours)
        position = noise[0, 0].clamp(0, 1) * (len(palette) - 1)
        first = position.floor().clamp(max=len(palette) - 2)
        blend = (position - first)[..., None]
        chosen = palette[first.long()] * (1 - blend) + palette[first.long() + 1] * blend
        image = chosen.movedim(-1, 0)[None]

        def colour(places: Tensor) -> Tensor:
            scale = places.new_tensor([width - 1, height - 1])
            grid = (places + MARGIN) / scale * 2 - 1
            flat = grid.reshape(1, -1, 1, 2)
            sampled = functional.grid_sample(
                image, flat, mode="bicubic", padding_mode="border", align_corners=True
            )
            return sampled[0, :, :, 0].t().reshape(*places.shape[:-1], 3)

        return colour


def _soft(distance: Tensor) -> Tensor:
    """Opacity from a signed distance in pixels, positive inside: half at the edge, two wide."""
    return (0.5 + distance / 2).clamp(0, 1)


def _along(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(x, y), -1)


def _background(garden: Garden, draw: _Draw) -> Layer:
    sky = draw.texture([[0.55, 0.72, 0.88], [0.80, 0.88, 0.93], [0.93, 0.93, 0.90]], 60)
    ground = draw.texture([[0.20, 0.28, 0.14], [0.42, 0.50, 0.22], [0.55, 0.52, 0.30]], 9)
    hill = draw.texture([[0.36, 0.47, 0.45], [0.47, 0.58, 0.50], [0.55, 0.64, 0.52]], 14)
    horizon = garden.height * draw.uniform(0.5, 0.7)
    high = garden.height * draw.uniform(0.05, 0.12)
    waves = [(draw.uniform(0.4, 2.5), draw.uniform(0, 2 * math.pi)) for _ in range(3)]

    def colour(p: Tensor) -> Tensor:
        angle = 2 * math.pi * p[..., 0] / garden.width
        ridge = sum(torch.cos(number * angle + phase) / 3 for number, phase in waves)
        away = _soft((p[..., 1] - horizon + high * (1 + ridge)) / 2)[..., None]
        below = _soft((p[..., 1] - horizon) / 3)[..., None]
        return torch.lerp(torch.lerp(sky(p), hill(p), away), ground(p), below)

    return Layer("background", colour, lambda p: torch.ones_like(p[..., 0]))


def _water(garden: Garden, draw: _Draw) -> Layer:
    """A pond that heaves in standing waves, less and less towards its shore."""
    shore = garden.height * draw.uniform(0.82, 0.9)
    depth = garden.height - shore
    colour = draw.texture([[0.10, 0.25, 0.35], [0.25, 0.47, 0.55], [0.62, 0.76, 0.78]], 7)

    def wave(number: float, phase: float) -> Field:
        def shape(p: Tensor) -> Tensor:
            deep = ((p[..., 1] - shore) / depth).clamp(0, 1)
            angle = 2 * math.pi * number * p[..., 0] / garden.width + phase
            return _along(deep * torch.cos(angle), 0.4 * deep * torch.sin(angle)) / 1.08

        return shape

    # No more than a quarter of a pixel per pixel, along the image and into the depth.
    share = min(0.25, 0.12 * depth / max(garden.sway, 1e-6))
    modes = tuple(
        draw.mode(wave(n, draw.uniform(0, 2 * math.pi)), share / 2, octave)
        for octave, n in enumerate((2, 3))
    )
    return Layer("water", colour, lambda p: _soft(p[..., 1] - shore), modes)


def _cloth(garden: Garden, draw: _Draw) -> Layer:
    """A cloth that hangs from a line and swings, its second mode with a node."""
    left = garden.width * draw.uniform(0.05, 0.7)
    width = garden.width * draw.uniform(0.14, 0.24)
    top = garden.height * draw.uniform(0.04, 0.15)
    length = garden.height * draw.uniform(0.35, 0.5)
    hue = draw.uniform(0.2, 0.8)
    colour = draw.texture([[0.75, hue, 0.25], [0.9, 0.85, 0.75], [0.45, hue / 2, 0.5]], 12)

    def swing(number: int) -> Field:
        def shape(p: Tensor) -> Tensor:
            s = ((p[..., 1] - top) / length).clamp(0, 1.5)
            x = torch.sin((number - 0.5) * math.pi * s.clamp(max=1))
            return _along(x, 0.3 * x.square())

        return shape

    def opacity(p: Tensor) -> Tensor:
        across = width / 2 - (p[..., 0] - left - width / 2).abs()
        down = length / 2 - (p[..., 1] - top - length / 2).abs()
        line = 0.6 - (p[..., 1] - top).abs()  # it hangs from it, across the whole picture
        return _soft(torch.maximum(torch.minimum(across, down), line))

    def coloured(p: Tensor) -> Tensor:
        line = _soft(1 - (p[..., 1] - top).abs())[..., None]
        return torch.lerp(colour(p), p.new_tensor([0.32, 0.26, 0.22]), line)

    modes = (draw.mode(swing(1), 0.65), draw.mode(swing(2), 0.2, octave=1))
    return Layer("cloth", coloured, opacity, modes)


def _pendulum(garden: Garden, draw: _Draw) -> Layer:
    """A ball on a string, which turns about its pivot."""
    x0, y0 = garden.width * draw.uniform(0.15, 0.85), 0.0
    length = garden.height * draw.uniform(0.35, 0.6)
    radius = garden.height * draw.uniform(0.05, 0.09)
    colour = draw.texture([[0.55, 0.10, 0.12], [0.85, 0.35, 0.15], [0.95, 0.80, 0.40]], 8)

    def turn(p: Tensor) -> Tensor:
        reach = length + 2 * radius
        return _along((p[..., 1] - y0) / reach, (x0 - p[..., 0]) / reach).clamp(-1, 1)

    def opacity(p: Tensor) -> Tensor:
        x, y = p[..., 0] - x0, p[..., 1] - y0
        ball = radius - torch.hypot(x, y - length)
        string = torch.minimum(1.2 - x.abs(), length - y)
        return _soft(torch.maximum(ball, string))

    return Layer("pendulum", colour, opacity, (draw.mode(turn, 0.95),))


def _stem(garden: Garden, draw: _Draw) -> Layer:
    """A stem with leaves and a head that bends as a cantilever does, in two modes."""
    base = garden.width * draw.uniform(0.08, 0.92)
    foot = garden.height * draw.uniform(0.85, 1.05)
    length = garden.height * draw.uniform(0.45, 0.7)
    thick = draw.uniform(1.6, 3.0)
    head = garden.height * draw.uniform(0.035, 0.07)
    green = draw.texture([[0.10, 0.30, 0.08], [0.30, 0.55, 0.15], [0.55, 0.70, 0.25]], 6)
    flower = draw.texture(PETALS[int(draw.uniform(0, len(PETALS)))], 5)
    petals = int(draw.uniform(5, 9))
    leaves = [
        (draw.uniform(0.25, 0.85), side * draw.uniform(0.3, 0.9), head * draw.uniform(1.2, 2.2))
        for side in (-1, 1, -1, 1)
    ]  # height along the stem, slope, length

    def bend(shape: Callable[[Tensor], Tensor]) -> Field:
        def displacement(p: Tensor) -> Tensor:
            s = ((foot - p[..., 1]) / length).clamp(0, 1.2)
            x = shape(s)
            return _along(x, 0.15 * x)

        return displacement

    def blossom(x: Tensor, up: Tensor) -> Tensor:
        edge = head * (0.9 + 0.2 * torch.cos(petals * torch.atan2(up, x)))
        return edge - torch.hypot(x, up)

    def opacity(p: Tensor) -> Tensor:
        x, up = p[..., 0] - base, foot - p[..., 1]
        taper = thick * (1 - 0.5 * (up / length).clamp(0, 1))
        inside = torch.minimum(taper - x.abs(), torch.minimum(up, length - up))
        for height, slope, size in leaves:
            away, off = x * math.copysign(1, slope), up - height * length - abs(slope) * x.abs()
            along = away.clamp(0, size)
            blade = 0.22 * size * torch.sin(math.pi * along / size) - off.abs()
            blade = torch.minimum(blade, torch.minimum(away, size - away))
            inside = torch.maximum(inside, blade)
        return _soft(torch.maximum(inside, blossom(x, up - length)))

    def colour(p: Tensor) -> Tensor:
        x, up = p[..., 0] - base, foot - p[..., 1] - length
        coloured = torch.lerp(green(p), flower(p), _soft(1 + blossom(x, up))[..., None])
        middle = _soft(0.38 * head - torch.hypot(x, up))[..., None]
        return torch.lerp(coloured, p.new_tensor([0.42, 0.24, 0.10]), middle)

    modes = (
        draw.mode(bend(lambda s: s**2 * (3 - s) / 2 / 1.3), 0.75),
        draw.mode(bend(lambda s: s**2 * (s - 0.78) / 0.6), 0.2, octave=1.3),
    )
    return Layer("stem", colour, opacity, modes)
