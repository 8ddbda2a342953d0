"""A yardstick for fields of a few points, for tests of single sums."""

import math

import torch

from dyngen.report.yardstick import Yardstick


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def yardstick(
    height: int,
    width: int,
    *,
    periodic: tuple[bool, bool] = (True, True),
    area: torch.Tensor | None = None,
) -> Yardstick:
    edges = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    return Yardstick(
        centre=torch.zeros(height, width, dtype=torch.float64),
        area=torch.ones(height, width, dtype=torch.float64) if area is None else area,
        lags=(0, 1),
        value_edges=edges,
        increment_edges=edges,
        absolute_edges=torch.linspace(-10, 10, 2**16 + 1, dtype=torch.float64),
        periodic=periodic,
        spacing=(1.0, 1.0),
    )


def with_gaps(initials: int, members: int, leads: int, height: int, width: int) -> tuple:
    """An ensemble, a truth with gaps, and area weights of which some are zero."""
    ensemble = draw(initials, members, leads, height, width)
    truth = draw(initials, leads, height, width, seed=1)
    truth[0, 0, 1, 2] = math.nan
    truth[1, :, 0] = math.nan
    area = torch.rand(height, width, generator=torch.Generator().manual_seed(2)).double() + 0.1
    area[2, 1] = 0
    ensemble[:, :, :, 2, 1] = math.nan  # where nothing counts
    return ensemble, truth, area
