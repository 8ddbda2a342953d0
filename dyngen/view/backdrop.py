"""What is seen where something has moved away: the picture without the things in front."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def behind(image: Tensor, front: Tensor) -> Tensor:
    """A picture whose front is filled from around it, smoothly (push-pull; Gortler et al. 1996).

    Args:
        image: ``(3, H, W)``.
        front: ``(H, W)`` bool, what to fill; if it is everything, the picture stays as it is.
    """
    if bool(front.all()):
        return image
    known = (~front).to(image.dtype)[None, None]
    return _fill(image[None] * known, known)[0]


def _fill(weighted: Tensor, weight: Tensor) -> Tensor:
    """Values times weights ``(1, C, H, W)`` to values, filled from coarser levels."""
    height, width = weight.shape[-2:]
    if height == 1 and width == 1:
        return weighted / weight.clamp(min=1e-6)
    even = (0, width % 2, 0, height % 2)
    less, weights = (
        functional.avg_pool2d(functional.pad(x, even), 2) * 4 for x in (weighted, weight)
    )
    most = weights.clamp(min=1)
    coarse = _fill(less / most, weights / most)
    size = (2 * coarse.shape[-2], 2 * coarse.shape[-1])
    coarse = functional.interpolate(coarse, size, mode="bilinear")[..., :height, :width]
    return weighted + (1 - weight) * coarse


def in_front(labels: Tensor, strength: Tensor, reach: int) -> Tensor:
    """Pixels ``(H, W)`` bool within ``reach`` of the edge of a part that moves less than theirs.

    Args:
        labels: ``(H, W)``.
        strength: of the part of each label.
        reach: pixels, counted within the part.
    """
    level = strength[labels]
    weaker = level > 1.5 * -functional.max_pool2d(-level[None], 3, 1, 1)[0] + 1e-6
    front = weaker
    for _ in range(reach):
        spread = front.clone()
        for axis in (0, 1):
            size = labels.shape[axis] - 1
            one, other = (x.narrow(axis, 0, size) for x in (labels, front))
            two, another = (x.narrow(axis, 1, size) for x in (labels, front))
            joined = one == two
            spread.narrow(axis, 1, size).logical_or_(other & joined)
            spread.narrow(axis, 0, size).logical_or_(another & joined)
        if torch.equal(spread, front):
            break
        front = spread
    return front
