"""Rendering without a network: colours carried by a motion, and holes filled from around them.

It is what a learned renderer is measured against, and what is used where there is none.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dyngen.motion.splatting import motion_importance, splat


def splat_frames(image: Tensor, displacement: Tensor, importance: Tensor | None = None) -> Tensor:
    """The frames of a motion, each from the start image alone.

    Args:
        image: ``(B, C, H, W)``.
        displacement: ``(B, T, 2, H, W)`` in pixels.
        importance: ``(B, 1, H, W)``; None takes :func:`dyngen.motion.splatting.motion_importance`.

    Returns: ``(B, T, C, H, W)``.
    """
    frames = displacement.shape[1]
    if importance is None:
        importance = motion_importance(displacement)
    landed = splat(
        image[:, None].expand(-1, frames, -1, -1, -1),
        displacement,
        importance[:, None].expand(-1, frames, -1, -1, -1),
    )
    return fill_holes(landed.values.flatten(0, 1), landed.coverage.flatten(0, 1)).unflatten(
        0, (-1, frames)
    )


def fill_holes(values: Tensor, coverage: Tensor) -> Tensor:
    """Fill what is not covered, and mix in what is partly, from averages of what is around it.

    Averages over 2 by 2 pixels, weighted by coverage, are taken until all is covered or one pixel
    is left, and come back as they are needed (pull-push; Gortler et al. 1996, The Lumigraph).

    Args:
        values: ``(B, C, H, W)``.
        coverage: ``(B, 1, H, W)``, 0 where a value means nothing, 1 or more where it is certain.

    Returns: like the values; 0 if nothing at all is covered.
    """
    weight = coverage.clamp(0, 1)
    height, width = values.shape[-2:]
    if max(height, width) == 1:
        return values
    padded = (0, width % 2, 0, height % 2)
    known = functional.pad(weight, padded)
    coarse = functional.avg_pool2d(known, 2)
    average = functional.avg_pool2d(functional.pad(values, padded) * known, 2)
    average = average / torch.where(coarse > 0, coarse, 1.0)
    # Half of what is known is enough, so that one pixel's colour is not spread far.
    around = fill_holes(average, (2 * coarse).clamp(max=1))
    around = functional.interpolate(around, scale_factor=2, mode="bilinear", align_corners=False)
    return weight * values + (1 - weight) * around[..., :height, :width]
