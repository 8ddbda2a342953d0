"""Mode shapes as the page keeps them: bytes with a scale to each mode, one layer for many parts.

Parts of the image do not overlap, so the j-th modes of all parts share one layer ``(H, W, 4)`` of
bytes (real x, imaginary x, real y, imaginary y), of which every mode reads the pixels of its part.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dyngen.motion.modes import Modes, PartModes

FULL = 127  # the byte that stands for the scale


@dataclass(frozen=True)
class Packed:
    """Shapes in bytes.

    Attributes:
        labels: ``(H, W)`` uint8, whose part a pixel is; 0 moves with none unless modes say so.
        layers: ``(L, H, W, 4)`` int8.
        layer: of each mode, ``(M,)``.
        scale: pixels of byte 127 of each mode, ``(M,)``.
        error: the largest difference of any stored shape from the true one in pixels.
    """

    labels: Tensor
    layers: Tensor
    layer: Tensor
    scale: Tensor
    error: float


def pack(found: PartModes, labels: Tensor) -> Packed:
    """Modes of parts to bytes; each element is off by at most ``scale / 254``.

    Args:
        found: shapes in pixels.
        labels: ``(H, W)`` of the parts.
    """
    shapes = torch.view_as_real(found.modes.shapes)  # (M, 2, H, W, re im)
    shapes = shapes.permute(0, 2, 3, 1, 4).flatten(3).float()  # (M, H, W, 4)
    scale = shapes.abs().amax((1, 2, 3))
    layer = torch.tensor([int((found.part[:m] == p).sum()) for m, p in enumerate(found.part)])
    layers = torch.zeros(int(layer.max()) + 1, *labels.shape, 4, dtype=torch.int8)
    error = 0.0
    for m, part in enumerate(found.part):
        own = labels == part
        exact = shapes[m, own]
        stored = (exact / scale[m].clamp(min=1e-12) * FULL).round()
        layers[layer[m], own] = stored.to(torch.int8)
        error = max(error, (stored / FULL * scale[m] - exact).abs().max().item())
    return Packed(labels.to(torch.uint8), layers, layer, scale, error)


def unpack(packed: Packed, part: Tensor) -> Tensor:
    """The shapes that the page computes with: ``(M, 2, H, W)`` complex."""
    stored = packed.layers[packed.layer].double() / FULL * packed.scale.double().view(-1, 1, 1, 1)
    stored = stored * (packed.labels[None] == part.view(-1, 1, 1))[..., None]
    return torch.view_as_complex(stored.unflatten(3, (2, 2)).contiguous()).permute(0, 3, 1, 2)


def encode(packed: Packed) -> bytes:
    """Labels, then layers as planes ``(L, 4, H, W)``, each row as differences, in zlib's format."""
    planes = packed.layers.permute(0, 3, 1, 2).contiguous().view(torch.uint8).flatten(0, 1)
    everything = torch.cat([packed.labels[None], planes])
    left = functional.pad(everything[:, :, :-1], (1, 0))
    return zlib.compress((everything - left).numpy().tobytes(), 9)


def halve(found: PartModes, labels: Tensor) -> tuple[PartModes, Tensor]:
    """Shapes and labels on a grid of half the size, shapes averaged within parts.

    A pixel takes the label of its upper left quarter; displacements stay in the pixels they are in.
    """
    height, width = (n - n % 2 for n in labels.shape)
    small = labels[0:height:2, 0:width:2]
    same = labels[None, :height, :width] == small.repeat_interleave(2, 0).repeat_interleave(2, 1)
    weight = functional.avg_pool2d(same.float(), 2)
    parts = (
        torch.view_as_real(found.modes.shapes[..., :height, :width]).movedim(-1, 2).flatten(1, 2)
    )
    mean = functional.avg_pool2d(parts * same, 2) / weight  # (M, 4, h, w), weight is never 0
    shapes = torch.view_as_complex(mean.unflatten(1, (2, 2)).movedim(2, -1).contiguous())
    modes = Modes(shapes, found.modes.frequencies, found.modes.damping)
    return PartModes(modes, found.part), small


def grow(found: PartModes, labels: Tensor, strength: Tensor) -> tuple[PartModes, Tensor]:
    """Let stronger parts take one pixel around them, with the motion of what they border on.

    Pixels at an edge show a little of what is in front. Left behind, they would be its ghost.

    Args:
        found: shapes in pixels.
        labels: ``(H, W)``.
        strength: of the part of each label, ``(labels,)``; weaker ones give way by half or more.
    """
    level = strength[labels]
    best, taken = level.clone(), labels.clone()
    shapes = found.modes.shapes.clone()
    for axis, by in ((0, 1), (0, -1), (1, 1), (1, -1)):
        beside = _shifted(labels, axis, by)
        stronger = (strength[beside] > 2 * level) & (strength[beside] > best)
        if not bool(stronger.any()):
            continue
        moved = _shifted(found.modes.shapes, axis + 2, by)
        shapes = torch.where(stronger, moved, shapes)
        taken = torch.where(stronger, beside, taken)
        best = torch.where(stronger, strength[beside], best)
    modes = Modes(shapes, found.modes.frequencies, found.modes.damping)
    return PartModes(modes, found.part), taken


def _shifted(values: Tensor, axis: int, by: int) -> Tensor:
    """What lies ``by`` pixels before along an axis; the pixels at the edge keep their own."""
    index = (torch.arange(values.shape[axis]) - by).clamp(0, values.shape[axis] - 1)
    return values.index_select(axis, index)
